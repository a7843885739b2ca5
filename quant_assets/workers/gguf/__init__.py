"""The GGUF worker: plans, quantizes in one pass, measures importance matrices, validates.

Not here: running a GGUF file for benchmarks (`llama_cpp`), reading headers (`formats.gguf_header`).
"""
