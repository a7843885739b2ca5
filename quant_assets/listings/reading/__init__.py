"""Listing files -> rows as text: one module per format, the record model, and the walk over files.

What a row means (its card, its price) does not belong here: see `matching`, `prices` and
`normalization`.
"""
