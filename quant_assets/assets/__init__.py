"""The asset graph, one file a stage."""
