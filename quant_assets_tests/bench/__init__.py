"""Tests of benchmarks and quality."""
