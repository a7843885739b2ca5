"""Benchmarks: variants, the run matrix, its measurements, their records, statistics and thresholds.

Loading and running models belongs to `workers`, estimates of unmeasured speed to `speed`.
"""
