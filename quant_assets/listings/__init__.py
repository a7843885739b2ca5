"""Seller listings: files in, normalized and enriched offers out, every row accounted for.

Figures of cards are in `gpus`, what fits on a card is in `capacity`, the price history and the marts
are in `warehouse`, and the report about offers is in `report.listings`.
"""
