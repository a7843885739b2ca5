"""Tests of quantization types and memory."""
