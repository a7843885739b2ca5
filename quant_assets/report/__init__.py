"""Reports for people: what all pages share, and the report on the whole project."""
