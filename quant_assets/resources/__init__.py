"""Dagster resources and the running of its steps: backends, stores, dbt, executor, instance, failures.

Whatever works without Dagster belongs in the packages below; assets and jobs in those above.
"""
