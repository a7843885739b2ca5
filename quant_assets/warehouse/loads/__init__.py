"""One loader per raw table, which replaces its rows by the records of the data root.

Reading a record file belongs to its store, loading all tables together to `warehouse.rebuild`.
"""
