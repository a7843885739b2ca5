"""Conversion between formats, by way of plain 16 bit weights.

Tensor arithmetic does not belong here; it lives in `workers.checkpoint`.
"""
