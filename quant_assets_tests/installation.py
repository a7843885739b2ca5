"""An installation with two tiny models and a few listings, and fixtures that run its jobs."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import dagster as dg
import pytest

from quant_assets.bench.record import BenchmarkRecord
from quant_assets.bench.results import ResultStore
from quant_assets.resources.instance import dagster_instance
from quant_assets.settings import Settings
from quant_assets.warehouse.connection import Warehouse
from quant_assets_tests.models.tiny_models import make_model, tokenizer_model

MODELS = """
models:
  - {name: tiny, source: models/tiny-source, gguf_levels: [F16, Q8_0, Q4_0]}
  - {name: tiny-2, source: models/tiny-source-2, gguf_levels: [F16]}
"""

VARIANTS = """
settings: {batch_sizes: [1, 4, 8], warmups: 1, runs: 3, prompt_tokens: 8, generated_tokens: 4}
variants:
  f16: {format: gguf, level: F16}
  q8_0-kv-hybrid: {format: gguf, level: Q8_0, cache_type_k: q8_0, cache_type_v: q4_0}
  q4_K_M: {format: gguf, level: Q4_K_M}
"""

LISTINGS = """title,price,currency,seller,url
NVIDIA L4 24GB,"2,500",USD,shop,https://shop.example/1
H100 80GB PCIe,2.49/h,USD,cloud,https://cloud.example/1
Tesla P40 24G,199,EUR,auction,https://auction.example/1
Tesla P40 24G,199,EUR,auction,https://auction.example/1
heat sink for A100,35,USD,shop,https://shop.example/2
quantum flux capacitor,1,USD,shop,https://shop.example/3
"""


QUALITY = {
    "ops": {
        "tiny__variant_quality_results": {
            "config": {"windows": 1, "kv_cache_windows": 2, "obedience": False}
        }
    }
}


class FirstState(NamedTuple):
    """Files and tables after every job ran once; later tests add to them."""

    records: list[BenchmarkRecord]
    benchmark_rows: list[tuple[Any, ...]]
    variant_summary: list[tuple[Any, ...]]


class Installation(NamedTuple):
    """Settings, definitions and instance that belong together."""

    settings: Settings
    definitions: dg.Definitions
    instance: dg.DagsterInstance
    first: FirstState | None = None

    def first_state(self) -> FirstState:
        """The current content of files and tables."""
        with Warehouse(self.settings.warehouse).read() as connection:
            return FirstState(
                records=list(ResultStore(self.settings.results).records()),
                benchmark_rows=connection.execute(
                    "select model, variant, batch_size, p50_ms from raw.benchmark_runs"
                ).fetchall(),
                variant_summary=connection.execute(
                    "select variant, measured_cells, p50_ms_batch_1 is not null, "
                    "p50_ms_batch_4 is not null "
                    "from marts.variant_summary where model = 'tiny' order by variant"
                ).fetchall(),
            )

    def run(self, job: str, *keys: str, **options: object) -> dg.ExecuteInProcessResult:
        """Execute a job in this process, for a range of partitions where keys are given."""
        tags = {}
        if keys:
            tags = {
                "dagster/asset_partition_range_start": keys[0],
                "dagster/asset_partition_range_end": keys[-1],
            }
        return self.definitions.resolve_job_def(job).execute_in_process(
            instance=self.instance, tags=tags, raise_on_error=False, **options
        )


def cell(variant: str, batch_size: int) -> dg.MultiPartitionKey:
    return dg.MultiPartitionKey({"variant": variant, "batch_size": str(batch_size)})


@pytest.fixture(scope="session")
def installation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    # Not above: every run of pytest reads this file, also of tests that need no Dagster.
    from quant_assets.definitions import build_definitions

    root = tmp_path_factory.mktemp("installation")
    home, drop = root / "home", root / "drop"
    drop.mkdir()
    (root / "models.yaml").write_text(MODELS)
    (root / "variants.yaml").write_text(VARIANTS)
    (drop / "offers.csv").write_text(LISTINGS)
    tokenizer = tokenizer_model()
    make_model(home / "models" / "tiny-source", "llama", tokenizer)
    make_model(home / "models" / "tiny-source-2", "llama_tied", tokenizer)
    variables = {
        "QUANT_ASSETS_HOME": home,
        "QUANT_ASSETS_MODELS_FILE": root / "models.yaml",
        "QUANT_ASSETS_VARIANTS_FILE": root / "variants.yaml",
        "QUANT_ASSETS_LISTINGS_FOLDER": drop,
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, str(value))
        settings = Settings()
        with dagster_instance(settings) as instance:
            yield Installation(settings, build_definitions(settings), instance)


@pytest.fixture(scope="session")
def full_run(installation: Installation) -> Installation:
    """The installation after every job ran once."""
    jobs: list[tuple[str, tuple[str, ...]]] = [
        ("refresh_listings", ()),
        ("tiny_source", ()),
        ("tiny_artifacts", ("F16", "Q4_0")),
        ("tiny_2_source", ()),
        ("tiny_2_artifacts", ("F16",)),
        ("tiny_quality", ("f16",)),
        ("tiny_benchmarks", (cell("f16", 1), cell("f16", 4))),
        ("tiny_benchmarks", (cell("q8_0-kv-hybrid", 4),)),
        ("tiny_2_benchmarks", (cell("f16", 1),)),
        ("refresh_marts", ()),
    ]
    for job, keys in jobs:
        config = {"run_config": QUALITY} if job == "tiny_quality" else {}
        result = installation.run(job, *keys, **config)
        assert result.success, f"{job} {keys}"
    return installation._replace(first=installation.first_state())
