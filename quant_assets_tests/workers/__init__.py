"""Tests of the worker protocol and supervisor."""
