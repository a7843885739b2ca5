"""Tests of capacity heuristics."""
