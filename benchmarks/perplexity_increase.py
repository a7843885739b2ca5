"""SC-002: the perplexity of the standard levels over F16, on every real model at hand.

The increase has the standard error of paired tokens. What other projects published for models of 7B
to 70B stands beside it (`data/published_perplexity.yaml`).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import yaml
from criterion import DEMANDS, Criterion, Row
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from real_models import RealModel, float_models, quantized

from quant_assets.bench.jobs import QualityJob, QualityMeasurement
from quant_assets.errors import InputError
from quant_assets.processes.supervisor import run_worker
from quant_assets.settings import Settings
from quant_assets.texts.evaluation import WINDOW_TOKENS, EvaluationText

STANDARD_LEVELS: Final = ("Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M")
BASELINE: Final = "F16"
LIMIT_PERCENT: Final = 5.0
INCREASE: Final = "increase (%)"


class PublishedPerplexity(BaseModel):
    """Published perplexities of one model: of F16, and of some levels."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    params_billions: float = Field(gt=0)
    source: str = Field(pattern=r"^https://")
    f16: float = Field(gt=1)
    levels: dict[str, float]

    def increase_percent(self, level: str) -> float:
        """How far the level's perplexity is above that of F16, in percent."""
        return 100 * (self.levels[level] / self.f16 - 1)


def published_perplexities(data: Path) -> list[PublishedPerplexity]:
    """The published figures, smallest model first; raises `InputError` for an invalid file."""
    file = data / "published_perplexity.yaml"
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
        models = TypeAdapter(list[PublishedPerplexity]).validate_python(content)
    except (OSError, yaml.YAMLError, ValidationError) as error:
        raise InputError(
            f"The file {file} cannot be used.", f"{error}.", "Restore the original file."
        ) from error
    return sorted(models, key=lambda model: model.params_billions)


def measure_perplexity_increase(
    folder: Path,
    models: Sequence[str],
    text: EvaluationText,
    *,
    windows: int,
    threads: int,
    settings: Settings,
) -> Criterion:
    """Perplexity of `models` at the standard levels over F16, on `windows` windows of the text.

    Files are made in `folder`, one level at a time. Raises `InputError` for a model that cannot be
    used, before anything is measured.
    """
    published = published_perplexities(settings.data)
    local = settings.model_copy(update={"home": folder / "home"})
    rows: list[Row] = []
    for model in float_models(models, local):
        rows += _increases(model, folder, text, windows, threads)
    return criterion(
        rows,
        published,
        f"{windows} windows of {WINDOW_TOKENS} tokens of {text.name}, the second half of each "
        f"scored; against the {BASELINE} file of the same weights; error of paired tokens",
    )


def _increases(
    model: RealModel, folder: Path, text: EvaluationText, windows: int, threads: int
) -> list[Row]:
    baseline = folder / "baseline.kld"
    first = quantized(model, BASELINE, folder, threads)
    job = QualityJob(
        model_path=str(first),
        format="gguf",
        text_path=str(text.path),
        save_baseline_path=str(baseline),
        context=WINDOW_TOKENS,
        windows=windows,
        threads=threads,
        device="cpu",
    )
    run_worker("llama_cpp.quality", job, QualityMeasurement)
    first.unlink()
    rows: list[Row] = []
    for level in STANDARD_LEVELS:
        file = quantized(model, level, folder, threads)
        job = QualityJob(
            model_path=str(file),
            format="gguf",
            baseline_path=str(baseline),
            context=WINDOW_TOKENS,
            threads=threads,
            device="cpu",
        )
        rows.append(_row(model, level, run_worker("llama_cpp.quality", job, QualityMeasurement)))
        file.unlink()
    baseline.unlink()
    return rows


def _row(model: RealModel, level: str, measured: QualityMeasurement) -> Row:
    ratio, error = measured.perplexity_ratio, measured.perplexity_ratio_standard_error
    assert ratio is not None and error is not None, "measured against a baseline"
    increase = 100 * (ratio - 1)
    return {
        "model": model.source.name,
        "parameters (10^9)": model.n_parameters / 1e9,
        "level": level,
        f"perplexity of {BASELINE}": measured.baseline_perplexity,
        "perplexity": measured.perplexity,
        INCREASE: increase,
        "standard error (%)": 100 * error,
        "below 5 %": increase < LIMIT_PERCENT,
        "weights or source": model.source.provenance,
    }


def criterion(rows: list[Row], published: Sequence[PublishedPerplexity], how: str) -> Criterion:
    """The criterion from the rows measured here; published rows stand below them.

    It is met when every measured increase is below the limit.
    """
    over = [row for row in rows if not row["below 5 %"]]
    said = "; ".join(
        f"{row['model']} ({row['parameters (10^9)']:.2f}B) at {row['level']} "
        f"{row[INCREASE]:+.2f} ± {row['standard error (%)']:.2f} %"
        for row in over or [row for row in rows if row["level"] == STANDARD_LEVELS[-1]]
    )
    quoted = [model.increase_percent("Q4_K_M") for model in published]
    sizes = [model.params_billions for model in published]
    others = (
        f"; published, not measured here: Q4_K_M of {min(sizes):.0f}B to {max(sizes):.0f}B "
        f"{min(quoted):+.1f} to {max(quoted):+.1f} %"
    )
    measured = f"over 5 %: {said}; the others below" if over else f"all below 5 %: {said}"
    return Criterion(
        id="SC-002",
        demand=DEMANDS["SC-002"],
        measured=measured + others,
        how=how,
        met=not over,
        details=[*rows, *(_published_row(model, level) for model in published for level in model.levels)],
        notes=[
            "Small models lose more to quantization than large ones. Rows with an address are "
            "published figures of llama.cpp, measured by its authors.",
        ],
    )  # fmt: skip


def _published_row(model: PublishedPerplexity, level: str) -> Row:
    increase = model.increase_percent(level)
    return {
        "model": f"{model.model} (published)",
        "parameters (10^9)": model.params_billions,
        "level": level,
        f"perplexity of {BASELINE}": model.f16,
        "perplexity": model.levels[level],
        INCREASE: increase,
        "standard error (%)": None,
        "below 5 %": increase < LIMIT_PERCENT,
        "weights or source": model.source,
    }
