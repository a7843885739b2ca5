"""Quantization formats: types, levels, sizes, memory, and what each backend can do."""
