"""An installation with a tiny model, a few listings and a Dagster instance of its own."""

from collections.abc import Iterator

import pytest

from quant_assets.definitions import build_definitions
from quant_assets.resources.instance import dagster_instance
from quant_assets.settings import Settings
from quant_assets_tests.gguf.tiny_models import make_model, tokenizer_model
from quant_assets_tests.graph.tiny_installation import (
    LISTINGS,
    MODELS,
    QUALITY,
    VARIANTS,
    Installation,
    cell,
)


@pytest.fixture(scope="session")
def installation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
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
