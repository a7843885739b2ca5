"""Tests of memory arithmetic, reference shapes and quantization types."""
