"""Models on llama.cpp: its C API, benchmarks, perplexity, chat, device probe.

Not here: making or validating a GGUF file (`gguf`).
"""
