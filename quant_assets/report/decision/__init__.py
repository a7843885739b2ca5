"""The decision report: the newest measurements, what they imply for offers, and what is stale.

`content` reads it from the marts, `figures` draws it, `build` writes it as HTML and Markdown.
"""
