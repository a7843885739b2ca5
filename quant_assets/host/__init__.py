"""This machine: what its processes share."""
