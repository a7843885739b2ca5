"""Child processes: starting them, talking to workers, and ending all of them reliably.

No model code, which belongs in `workers`, and no Dagster runs, which belong in `resources`.
"""
