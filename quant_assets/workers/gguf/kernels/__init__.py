"""Kernels of the project's own that give ggml's very bytes, faster, and how they are built."""
