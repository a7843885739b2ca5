"""Tests of the GPU registry."""
