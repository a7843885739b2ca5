"""File formats by the name that records, options and folders use for them."""

from typing import Literal

GroupwiseFormat = Literal["gptq", "awq"]
"""Folders of integer groups with scales."""

ArtifactFormat = Literal["gguf", "gptq", "awq"]
"""Formats that the project makes."""

RunnableFormat = Literal["gguf", "gptq", "awq", "hf"]
"""Formats that a worker can load; `hf` is a plain folder of safetensors."""
