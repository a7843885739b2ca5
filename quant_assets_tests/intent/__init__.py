"""Tests of the unified quantization intent."""
