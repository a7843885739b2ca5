"""The 16 bit type in which the weights of a Hugging Face folder are stored, and so computed with."""

from typing import Final, Literal

CheckpointDtype = Literal["float16", "bfloat16"]

_BEYOND_FLOAT16: Final = "gemma"


def checkpoint_dtype(architecture: str) -> CheckpointDtype:
    """The type for a model of this architecture, by its name in config.json or in a GGUF header.

    float16 has three more bits of precision than bfloat16, and every kernel takes it. But software
    loads a folder in the type that its config names, and activations of the Gemma family exceed
    float16's 65504: the logits of Gemma 3 270M are not numbers then.
    """
    return "bfloat16" if architecture.startswith(_BEYOND_FLOAT16) else "float16"
