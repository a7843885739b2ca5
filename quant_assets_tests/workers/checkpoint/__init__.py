"""Tests of reading and writing model folders."""
