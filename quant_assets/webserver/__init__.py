"""Dagster's UI on this machine alone: its webserver behind a check of who asks."""
