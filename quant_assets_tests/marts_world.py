"""A warehouse with round figures, whose marts are built by dbt and can be checked by hand."""

import datetime
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
import pytest

from quant_assets.capacity.placement import CopyParts, LayerNeeds
from quant_assets.gpus.registry import load_registry
from quant_assets.settings import PROJECT_ROOT
from quant_assets.speed.needs import ServingNeeds
from quant_assets.warehouse.connection import Warehouse
from quant_assets.warehouse.loads.placements import PlacedCopy, placement_rows

NOW = datetime.datetime(2026, 5, 4, 12, tzinfo=datetime.UTC)
WEIGHTS_GB = {"f16": 10.0, "q8": 5.0, "q4": 3.0}
SUFFIXED = (
    '{"7b_4bit": 22, "13b_4bit": 12, "70b_4bit": 2, "7b_8bit": 11, "13b_8bit": 6, "70b_8bit": 1}'
)
"""Capacities as enrichment writes them for several bit widths."""
CPU_EFFICIENCIES = (0.4, 0.5, 0.5, 0.6, 0.6, 0.7)


def insert(
    connection: duckdb.DuckDBPyConnection, table: str, rows: list[dict[str, Any]] | pd.DataFrame
) -> None:
    connection.register("incoming", pd.DataFrame(rows))
    connection.execute(f"insert into raw.{table} by name select * from incoming").fetchall()
    connection.unregister("incoming")


def run(number: int, **fields: Any) -> dict[str, Any]:
    """A benchmark record; `fields` override the defaults."""
    return {
        "record_id": f"run-{number}",
        "model": "m",
        "variant": "f16",
        "batch_size": 1,
        "warmups": 1,
        "runs": 20,
        "prompt_tokens": 128,
        "generated_tokens": 32,
        "timestamp": NOW + datetime.timedelta(minutes=number),
        "artifact_id": "m-f16",
        "backend": "llamacpp",
        "device": "cpu",
        "threads": 2,
        "cpu_name": "cpu",
        "p50_ms": 100.0,
        "p95_ms": 120.0,
        "contended": False,
        "decode_tokens_per_s": 1.0,
        "prefill_tokens_per_s": 10.0,
        "per_token_p50_ms": 1.0,
        "per_token_p95_ms": 1.0,
        **fields,
    }


CARDS = {"A": (1000, 24), "B": (2000, 80)}
"""Bandwidth (GB/s) and memory (GB) of the cards whose speed is predicted."""
DECODE_SHARES = (0.5, 0.6, 0.7)
"""Low, middle and high predictions of decoding, as shares of bandwidth over bytes."""
PREFILL_TOKENS_PER_S = (6000.0, 8000.0, 9000.0)


def prediction(gpu: str, variant: str, batch: int) -> dict[str, Any]:
    """What the speed model predicts: A rests on its architecture, B on all GPUs, without prefill."""
    bytes_read = needs(variant, batch, "grid", 4096, 4096)["decode_bytes"]
    roofline = batch * CARDS[gpu][0] * 1e9 / bytes_read
    decode = [share * roofline for share in DECODE_SHARES]
    prefill = PREFILL_TOKENS_PER_S if gpu == "A" else (None, None, None)
    return {
        "gpu": gpu,
        "model": "m",
        "variant": variant,
        "context_tokens": 4096,
        "batch_size": batch,
        "decode_tokens_per_s_low": decode[0],
        "decode_tokens_per_s": decode[1],
        "decode_tokens_per_s_high": decode[2],
        "decode_rests_on": "its architecture" if gpu == "A" else "all GPUs",
        "decode_runs": 40 if gpu == "A" else 900,
        "prefill_tokens_per_s_low": prefill[0],
        "prefill_tokens_per_s": prefill[1],
        "prefill_tokens_per_s_high": prefill[2],
        "prefill_rests_on": "its maker" if gpu == "A" else None,
        "prefill_runs": 70 if gpu == "A" else None,
    }


def needs(variant: str, batch: int, source: str, context: int, prompt: int) -> dict[str, Any]:
    """10 GB of F16 weights, and 0.5 GB of KV cache per sequence, of which a step reads half."""
    weights = WEIGHTS_GB[variant] * 1e9
    return {
        "model": "m",
        "variant": variant,
        "backend": "llamacpp",
        "artifact_id": f"m-{variant}",
        "source": source,
        "context_tokens": context,
        "prompt_tokens": prompt,
        "batch_size": batch,
        "weights_bytes": int(weights),
        "kv_cache_bytes": 500_000_000 * batch,
        "compute_bytes": 500_000_000,
        "decode_bytes": int(weights + 250_000_000 * batch),
        "decode_flops": 10_000_000_000 * batch,
        "prefill_bytes": int(weights),
        "prefill_flops": 10_000_000_000 * prompt * batch,
        "weight_type": "F16",
        "n_layers": 32,
        "is_sparse": False,
        "decode_kv_bytes": 250_000_000 * batch,
        "decode_parameters": 5_000_000_000,
        "decode_attention_flops": 0,
        "prefill_pass_tokens": min(512, prompt * batch),
        "prefill_parameters": 5_000_000_000,
        "prefill_attention_flops": 0,
    }


def placements(needs: ServingNeeds, layers: int = 32) -> pd.DataFrame:
    """How the cards hold a copy of equal layers, whose input embedding is also its output head."""
    equal = LayerNeeds(needs.weights_bytes // layers, 0, needs.kv_cache_bytes // layers)
    parts = CopyParts((equal,) * layers, output=0, embedding=0, compute=needs.compute_bytes)
    card = load_registry().get("GeForce RTX 3090")
    gpus = [
        card.model_copy(
            update={"canonical_name": name, "vram_gb": gb, "reported_memory_bytes": None}
        )
        for name, gb in {"A": 24, "B": 80, "C": 16}.items()
    ]
    return placement_rows(PlacedCopy(needs, parts, hidden_size=4096), gpus)


def fill(connection: duckdb.DuckDBPyConnection) -> None:
    """Three cards, five offers, one model in three variants, runs on a CPU and on one card."""
    insert(
        connection,
        "gpus",
        [
            {"canonical_name": "A", "vram_gb": 24, "memory_bandwidth_gb_s": 1000,
             "tdp_w": 250, "fp16_dense_tflops": 100},
            {"canonical_name": "B", "vram_gb": 80, "memory_bandwidth_gb_s": 2000,
             "tdp_w": 700, "fp16_dense_tflops": None},
            {"canonical_name": "C", "vram_gb": 16, "memory_bandwidth_gb_s": None,
             "tdp_w": None, "fp16_dense_tflops": None},
        ],
    )  # fmt: skip
    insert(
        connection,
        "enriched_listings",
        [
            {"row_id": row_id, "canonical_name": gpu, "gpu_count": count, "price_kind": kind,
             "price_usd": price, "price_per_gpu_usd": price and price / count, "seller": "shop",
             "vram_gb": {"A": 24, "B": 80, "C": 16}[gpu], "tdp_w": {"A": 250, "B": 700}.get(gpu),
             "quantization_capacity": SUFFIXED if gpu == "B" else '{"7b": 6, "13b": 3, "70b": 0}'}
            for row_id, gpu, count, kind, price in (
                ("buy-a", "A", 1, "purchase", 2000.0),
                ("rent-b", "B", 1, "hourly", 2.0),
                ("rent-4b", "B", 4, "hourly", 7.0),
                ("buy-c", "C", 1, "purchase", 100.0),
                ("no-price", "A", 1, None, None),
            )
        ],
    )  # fmt: skip
    insert(
        connection,
        "models",
        [{"model": "m", "architecture": "llama", "n_layers": 32, "n_heads": 32, "n_kv_heads": 8,
          "head_dim_k": 128, "head_dim_v": 128, "hidden_size": 4096, "intermediate_size": 11008,
          "vocab_size": 32000, "context_length": 4096, "n_sliding_layers": 0, "n_experts": 0,
          "n_experts_used": 0, "n_parameters": 5_000_000_000, "n_linear_parameters": 4_800_000_000}],
    )  # fmt: skip
    levels = {"f16": "F16", "q8": "Q8_0", "q4": "Q4_0"}
    insert(
        connection,
        "variants",
        [
            {"variant": name, "format": "gguf", "level": level, "cache_type_k": "f16",
             "cache_type_v": "f16", "description": ""}
            for name, level in levels.items()
        ],
    )  # fmt: skip
    insert(
        connection,
        "artifacts",
        [
            {"job_id": f"m-{name}", "model": "m", "format": "gguf", "level": level,
             "status": "valid", "size_bytes": int(WEIGHTS_GB[name] * 1e9),
             "n_parameters": 5_000_000_000, "bits_per_weight": WEIGHTS_GB[name] * 1.6,
             "created_at": NOW}
            for name, level in levels.items()
        ],
    )  # fmt: skip
    insert(
        connection,
        "serving_needs",
        [
            *(needs(name, batch, "grid", 4096, 4096) for name in levels for batch in (1, 4)),
            *(needs(name, 1, "run", 160, 128) for name in levels),
            needs("q4", 1, "run", 4096, 3968),
        ],
    )
    insert(
        connection,
        "hosts",
        [
            {"cpu_name": "cpu", "threads": 2, "triad_gb_s": 20.0, "read_gb_s": 15.0,
             "matmul_gflop_s": 200.0, "contended": False, "measured_at": NOW},
            {"cpu_name": "cpu", "threads": 2, "triad_gb_s": 99.0, "read_gb_s": 99.0,
             "matmul_gflop_s": 999.0, "contended": True, "measured_at": NOW},
        ],
    )  # fmt: skip
    insert(
        connection,
        "speed_predictions",
        [prediction(gpu, name, batch) for gpu in CARDS for name in levels for batch in (1, 4)],
    )
    for name in levels:
        for batch in (1, 4):
            fields = needs(name, batch, "grid", 4096, 4096)
            insert(connection, "placements", placements(ServingNeeds.model_validate(fields)))
    cpu_roofline = 20e9 / 10.25e9
    insert(
        connection,
        "benchmark_runs",
        [
            *(
                run(number, decode_tokens_per_s=cpu_roofline * efficiency, p50_ms=100.0 + number)
                for number, efficiency in enumerate(CPU_EFFICIENCIES)
            ),
            run(90, decode_tokens_per_s=0.001, contended=True, timestamp=NOW),
            run(91, variant="q8", artifact_id="m-q8", decode_tokens_per_s=0.9, contended=True),
            run(92, variant="q4", artifact_id="m-q4", device="cuda", gpu_name="NVIDIA B", gpu="B",
                prompt_tokens=3968, generated_tokens=128, decode_tokens_per_s=300.0,
                per_token_p50_ms=3.2, per_token_p95_ms=4.0),
            # Too short to stand for the grid's context.
            run(93, device="cuda", gpu_name="NVIDIA B", gpu="B", decode_tokens_per_s=80.0),
        ],
    )  # fmt: skip
    insert(
        connection,
        "variant_quality",
        [
            {"model": "m", "variant": variant, "artifact_id": artifact, "kind": "perplexity",
             "measured_at": NOW, "perplexity": 10 * ratio, "perplexity_ratio": ratio,
             "perplexity_ratio_low": ratio - 0.004, "perplexity_ratio_high": ratio + 0.004,
             "text": "wiki", "text_sha256": "w", "windows": 30, "context_tokens": 512}
            for variant, artifact, ratio in (("q8", "m-q8", 1.01), ("q4", "an older one", 1.04))
        ],
    )  # fmt: skip
    insert(
        connection,
        "listing_history",
        [
            {"recorded_at": NOW + datetime.timedelta(days=day), "offer_id": offer,
             "canonical_name": "A", "gpu_count": 1, "price_kind": "purchase", "price_usd": price,
             "price_per_gpu_usd": price}
            for day, offer, price in ((0, "x", 2000.0), (0, "y", 2400.0), (1, "x", 1800.0))
        ],
    )  # fmt: skip


def dbt(build_path: Path, folder: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run dbt in its project folder, as on the command line, on a warehouse's build file."""
    return subprocess.run(
        [
            str(Path(sys.executable).with_name("dbt")),
            *arguments,
            *("--target-path", str(folder / "target"), "--log-path", str(folder / "logs")),
        ],
        cwd=PROJECT_ROOT / "dbt_like_sql",
        env={**os.environ, "QUANT_ASSETS_WAREHOUSE": str(build_path)},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="session")
def marts_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data root whose marts have been built."""
    root = tmp_path_factory.mktemp("marts")
    warehouse = Warehouse(root / "warehouse" / "quant_assets.duckdb")
    with warehouse.write() as connection:
        fill(connection)
    with warehouse.exclusive() as build_path:
        done = dbt(build_path, root, "build")
    assert done.returncode == 0, done.stdout
    return root


@pytest.fixture(scope="session")
def marts_warehouse(marts_home: Path) -> Warehouse:
    return Warehouse(marts_home / "warehouse" / "quant_assets.duckdb")
