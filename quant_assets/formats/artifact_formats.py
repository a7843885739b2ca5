"""Formats of models and artifacts, by the names that records, options and folders use."""

from typing import Literal

GroupwiseFormat = Literal["gptq", "awq"]
"""Folders of integer groups with scales."""

ArtifactFormat = Literal["gguf", "gptq", "awq"]
"""Formats that the project makes."""

RunnableFormat = Literal["gguf", "gptq", "awq", "hf"]
"""Formats that a worker can load; `hf` is a plain folder of safetensors."""

CheckpointDtype = Literal["float16", "bfloat16"]
"""The 16-bit type in which a Hugging Face folder stores unquantized weights."""


def checkpoint_dtype(architecture: str) -> CheckpointDtype:
    """The 16-bit type for a model of this architecture, as config.json or a GGUF header names it.

    float16 has three more bits of precision than bfloat16, and every kernel supports it. But
    software computes in the type that a folder's config names, and activations of the Gemma family
    exceed float16's maximum of 65504: the logits of Gemma 3 270M become NaN.
    """
    return "bfloat16" if architecture.startswith("gemma") else "float16"
