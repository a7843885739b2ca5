"""Models on disk: sources, identity, shape, integrity, and existing quantization.

File formats belong in formats/; new artifacts are made in quantize/ and kept in artifacts/.
"""
