"""Tests of the dbt marts and what reads them."""
