"""The project's own K-quant kernels, faster than ggml's and equal byte for byte, and their build.

Not here: ggml's kernels, which are called through `ggml`.
"""
