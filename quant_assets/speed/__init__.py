"""Expected speed: what a served model reads and computes, and what a machine can do at most."""
