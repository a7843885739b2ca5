"""Tests of the dbt project: the marts built on a small world, and its own data tests."""
