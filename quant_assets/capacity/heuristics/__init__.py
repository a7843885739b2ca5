"""Strategies that add capacity columns to a table of offers, and their catalog.

The arithmetic of memory belongs one level up; the table's other columns in listings/.
"""
