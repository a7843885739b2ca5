"""Tests of `speed`."""
