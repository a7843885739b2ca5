"""A seller's price text -> amount, currency and kind, and the exchange rates to US dollars.

Judging a row by its price belongs to `normalization`; the history of prices is in `warehouse`.
"""
