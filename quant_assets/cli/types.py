"""`quant-assets types`: every quantization type, with exact and nominal bits."""

from typing import Annotated

import typer
from pydantic import BaseModel, RootModel
from rich.table import Table

from quant_assets.capacity.estimates import parse_parameter_count
from quant_assets.capacity.quantization_types import Kind, QuantizationType, quantization_types
from quant_assets.cli.output import LiteralConsole
from quant_assets.cli.presentation import Reply

_MIN_WIDTH = 140
_TITLES = {
    "float": "floats",
    "gguf_tensor": "GGUF tensor types",
    "gguf_level": "GGUF levels (bits of llama.cpp's mixture on Llama 3 8B)",
    "gptq": "GPTQ (matrices of 4096 x 4096)",
    "awq": "AWQ (matrices of 4096 x 4096)",
}


class SizedType(BaseModel):
    """A quantization, its compression ratios, and the sizes (GB) of a model of `n_parameters`."""

    name: str
    kind: Kind
    exact_bits_per_weight: float
    nominal_bits_per_weight: float
    when_to_choose: str
    measured_on: str | None
    compression_vs_f32: float
    compression_vs_f16: float
    n_parameters: int
    size_gb: float
    nominal_size_gb: float


class TypesDocument(RootModel[list[SizedType]]):
    """Every quantization type."""


def types(
    params: Annotated[
        str, typer.Option(help="Number of parameters for the size columns, such as 7B.")
    ] = "7B",
) -> Reply[TypesDocument]:
    """List quantization types: exact and nominal bits, compression, size and when to choose each."""
    n_parameters = parse_parameter_count(params)
    sized = TypesDocument([_sized(entry, n_parameters) for entry in quantization_types()])
    return Reply(sized, lambda document: _show(document, params))


def _sized(entry: QuantizationType, n_parameters: int) -> SizedType:
    return SizedType(
        **entry.model_dump(),
        compression_vs_f32=entry.compression_vs_f32,
        compression_vs_f16=entry.compression_vs_f16,
        n_parameters=n_parameters,
        size_gb=entry.size_gb(n_parameters),
        nominal_size_gb=entry.nominal_size_gb(n_parameters),
    )


def _show(document: TypesDocument, params: str) -> None:
    console = LiteralConsole()
    # In a narrow column the advice would make every row five lines high.
    console.width = max(console.width, _MIN_WIDTH)
    for kind, title in _TITLES.items():
        console.print(
            _table(title, [entry for entry in document.root if entry.kind == kind], params)
        )
    console.print(
        "1 GB is 10^9 bytes; sizes and compression use exact bits. A whole GPTQ or AWQ model is "
        "larger: its embeddings stay at 16 bits (see `quant-assets estimate`).",
    )


def _table(title: str, entries: list[SizedType], params: str) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column("type", no_wrap=True)
    for column in ("bits", "nominal", "vs F32", "vs F16", f"{params} GB", "nominal GB"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("when to choose it")
    for entry in entries:
        table.add_row(
            entry.name,
            f"{entry.exact_bits_per_weight:.4f}",
            f"{entry.nominal_bits_per_weight:g}",
            f"{entry.compression_vs_f32:.2f}x",
            f"{entry.compression_vs_f16:.2f}x",
            f"{entry.size_gb:.1f}",
            f"{entry.nominal_size_gb:.1f}",
            entry.when_to_choose,
        )
    return table
