"""Memory of a served model, the GPUs that hold it, reference shapes and heuristics.

Measured speed and its predictions belong in speed/; the facts about GPUs in gpus/.
"""
