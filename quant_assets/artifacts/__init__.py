"""Finished artifacts of any format: job ids, manifests, the store and the quality gate.

Making artifacts belongs in `quantize`, source models in `models`.
"""
