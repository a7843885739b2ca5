"""Tests of quant_assets: a folder for each domain."""
