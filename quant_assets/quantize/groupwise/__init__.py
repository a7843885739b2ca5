"""GPTQ and AWQ jobs, artifacts, layout checks and the perplexity gate.

The algorithms belong in `workers.groupwise`; limits shared with GGUF in `artifacts.quality_gate`.
"""
