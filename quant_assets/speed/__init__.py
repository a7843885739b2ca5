"""Expected speed: the work of served models, the learned speed model, its fit and checks, host peaks.

Measured speed belongs to `bench`, the memory that models need to `capacity`.
"""
