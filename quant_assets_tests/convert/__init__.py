"""Tests of conversions between formats."""
