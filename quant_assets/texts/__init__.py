"""Calibration and evaluation texts, from files, the hub or Python's own documentation.

Prompts of the benchmarks belong in `bench`.
"""
