"""llama.cpp's converter, restricted to a model's own safetensors, config and tokenizer files.

Source: the `conversion` package of llama.cpp (convert_hf_to_gguf.py). It is set up to run no code
from a model's folder, read no pickles, and keep float32 weights.
"""

import gc
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rapidfuzz import process

from quant_assets.errors import InputError, QuantAssetsError
from quant_assets.formats.safetensors_header import SUFFIX


@contextmanager
def inference_mode() -> Iterator[None]:
    """torch's inference mode, importing torch on entry."""
    import torch

    with torch.inference_mode():
        yield


@contextmanager
def converter_errors(folder: Path) -> Iterator[None]:
    """Turn the converter's exceptions about a model into an `InputError`."""
    try:
        yield
    except (QuantAssetsError, MemoryError, OSError):
        raise
    except Exception as error:
        logging.getLogger(__name__).exception("the converter rejected %s", folder)
        raise InputError(
            f"The model in {folder} cannot be converted to GGUF.",
            f"llama.cpp's converter raised {type(error).__name__}: {error}",
            "Check that the folder holds the model's own config and tokenizer files, unchanged.",
        ) from error


@contextmanager
def _without_collections() -> Iterator[None]:
    """Disable garbage collection during imports, where it scans many new objects repeatedly."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def _hide_torch_from_transformers() -> None:
    """Save the seconds that transformers takes to load torch modules unused here.

    The converter needs only configs and tokenizers; by default, a config's checks import torch's
    compiler and its distributed tensors.
    """
    import transformers.utils

    def no_torch() -> bool:
        return False

    for module in (transformers.utils, transformers.utils.import_utils):
        module.is_torch_available = no_torch


def converter_of(folder: Path, weights: list[str], scratch: Path) -> Any:
    """llama.cpp's converter for the model in `folder`, set to the model's own float type.

    `weights` are the names of the weight files. Raises `InputError` for an unsupported architecture.
    """
    with _without_collections():
        _hide_torch_from_transformers()
        import gguf
        import torch
        from conversion import TEXT_MODEL_MAP, ModelBase, ModelType, get_model_architecture
        from conversion import get_model_class as class_of

    _forbid_remote_code()
    _name_weight_files(ModelBase, weights)
    hyper_parameters = ModelBase.load_hparams(folder, is_mistral_format=False)
    architecture = get_model_architecture(hyper_parameters, ModelType.TEXT)
    if architecture not in TEXT_MODEL_MAP:
        near = [name for name, _, _ in process.extract(architecture, list(TEXT_MODEL_MAP), limit=3)]
        raise InputError(
            f"The architecture {architecture} is not supported.",
            f"The most similar of the {len(TEXT_MODEL_MAP)} that llama.cpp's converter supports are "
            f"{', '.join(near)}.",
            "Use a model of a supported architecture; config.json names it under `architectures`.",
        )
    model = class_of(architecture)(folder, gguf.LlamaFileType.GUESSED, scratch / "unused.gguf")
    # By default the converter turns float32 weights into F16; float32 keeps them exact.
    first_matrix = next((tensor for _, tensor in model.get_tensors() if tensor.dim() > 1), None)
    if first_matrix is not None and first_matrix.dtype == torch.float32:
        model.ftype = gguf.LlamaFileType.ALL_F32
    return model


def _name_weight_files(model_base: Any, names: list[str]) -> None:
    """Tell the converter which files hold the weights; by default it looks for pickles as well."""

    def part_names(_: Path, prefix: str, suffix: str) -> list[str]:
        return names if (prefix, suffix) == ("model", SUFFIX) else []

    model_base.get_model_part_names = staticmethod(part_names)


def _forbid_remote_code() -> None:
    """Make transformers reject code from a model's folder, whatever the converter requests."""
    from transformers import dynamic_module_utils
    from transformers.models.auto import configuration_auto, tokenization_auto

    allowed_by_default = dynamic_module_utils.resolve_trust_remote_code

    def refuse(_: Any, *arguments: Any, **options: Any) -> Any:
        return allowed_by_default(False, *arguments, **options)

    for module in (configuration_auto, tokenization_auto):
        module.resolve_trust_remote_code = refuse
