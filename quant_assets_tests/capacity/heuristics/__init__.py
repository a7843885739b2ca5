"""Tests of the heuristics and their catalog."""
