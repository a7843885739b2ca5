"""Heuristics: strategies that judge a GPU for quantized models, behind one interface."""
