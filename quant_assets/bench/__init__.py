"""Benchmarks: the run matrix, what a cell measures, its statistics, and the quality of answers."""
