"""Tests of intents and serving backends."""
