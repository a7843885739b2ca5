"""What runs in a child process.

A worker is `python -m quant_assets.workers.<name>`, run by the interpreter of its environment. It
reads one JSON job on standard input and writes JSON-lines events (`protocol`) on standard output.
`supervisor` is the parent's side. Modules here import the standard library, pydantic, the
Dagster-free domain code and the worker's own backend, nothing else.
"""
