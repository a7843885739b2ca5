"""Intents: one backend per file, translated into its parameters and launch line.

No engine is started or imported here: processes/ starts workers, and workers/ runs models.
"""
