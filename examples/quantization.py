"""Quantization types side by side, and which to choose: `.venv/bin/python examples/quantization.py`."""

from rich.console import Console
from rich.table import Table

from quant_assets.capacity.quant_type import QuantType, estimate_memory_gb, exact_memory_gb

PARAMS_BILLIONS = 7.0
ADVICE = {
    QuantType.Q4_K: "for most: the best balance of size and quality; 7B runs on an 8 GB card",
    QuantType.Q5_K: "better than Q4_K for about a fifth more memory; cards with 16 to 24 GB",
    QuantType.Q6_K: "close to F16 for about 45 % more memory than Q4_K; where quality is critical",
    QuantType.Q8_0: "almost no loss for nearly twice the memory of Q4_K",
    QuantType.F16: "16-bit inference on servers with memory to spare, such as A100 and H100",
}


def main() -> None:
    """Print the table for 7B parameters and the advice."""
    table = Table(title=f"{PARAMS_BILLIONS:g}B parameters, weights alone, GB = 10^9 bytes")
    table.add_column("type")
    for column in ("bits", "exact", "vs F32", "exact", "GB", "exact"):
        table.add_column(column, justify="right")
    for quant in QuantType:
        table.add_row(
            quant.name,
            f"{quant.bits_per_weight():.1f}",
            f"{quant.exact_bits_per_weight():.4f}",
            f"{quant.compression_ratio():.1f}x",
            f"{quant.exact_compression_ratio():.2f}x",
            f"{estimate_memory_gb(PARAMS_BILLIONS, quant):.1f}",
            f"{exact_memory_gb(PARAMS_BILLIONS, quant):.2f}",
        )
    console = Console(width=100)
    console.print(table)
    for quant, advice in ADVICE.items():
        console.print(f"{quant.name}: {advice}", highlight=False)


if __name__ == "__main__":
    main()
