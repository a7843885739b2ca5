"""Tests of the asset graph in Dagster."""
