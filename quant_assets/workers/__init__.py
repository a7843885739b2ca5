"""Everything that loads models: engines and benchmarks, each run in a child process.

A worker is `python -m quant_assets.workers.<name>`, run by the interpreter of its environment. It
reads one JSON job on standard input and writes JSON-lines events on standard output. Modules here
import the standard library, pydantic, the Dagster-free domain code and the worker's own backend.
Not here: job and result models and whatever the parent process needs (`processes`, and the package
of the job); nothing outside imports this package.
"""
