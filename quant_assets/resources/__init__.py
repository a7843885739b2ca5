"""Dagster resources: the model backends, the stores, the warehouse and the source models."""
