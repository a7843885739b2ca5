"""The registry of GPU cards: their names, specifications and lookup.

A room of one file: `listings`, `capacity`, `bench` and `workers` all read it, so none of them can own
it. Prices, what fits on a card and the devices of this host do not belong here; see `listings`,
`capacity` and `host`.
"""
