"""Expected speed: the traffic and operations of served models, host peaks, and model validation.

Measured speed belongs to `bench`, the memory that models need to `capacity`.
"""
