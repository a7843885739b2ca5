"""Model folders as files: reading tensors, packing, assembling, unpacking, dequantizing a GGUF.

Not here: running a model (`torch`) or quantizing one (`groupwise`); both build on this package.
"""
