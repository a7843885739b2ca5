"""Tests of source models and their files."""
