"""Tests of artifacts and their store."""
