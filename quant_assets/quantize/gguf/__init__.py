"""GGUF jobs, artifacts and importance matrices, seen from the parent process.

Types, headers and levels of the format belong in `formats`, the engine in `workers.gguf`.
"""
