"""Tests of the workers on torch."""
