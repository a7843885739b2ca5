"""Quantization and conversion jobs: their settings, their workers' answers, their artifacts.

Tensor arithmetic belongs in `workers`, the artifact store in `artifacts`.
"""
