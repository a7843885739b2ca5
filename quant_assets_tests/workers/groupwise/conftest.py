"""A tiny trained model, so that bad rounding shows in its perplexity."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest

from quant_assets.models.source import SourceModel, resolve_source
from quant_assets.settings import PROJECT_ROOT, Settings, get_settings
from quant_assets.texts.calibration import CalibrationText, default_calibration_text
from quant_assets.texts.evaluation import EvaluationText, evaluation_text

SAMPLES, SEQUENCE_LENGTH = 64, 64
CALIBRATION = {"samples": SAMPLES, "sequence_length": SEQUENCE_LENGTH}

MODELS = """
models:
  - {name: tiny, source: models/tiny, gguf_levels: [F16]}
"""
VARIANTS = """
settings: {batch_sizes: [1], warmups: 0, runs: 2, prompt_tokens: 8, generated_tokens: 4}
variants:
  f16: {format: gguf, level: F16}
  gptq-4bit-g32: {format: gptq, level: 4bit-g32}
  awq-4bit-g32: {format: awq, level: 4bit-g32}
"""


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("installation") / "home"


@pytest.fixture(scope="session")
def trained(home: Path) -> Path:
    """A 3-layer Llama, trained for a few seconds in its own process."""
    folder = home / "models" / "tiny"
    done = subprocess.run(
        [sys.executable, "-m", "quant_assets_tests.models.trained_model", folder],
        capture_output=True,
        text=True,
        cwd=PROJECT_ROOT,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.fixture(scope="session")
def settings(home: Path) -> Iterator[Settings]:
    """An offline installation whose graph builds GPTQ and AWQ artifacts."""
    (home.parent / "models.yaml").write_text(MODELS)
    (home.parent / "variants.yaml").write_text(VARIANTS)
    variables = {
        "QUANT_ASSETS_HOME": str(home),
        "QUANT_ASSETS_MODELS_FILE": str(home.parent / "models.yaml"),
        "QUANT_ASSETS_VARIANTS_FILE": str(home.parent / "variants.yaml"),
        "HF_HUB_OFFLINE": "1",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        get_settings.cache_clear()
        yield get_settings()
    get_settings.cache_clear()


@pytest.fixture(scope="session")
def source(trained: Path, settings: Settings) -> SourceModel:
    return resolve_source(str(trained), settings)


@pytest.fixture(scope="session")
def calibration(settings: Settings) -> CalibrationText:
    """The second half of Python's reference; the model was trained on its beginning."""
    return default_calibration_text(settings.cache)


@pytest.fixture(scope="session")
def text(settings: Settings) -> EvaluationText:
    return evaluation_text("python-reference", settings.cache)


@pytest.fixture(scope="session")
def installation(
    trained: Path, settings: Settings
) -> Iterator[tuple[dg.Definitions, dg.DagsterInstance]]:
    """(definitions, instance) after the jobs that build all artifacts."""
    from quant_assets.definitions import build_definitions
    from quant_assets.resources.instance import dagster_instance

    with dagster_instance(settings) as instance:
        definitions = build_definitions(settings)
        for job, key, config in (
            ("tiny_artifacts", "F16", {}),
            ("tiny_gptq", "gptq-4bit-g32", {"tiny__gptq_artifacts": CALIBRATION}),
            ("tiny_awq", "awq-4bit-g32", {"tiny__awq_artifacts": CALIBRATION}),
        ):
            result = definitions.resolve_job_def(job).execute_in_process(
                instance=instance,
                partition_key=key,
                run_config={"ops": {name: {"config": values} for name, values in config.items()}},
                raise_on_error=False,
            )
            assert result.success, job
        yield definitions, instance
