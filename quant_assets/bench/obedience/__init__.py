"""Obedience: prompts with checkable instructions, the checks of answers, and the pass rate.

The prompts' data are in `data/obedience`; chatting with a model is a worker's or an endpoint's work.
"""
