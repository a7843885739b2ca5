"""Tests of one-pass GGUF quantization."""
