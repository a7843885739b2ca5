"""The insight report about offers, for any run of the listings.

Measurements and recommendations are in `report.decision`; drawing and escaping that both share are
in `report.page`.
"""
