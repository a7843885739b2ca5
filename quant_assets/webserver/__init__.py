"""The UI: Dagster's webserver on this machine alone, behind an access check.

What the UI shows is assembled in definitions; the command that starts it is in cli.
"""
