"""`quant-assets estimate`: memory needed to serve a model, and the GPUs that hold it."""

from typing import Annotated

import typer
from rich.table import Table

from quant_assets.capacity.device_memory import placement_settings
from quant_assets.capacity.estimates import (
    estimate_of_model,
    estimate_of_size,
    fits,
    parse_parameter_count,
)
from quant_assets.capacity.memory import MAX_BATCH, MAX_CONTEXT, MemoryEstimate, Serving
from quant_assets.capacity.placement import MAX_CARDS, GpuFit
from quant_assets.cli.options import CommandOptions, takes_models
from quant_assets.cli.output import output_console
from quant_assets.cli.presentation import Reply
from quant_assets.gpus.registry import load_registry
from quant_assets.settings import get_settings


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


class EstimateDocument(MemoryEstimate):
    """The memory of one served copy of a model, and how GPUs fit it."""

    gpus: list[GpuFit]


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
    gpu: Annotated[
        list[str] | None,
        typer.Option(help="GPU or family; repeatable (default: every GPU that holds the model)."),
    ] = None,
    gpus: Annotated[
        int, typer.Option(help="Number of cards of each GPU.", min=1, max=MAX_CARDS)
    ] = 1,
    reserve_gb: Annotated[
        float | None,
        typer.Option(
            help="GB kept free by every copy on each GPU, for driver and context "
            "(default: data/placement.yaml).",
            min=0,
        ),
    ] = None,
) -> Reply[EstimateDocument]:
    """Estimate the memory to serve MODEL (weights, KV cache, buffers) and the GPUs that hold it."""
    if (model is None) == (params is None):
        raise typer.BadParameter("Give either MODEL or --params.")
    serving = options.serving()
    if params is not None:
        result = estimate_of_size(parse_parameter_count(params), level, serving)
    else:
        assert model is not None
        result = estimate_of_model(model, level, serving, get_settings())
    found = fits(result, load_registry(), gpu or (), reserve_gb, cards=gpus)
    document = EstimateDocument(**dict(result), gpus=found)
    kept_gb = placement_settings().reserve_gb if reserve_gb is None else reserve_gb
    return Reply(document, lambda _: _show(document, serving, kept_gb))


def _show(result: EstimateDocument, serving: Serving, reserve_gb: float) -> None:
    console = output_console()
    console.print(_memory_table(result))
    console.print(f"Weights: {result.basis}.", soft_wrap=True)
    console.print(
        "Compute buffers: the largest of llama.cpp's stages for one micro-batch of "
        f"{serving.micro_batch} tokens (logits, feed-forward, attention), "
        "plus the logits of each sequence.",
        soft_wrap=True,
    )
    console.print(_fit_table(result.gpus, reserve_gb))
    console.print(
        "1 GB is 10^9 bytes. Cards per copy: by memory alone, with weights and cache split evenly.",
        soft_wrap=True,
    )


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


def _fit_table(found: list[GpuFit], reserve_gb: float) -> Table:
    table = Table(
        title=f"GPUs, {reserve_gb:g} GB kept free per device" if found else "No GPU holds it",
        title_justify="left",
    )
    table.add_column("GPU")
    for column in ("VRAM GB", "usable GB", "fits", "copies", "cards per copy"):
        table.add_column(column, justify="right")
    for entry in found:
        cards = entry.cards_for_one_copy
        table.add_row(
            entry.gpu,
            f"{entry.vram_gb:g}",
            f"{entry.usable_gb:.1f}",
            "yes" if entry.copies else "no",
            str(entry.copies),
            "-" if cards is None else str(cards),
        )
    return table
