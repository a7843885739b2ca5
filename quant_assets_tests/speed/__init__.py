"""Tests of speed estimates."""
