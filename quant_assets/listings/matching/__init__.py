"""A seller's title -> one card of the GPU registry, or the reason why there is none.

The registry itself is in `gpus`; joining matches to rows is `normalization`'s.
"""
