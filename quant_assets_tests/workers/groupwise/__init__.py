"""Tests of GPTQ and AWQ."""
