"""HTML and Markdown reports for people, one folder per report; `page` has what they share.

Figures are calculated in the marts or in the domain, not here; printed tables belong to `cli`.
"""
