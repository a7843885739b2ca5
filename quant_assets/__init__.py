"""Quantized variants of a model, the GPUs they fit, and their speed, quality and cost."""

__version__ = "0.1.0"
