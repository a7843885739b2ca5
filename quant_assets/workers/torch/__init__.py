"""Models on torch: loading, benchmarks, perplexity, chat, device probe, the host's peaks.

Not here: models that are run one layer at a time (`groupwise`), GGUF files (`llama_cpp`).
"""
