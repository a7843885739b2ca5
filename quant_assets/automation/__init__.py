"""When the graph runs: jobs, schedules, sensors, asset checks and the full run.

Assets themselves belong in assets; executors, instances and backends in resources.
"""
