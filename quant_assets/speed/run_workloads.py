"""The workload of a published run: what the model named in its row reads and computes.

Published rows give a model's name, a level and perhaps the file's size. The model's shape
(`published_models`) and the types that the level gives each part (llama.cpp's `llama-quant.cpp`)
say which bytes a pass reads: not the input embedding, of which it looks up rows, and of a mixture's
experts those that its tokens choose.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Final

from quant_assets.capacity.memory import MICRO_BATCH, Serving
from quant_assets.capacity.reference_models import (
    mixture_bits,
    nearest_reference,
    reference_models,
)
from quant_assets.errors import InputError
from quant_assets.formats.ggml_types import ggml_type
from quant_assets.formats.gguf_levels import parse_level
from quant_assets.formats.group_quantization import UNQUANTIZED_BITS, parse_group_quantization
from quant_assets.gpus.registry import Gpu
from quant_assets.models.inspection import ModelShape
from quant_assets.speed.model import BACKEND_OF_VENDOR
from quant_assets.speed.needs import attention_flops, kv_read_bytes, unused_share
from quant_assets.speed.published_models import (
    PublishedModel,
    find_published_model,
    size_in_name,
)
from quant_assets.speed.runs import LeftOut, SpeedRun
from quant_assets.speed.workload import Workload

LLAMA_CPP_ENGINES: Final = frozenset({"llama.cpp", "llamafile", "ollama"})
"""Engines that run llama.cpp's own kernels, as `engine_name` spells them."""
DEFAULT_GENERATED_TOKENS: Final = 128
DEFAULT_PROMPT_TOKENS: Final = 512
"""What llama-bench measures (`tg128`, `pp512`) unless told otherwise."""
MAX_EXTRA_PARAMETERS: Final = 0.06
"""A file with up to this share more parameters than the model has carries a draft layer
(multi-token prediction), which an ordinary pass leaves alone."""
SIZE_TOLERANCE: Final = 0.4
"""A stated size that differs more from the level's is another file's."""

_SINGLE_TYPES: Final = frozenset({"F32", "F16", "BF16", "Q8_0"})
_EMBEDDING_TYPES: Final = {
    **dict.fromkeys(("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS"), "Q2_K"),
    **dict.fromkeys(("IQ2_S", "IQ2_M", "IQ3_XXS"), "IQ3_S"),
}
_OUTPUT_TYPE: Final = "Q6_K"
_DYNAMIC_LEVELS: Final = {
    "Q2_K_XL": "Q2_K", "Q3_K_XL": "Q3_K_L", "Q4_K_XL": "Q4_K_M", "Q5_K_XL": "Q5_K_M",
    "Q6_K_XL": "Q6_K", "Q8_K_XL": "Q8_0", "IQ4_NL_XL": "IQ4_NL",
}  # fmt: skip
"""The levels nearest to the mixtures of other makers of GGUF files."""
_OTHER_BITS: Final[Mapping[str, tuple[str, float]]] = {
    "nvfp4": ("nvfp4", 4.5),
    "fp8": ("fp8", 8.0),
    "int8": ("int8", 8.0),
    "int8wo": ("int8", 8.0),
    "int8dq": ("int8", 8.0),
    "int4wo-g64": ("int4", 4.5),
    "int4wo-g64-hqq": ("int4", 4.5),
}
"""Weight type and bits per weight of levels of other engines; embeddings and head stay at 16."""
_IK_BITS: Final = {
    "IQ2_KS": 2.1875, "IQ2_K": 2.375, "IQ3_K": 3.4375, "IQ4_KSS": 4.0, "IQ4_KS": 4.25,
    "IQ4_K": 4.5, "IQ5_KS": 5.25, "IQ5_K": 5.5, "IQ6_K": 6.625, "Q6_0": 6.5,
}  # fmt: skip
"""Bits per weight of ik_llama.cpp's own types, by its block structs (ggml-common.h)."""
_EXL2: Final = re.compile(r"exl[23]-(\d+(?:\.\d+)?)bpw")
_GROUP_WITHOUT_SIZE: Final = re.compile(r"(gptq|awq)-(\d)bit")
_BUILD: Final = re.compile(r"\bb(\d{3,6})\b")
_DATE: Final = re.compile(r"(20\d\d)(?:-(\d\d))?")
_BUILDS: Final = (
    (1000, 2023.62), (2000, 2024.07), (2824, 2024.35), (3500, 2024.58), (4000, 2024.83),
    (4400, 2024.99), (5000, 2025.25), (5500, 2025.4), (6000, 2025.57), (6500, 2025.72),
    (7000, 2025.86), (7423, 2025.96), (8640, 2026.25), (9234, 2026.38), (10450, 2026.62),
)  # fmt: skip
"""Releases of llama.cpp: build number and date as a year with decimals; linear in between."""
_MAX_BUILD_AGE_YEARS: Final = 0.7
"""An older build number beside a source's date is one of a fork that counts its own builds."""
_LLAMAFILE_YEAR: Final = 2024.6
"""The llama.cpp inside llamafile 0.9, which LocalScore runs."""
_FLASH_ATTENTION_AUTOMATIC: Final = 2025.67
"""Since then llama.cpp's programs turn flash attention on where the backend has it."""


@dataclass(frozen=True, slots=True)
class RunWorkload:
    """The workload of a run, and what was assumed for it.

    `model` is the published shape's name; None stands for a generic shape of the same size.
    `computed_size`: the row gives no size of its own, or one that contradicts its level.
    `depth_tokens` is the mean depth.
    """

    workload: Workload
    model: str | None
    computed_size: bool
    file_bytes: float
    depth_tokens: float


@dataclass(frozen=True, slots=True)
class _Level:
    """Bits per weight that a level gives each part, and the type of most weights."""

    weight_type: str
    block_bits: float
    expert_bits: float
    embedding_bits: float
    head_bits: float
    fixed_experts: bool


@dataclass(frozen=True, slots=True)
class _Model:
    shape: ModelShape
    expert_parameters: int
    lookup_parameters: int
    state_bytes: int
    name: str | None
    stored_type: str | None


@dataclass(frozen=True, slots=True)
class _Weights:
    """Bytes of a file by part: only looked up, head, read by every pass, routed experts."""

    lookup: float
    head: float
    always: float
    experts: float

    @property
    def total(self) -> float:
        return self.lookup + self.head + self.always + self.experts


def workload_of(run: SpeedRun, gpu: Gpu) -> RunWorkload | LeftOut:
    """What `run` reads and computes on `gpu`; a reason where its row does not tell.

    A run without a backend used the usual one of its GPU's vendor; without lengths, those of
    llama-bench.
    """
    model = _model(run)
    if isinstance(model, LeftOut):
        return model
    level = _level(run.level, model.shape, model.stored_type)
    if level is None:
        return LeftOut(run.row_id, "unknown_level", run.level)
    weights, computed = _weights(run, model, level)
    try:
        work = _workload(run, gpu, model, level, weights)
    except InputError as error:
        return LeftOut(run.row_id, "invalid_row", str(error))
    return RunWorkload(work, model.name, computed, weights.total, _lengths(run)[1])


def engine_name(engine: str) -> str:
    """The engine as the speed model names it, `llamafile` for `llamafile (LocalScore)`."""
    name = engine.strip().casefold()
    if name.startswith(("ik_llama", "ik-llama")):
        return "ik_llama.cpp"
    for known in ("llamafile", "ollama", "llama.cpp"):
        if name.startswith(known):
            return known
    return {"llamacpp": "llama.cpp", "llama-cpp": "llama.cpp"}.get(name, name)


def engine_year(run: SpeedRun) -> float | None:
    """The release of the run's engine as a year with decimals, from its build number or date."""
    if engine_name(run.engine) == "llamafile":
        return _LLAMAFILE_YEAR
    dated = _year(run.source_date) or _year(run.engine_build_or_date)
    build = _BUILD.search(run.engine_build_or_date or "")
    if build is not None and engine_name(run.engine) == "llama.cpp":
        built = _year_of_build(int(build[1]))
        if dated is None or 0 <= dated - built + 0.2 <= _MAX_BUILD_AGE_YEARS + 0.2:
            return built
    return dated


def _year(text: str | None) -> float | None:
    match = _DATE.search(text or "")
    if match is None:
        return None
    month = int(match[2]) if match[2] else 6.5
    return int(match[1]) + (min(max(month, 1), 12) - 0.5) / 12


def _year_of_build(build: int) -> float:
    pairs = list(pairwise(_BUILDS))
    (low, low_year), (high, high_year) = next(
        (pair for pair in pairs if build <= pair[1][0]), pairs[-1]
    )
    return low_year + (build - low) * (high_year - low_year) / (high - low)


def _model(run: SpeedRun) -> _Model | LeftOut:
    published = find_published_model(run.model, run.params_b)
    if published is not None:
        return _published(published)
    if run.model_kind == "moe_or_sparse":
        return LeftOut(run.row_id, "unknown_model", f"{run.model}: experts not known")
    stated = run.params_b * 1e9 if run.params_b else size_in_name(run.model)
    if stated is None:
        return LeftOut(run.row_id, "unknown_model", f"{run.model}: size not stated")
    return _generic(stated)


@cache
def _published(model: PublishedModel) -> _Model:
    return _Model(
        shape=model.shape,
        expert_parameters=model.expert_parameters,
        lookup_parameters=model.lookup_parameters,
        state_bytes=model.state_bytes,
        name=model.name,
        stored_type=model.experts.stored_type if model.experts else None,
    )


def _generic(n_parameters: float) -> _Model:
    reference = nearest_reference(n_parameters)
    shape = reference.shape
    ratio = n_parameters / shape.n_parameters
    embedding = 0 if reference.tied_embeddings else shape.vocab_size * shape.hidden_size
    scaled = shape.model_copy(
        update={
            "n_parameters": round(n_parameters),
            "n_linear_parameters": round(shape.n_linear_parameters * ratio),
        }
    )
    return _Model(scaled, 0, round(embedding * ratio), 0, None, None)


def _level(text: str, shape: ModelShape, stored_type: str | None) -> _Level | None:
    return _gguf_level(text, shape, stored_type) or _other_level(text)


def _gguf_level(text: str, shape: ModelShape, stored_type: str | None) -> _Level | None:
    name = re.sub(r"[-\s]+", "_", text.strip().upper()).removeprefix("UD_")
    name = _DYNAMIC_LEVELS.get(name, name)
    if name.startswith("MXFP4"):
        # The experts alone have the type; llama.cpp's `MXFP4_MOE` keeps the rest at Q8_0.
        bits = ggml_type("Q8_0").bits_per_weight
        experts = ggml_type("MXFP4").bits_per_weight
        return _Level("MXFP4", bits, experts, bits, bits, fixed_experts=True)
    if (own := _IK_BITS.get(name)) is not None:
        output = ggml_type(_OUTPUT_TYPE).bits_per_weight
        return _Level(name, own, own, own, output, fixed_experts=False)
    try:
        level = parse_level(name)
    except InputError:
        return None
    name, main = level.name, level.main_type
    head = ggml_type(main if name in _SINGLE_TYPES else _OUTPUT_TYPE).bits_per_weight
    embedding = ggml_type(_EMBEDDING_TYPES.get(name, main)).bits_per_weight
    reference = nearest_reference(shape.n_parameters)
    block = _block_bits(name, reference.name, embedding, head)
    if stored_type is None:
        return _Level(main, block, block, embedding, head, fixed_experts=False)
    experts = ggml_type(stored_type).bits_per_weight
    return _Level(stored_type, block, experts, embedding, head, fixed_experts=True)


@cache
def _block_bits(level: str, reference: str, embedding_bits: float, head_bits: float) -> float:
    """Bits per weight inside the blocks, from those of the whole mixture on a reference shape."""
    model = reference_models()[reference]
    shape = model.shape
    table = shape.vocab_size * shape.hidden_size
    outside = table * head_bits + (0 if model.tied_embeddings else table * embedding_bits)
    whole = shape.n_parameters * mixture_bits(level, reference)
    return (whole - outside) / shape.n_linear_parameters


def _other_level(text: str) -> _Level | None:
    name = text.strip().casefold()
    if (match := _EXL2.fullmatch(name)) is not None:
        bits = float(match[1])
        return _Level(
            f"exl2-{round(bits)}bit", bits, bits, UNQUANTIZED_BITS, 6, fixed_experts=False
        )
    if (match := _GROUP_WITHOUT_SIZE.fullmatch(name)) is not None:
        name = f"{name}-g128"
    if (group := parse_group_quantization(name)) is not None:
        kind, bits = f"{group.method}-{group.bits}bit", group.bits_per_weight()
    elif name in _OTHER_BITS:
        kind, bits = _OTHER_BITS[name]
    else:
        return None
    return _Level(kind, bits, bits, UNQUANTIZED_BITS, UNQUANTIZED_BITS, fixed_experts=False)


def _weights(run: SpeedRun, model: _Model, level: _Level) -> tuple[_Weights, bool]:
    """Bytes by part, scaled to the file's size, and whether that size had to be computed."""
    shape = model.shape
    head = shape.vocab_size * shape.hidden_size
    nominal = _Weights(
        lookup=model.lookup_parameters * level.embedding_bits / 8,
        head=head * level.head_bits / 8,
        always=(shape.n_linear_parameters - model.expert_parameters) * level.block_bits / 8,
        experts=model.expert_parameters * level.expert_bits / 8,
    )
    if run.size_gib is None or (run.size_source == "params_x_bpw" and model.name is not None):
        return nominal, True
    size = run.size_gib * 2**30
    if run.params_b is not None and run.params_source != "nominal":
        extra = run.params_b * 1e9 / shape.n_parameters - 1
        if 0 < extra <= MAX_EXTRA_PARAMETERS:
            size /= 1 + extra
    if abs(size / nominal.total - 1) > SIZE_TOLERANCE:
        return nominal, True
    if level.fixed_experts:
        factor = (size - nominal.experts) / (nominal.total - nominal.experts)
        if not 0.3 <= factor <= 3:
            return nominal, True
        return (
            _Weights(
                nominal.lookup * factor,
                nominal.head * factor,
                nominal.always * factor,
                nominal.experts,
            ),
            False,
        )
    blocks = nominal.always + nominal.experts
    factor = (size - nominal.lookup - nominal.head) / blocks
    if factor <= 0:
        return nominal, True
    return (
        _Weights(nominal.lookup, nominal.head, nominal.always * factor, nominal.experts * factor),
        False,
    )


def _workload(run: SpeedRun, gpu: Gpu, model: _Model, level: _Level, weights: _Weights) -> Workload:
    shape = model.shape
    serving = _serving(run)
    active = shape.n_linear_parameters - model.expert_parameters * unused_share(shape, 1)
    head = shape.vocab_size * shape.hidden_size
    new, mean_depth = _lengths(run)
    tokens = tokens_per_pass = run.batch
    if run.test == "prefill":
        tokens = max(1, round(new)) * run.batch
        tokens_per_pass = run.tokens_per_pass or min(run.ubatch or MICRO_BATCH, tokens)
    touched = 1 - unused_share(shape, tokens_per_pass)
    decoding = run.test == "decode"
    kv_bytes = 0.0
    if decoding:
        state = 2 * model.state_bytes  # read and written
        kv_bytes = run.batch * (kv_read_bytes(shape, serving, mean_depth) + state)
    return Workload(
        phase=run.test,
        engine=engine_name(run.engine),
        backend=run.gpu_backend or BACKEND_OF_VENDOR[gpu.vendor],
        weight_type=level.weight_type,
        weight_bytes=weights.always + weights.head + weights.experts * touched,
        parameters=active + (head if decoding else 0),
        layers=shape.n_layers,
        batch=run.batch,
        tokens=tokens,
        tokens_per_pass=tokens_per_pass,
        kv_bytes=kv_bytes,
        attention_flops=tokens * attention_flops(shape, mean_depth),
        sparse=shape.n_experts > 0,
        flash_attention=_flash_attention(run),
        engine_year=engine_year(run),
        recurrent=model.state_bytes > 0,
    )


def _lengths(run: SpeedRun) -> tuple[float, float]:
    """Tokens that a sequence generates or prefills, and its mean depth meanwhile."""
    if run.test == "decode":
        new = DEFAULT_GENERATED_TOKENS if run.generated_tokens is None else run.generated_tokens
    else:
        new = run.prompt_tokens or DEFAULT_PROMPT_TOKENS
    if run.mean_depth_tokens is not None:
        return new, run.mean_depth_tokens
    return new, (run.depth_tokens or 0.0) + new / 2


def _serving(run: SpeedRun) -> Serving:
    key, _, value = (run.kv_type or "F16").upper().partition("/")
    return Serving(kv_type_k=key.strip(), kv_type_v=(value or key).strip())


def _flash_attention(run: SpeedRun) -> bool:
    """As stated; else as llama.cpp did by itself at the time."""
    if run.flash_attention is not None:
        return run.flash_attention
    year = engine_year(run)
    return year is None or year >= _FLASH_ATTENTION_AUTOMATIC
