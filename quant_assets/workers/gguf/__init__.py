"""The GGUF worker: plans, quantizes in one pass, computes importance matrices, validates."""
