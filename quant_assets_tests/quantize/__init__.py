"""Tests of quantization and conversion jobs."""
