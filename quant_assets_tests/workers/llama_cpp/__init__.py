"""Tests of the workers on llama.cpp."""
