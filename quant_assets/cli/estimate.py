"""`quant-assets estimate`: memory needed to serve a model, the GPUs that hold it, and their speed."""

from collections.abc import Iterator
from typing import Annotated

import typer
from rich.table import Table

from quant_assets.capacity.device_memory import PlacementSettings, placement_settings
from quant_assets.capacity.estimates import (
    estimate_of_model,
    estimate_of_size,
    fits,
    parse_parameter_count,
)
from quant_assets.capacity.memory import MAX_BATCH, MAX_CONTEXT, MemoryEstimate, Serving
from quant_assets.capacity.placement import MAX_CARDS, DeviceShare, Offload, Placement
from quant_assets.cli.options import CommandOptions, takes_models
from quant_assets.cli.output import output_console
from quant_assets.cli.presentation import Reply
from quant_assets.gpus.registry import load_registry
from quant_assets.models.hf_config import MAX_LAYERS
from quant_assets.settings import get_settings
from quant_assets.speed.model import load_speed_model
from quant_assets.speed.placed_speed import CopySpeed, PlacedFit, with_speeds

_MOST_SHOWN = 4


class ServingOptions(CommandOptions):
    """How the model is served."""

    context: Annotated[int, typer.Option(help="Tokens per sequence.", min=1, max=MAX_CONTEXT)] = (
        8192
    )
    batch: Annotated[int, typer.Option(help="Concurrent sequences.", min=1, max=MAX_BATCH)] = 1
    kv_type: Annotated[str, typer.Option(help="Type of the KV cache.")] = "f16"
    kv_type_v: Annotated[
        str | None, typer.Option(help="Type of the V cache, if it differs from K's.")
    ] = None
    flash_attention: Annotated[bool, typer.Option(help="Use flash attention.")] = True

    def serving(self) -> Serving:
        """The serving parameters of the estimate."""
        return Serving(
            context=self.context,
            batch=self.batch,
            kv_type_k=self.kv_type,
            kv_type_v=self.kv_type_v or self.kv_type,
            flash_attention=self.flash_attention,
        )


class CardOptions(CommandOptions):
    """The cards that are asked about, and what is kept free on them."""

    gpu: Annotated[
        list[str] | None,
        typer.Option(help="GPU or family; repeatable (default: every GPU that holds the model)."),
    ] = None
    gpus: Annotated[
        int,
        typer.Option(
            help="Cards of each GPU, over which a copy may be split.", min=1, max=MAX_CARDS
        ),
    ] = 1
    reserve_gb: Annotated[
        float | None,
        typer.Option(
            help="GB kept free on each GPU by every copy, for driver and context "
            "(default: that of data/placement.yaml).",
            min=0,
        ),
    ] = None


class OffloadOptions(CommandOptions):
    """What stays in host memory."""

    gpu_layers: Annotated[
        int | None,
        typer.Option(
            "--gpu-layers",
            "-ngl",
            help="Of the layers and the output head after them, the last so many lie on GPUs and "
            "the others in host memory (default: all on GPUs).",
            min=0,
            max=MAX_LAYERS + 1,
        ),
    ] = None
    n_cpu_moe: Annotated[
        int,
        typer.Option(
            help="Experts of the first so many layers stay in host memory.", min=0, max=MAX_LAYERS
        ),
    ] = 0
    offload: Annotated[
        bool,
        typer.Option(
            "--offload",
            help="Leave as few experts, then layers, in host memory as the cards of --gpu need.",
        ),
    ] = False
    host_bandwidth: Annotated[
        float | None,
        typer.Option(
            help="Peak bandwidth of host memory in GB/s (default: that of data/placement.yaml).",
            min=0.1,
            max=100_000,
        ),
    ] = None

    def chosen(self) -> Offload | None:
        """What stays in host memory; None: as little as possible."""
        if not self.offload:
            return Offload(gpu_layers=self.gpu_layers, cpu_moe_layers=self.n_cpu_moe)
        if self.gpu_layers is not None or self.n_cpu_moe:
            raise typer.BadParameter("--offload finds --gpu-layers and --n-cpu-moe itself.")
        return None


class EstimateDocument(MemoryEstimate):
    """The memory of one served copy of a model, how GPUs fit it, and how fast it decodes there."""

    gpus: list[PlacedFit]


@takes_models
def estimate(
    model: Annotated[
        str | None,
        typer.Argument(help="Folder, GGUF file, or a published shape such as 'Llama 3 8B'."),
    ] = None,
    params: Annotated[
        str | None, typer.Option(help="Number of parameters instead of a model, such as 7B.")
    ] = None,
    level: Annotated[
        str | None,
        typer.Option(
            help="GGUF level, or a name such as gptq-4bit-g128 (default: as stored, or Q4_K_M)."
        ),
    ] = None,
    *,
    options: ServingOptions,
    cards: CardOptions,
    host: OffloadOptions,
) -> Reply[EstimateDocument]:
    """Estimate the memory to serve MODEL, the GPUs that hold it, and the decoding speed on them.

    A copy that exceeds a card is split over several by layers, or, if asked, lies partly in host memory.
    """
    if (model is None) == (params is None):
        raise typer.BadParameter("Give either MODEL or --params.")
    offload = host.chosen()
    if offload is None and not cards.gpu:
        raise typer.BadParameter("--offload needs a GPU: name it with --gpu.")
    serving = options.serving()
    if params is not None:
        result = estimate_of_size(parse_parameter_count(params), level, serving)
    else:
        assert model is not None
        result = estimate_of_model(model, level, serving, get_settings())
    registry = load_registry()
    found = fits(
        result, registry, cards.gpu or (), cards.reserve_gb, cards=cards.gpus, offload=offload
    )
    placed = with_speeds(found, result, load_speed_model(), registry, host.host_bandwidth)
    document = EstimateDocument(**dict(result), gpus=placed)
    return Reply(document, lambda _: _show(document, cards, host.host_bandwidth))


def _show(result: EstimateDocument, cards: CardOptions, host_bandwidth_gb_s: float | None) -> None:
    console = output_console()
    settings = placement_settings()
    console.print(_memory_table(result))
    note = f" ({result.memory_note.rstrip('.')})" if result.memory_note else ""
    lines = [
        f"Weights: {result.basis}.",
        f"KV cache and buffers: {result.memory_basis}{note}.",
        f"Compute buffers: llama.cpp's for one micro-batch of {result.serving.micro_batch} tokens, "
        "and the logits of each sequence.",
    ]
    for line in lines:
        console.print(line, soft_wrap=True)
    kept_gb = settings.reserve_gb if cards.reserve_gb is None else cards.reserve_gb
    console.print(_fit_table(result.gpus, cards.gpus, kept_gb))
    for entry in result.gpus if cards.gpu else []:
        for line in _placement_lines(entry):
            console.print(line, soft_wrap=True)
    for line in _notes(result, settings, host_bandwidth_gb_s):
        console.print(line, soft_wrap=True)


def _memory_table(result: MemoryEstimate) -> Table:
    table = Table(title=f"{result.model} at {result.level}", title_justify="left")
    table.add_column("part")
    table.add_column("GB", justify="right")
    cache_type = result.kv_type_k
    if result.kv_type_v != cache_type:
        cache_type += f" and {result.kv_type_v}"
    rows = {
        f"weights ({result.bits_per_weight:.3f} bits per weight)": result.weights_bytes,
        f"KV cache ({cache_type}, {result.batch} x {result.context} tokens)": result.kv_cache_bytes,
        "compute buffers": result.compute_bytes,
    }
    for part, size in rows.items():
        table.add_row(part, f"{size / 1e9:.3f}")
    table.add_section()
    table.add_row("total", f"{result.total_bytes / 1e9:.3f}")
    return table


def _fit_table(found: list[PlacedFit], cards: int, reserve_gb: float) -> Table:
    number = "" if cards == 1 else f"{cards} cards of each, "
    table = Table(
        title=f"GPUs, {number}{reserve_gb:g} GB kept free by every copy on each of them"
        if found
        else "No GPU holds it",
        title_justify="left",
    )
    table.add_column("GPU")
    columns = ("VRAM GB", "usable GB", "fits", "copies", "cards per copy", "GB on each", "tokens/s")
    for column in columns:
        table.add_column(column, justify="right")
    for entry in found:
        table.add_row(
            entry.gpu,
            f"{entry.vram_gb:g}",
            f"{entry.usable_gb:.1f}",
            "yes" if entry.copies else "no",
            str(entry.copies),
            "-" if entry.cards_for_one_copy is None else str(entry.cards_for_one_copy),
            "-" if entry.placement is None else _held(entry.placement),
            _speed(entry.speed),
        )
    return table


def _held(placement: Placement) -> str:
    sizes = [f"{share.total_bytes / 1e9:.1f}" for share in placement.devices]
    if len(sizes) > _MOST_SHOWN:
        return f"{sizes[0]} ... {sizes[-1]}"
    return " + ".join(sizes) or "0"


def _speed(speed: CopySpeed | None) -> str:
    if speed is None:
        return "-"
    return (
        f"{speed.decode_tokens_per_s:.3g} "
        f"({speed.decode_tokens_per_s_low:.3g} to {speed.decode_tokens_per_s_high:.3g})"
    )


def _placement_lines(entry: PlacedFit) -> Iterator[str]:
    placement = entry.placement
    if placement is None:
        yield f"{entry.gpu}: a layer and its buffers exceed what one GPU can hold."
        return
    host = placement.host
    split = len(placement.devices) > 1
    if not (split or host.n_layers or host.holds_output or host.expert_bytes):
        return
    yield f"One copy on {entry.gpu}:"
    for number, share in enumerate(placement.devices, start=1):
        yield f"  GPU {number}: {_contents(share)}"
    if host.total_bytes:
        yield f"  host: {_contents(host, *_apart(placement))}"
    if entry.speed is not None:
        yield f"  a step: {_step(entry.speed)}"
    if entry.llama_server_options:
        yield f"  llama-server {' '.join(entry.llama_server_options)}"


def _apart(placement: Placement) -> Iterator[str]:
    """What the host holds beside whole layers."""
    first, end = placement.host.n_layers, placement.cpu_moe_layers
    if placement.host.expert_bytes and end > first:
        yield f"experts of layers {first} to {end - 1}"
    yield "input embedding"


def _contents(share: DeviceShare, *apart: str) -> str:
    held = []
    if share.n_layers and share.first_layer is not None:
        held.append(f"layers {share.first_layer} to {share.first_layer + share.n_layers - 1}")
    if share.holds_output:
        held.append("output head")
    return (
        f"{', '.join([*held, *apart])}; {share.weights_bytes / 1e9:.2f} GB weights, "
        f"{share.kv_cache_bytes / 1e9:.2f} KV cache, {share.compute_bytes / 1e9:.2f} buffers: "
        f"{share.total_bytes / 1e9:.2f}"
    )


def _step(speed: CopySpeed) -> str:
    times = {
        "on GPUs": speed.gpu_ms,
        "on the CPU": speed.host_ms,
        "in transfers": speed.transfer_ms,
    }
    text = ", ".join(f"{time:.3g} ms {where}" for where, time in times.items() if time)
    if speed.slowest_stage_tokens_per_s is not None:
        text += (
            "; with several micro-batches in flight the slowest stage allows "
            f"{speed.slowest_stage_tokens_per_s:.3g} tokens/s"
        )
    return text


def _notes(
    result: EstimateDocument, settings: PlacementSettings, host_bandwidth_gb_s: float | None
) -> Iterator[str]:
    yield (
        "1 GB is 10^9 bytes. Cards per copy: the fewest that hold one, split by layers. Tokens/s: "
        "decoding of one copy at half its context, all sequences together, with its 90 % interval"
        + _basis(result)
        + "."
    )
    if any(entry.speed and entry.speed.host_gb_s for entry in result.gpus):
        given = (
            f"{settings.host_bandwidth_gb_s:g} GB/s of peak bandwidth are assumed; "
            "give your own with --host-bandwidth"
            if host_bandwidth_gb_s is None
            else f"{host_bandwidth_gb_s:g} GB/s of peak bandwidth"
        )
        share = settings.host_efficiency
        yield (
            f"Host memory: {given}. Of it, {share.middle:.0%} ({share.low:.0%} to {share.high:.0%}) "
            "are assumed to be reached."
        )


def _basis(result: EstimateDocument) -> str:
    named = {entry.speed.rests_on for entry in result.gpus if entry.speed} - {None}
    if len(named) != 1:
        return ""
    runs = {entry.speed.runs for entry in result.gpus if entry.speed}
    number = f"{next(iter(runs))} " if len(runs) == 1 else ""
    return f", which rests on {number}runs of {next(iter(named))}"
