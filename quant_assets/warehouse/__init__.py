"""The DuckDB warehouse: its raw tables, their loading, publishing, and the queries of it.

The SQL of staging and marts is in `dbt_like_sql`, pages made from the marts are in `report`.
"""
