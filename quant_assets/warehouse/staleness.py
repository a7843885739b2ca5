"""Staleness limits: the age from which the graph's checks and the decision report flag data."""

import datetime

LISTINGS_STALE_AFTER = datetime.timedelta(hours=36)
"""Listings are read daily: half a day overdue."""
BENCHMARKS_STALE_AFTER = datetime.timedelta(days=14)
"""Benchmarks are measured weekly: a week overdue."""
