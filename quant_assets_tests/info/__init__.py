"""Tests of what a file is."""
