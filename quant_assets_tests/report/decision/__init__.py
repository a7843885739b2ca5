"""Tests of the decision report."""
