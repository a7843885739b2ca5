"""The DuckDB warehouse: its raw tables, how they are loaded from files, and how it is published."""
