"""Tests of file formats and quantization levels."""
