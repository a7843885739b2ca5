"""Benchmarks a running server: its batch sizes, and its obedience.

A run sends `batch_size` streamed completions at once, each from its own thread. Prompts are random
words, different in every request, so that no server answers from its prefix cache. Throughput is
computed from the server's own count of prompt tokens.
"""

import random
import time
from collections.abc import Callable
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path

from quant_assets.bench.cell import MeasuredCell
from quant_assets.bench.endpoint import Endpoint
from quant_assets.bench.jobs import CellMeasurement, RunSample
from quant_assets.bench.obedience.measurement import (
    MAX_TOKENS,
    ObedienceResult,
    check_answers,
)
from quant_assets.bench.obedience.prompts import load_prompts
from quant_assets.bench.record import BenchmarkRecord, RecordOrigin, make_record
from quant_assets.bench.results import ResultStore
from quant_assets.bench.settings import BenchSettings
from quant_assets.bench.subject import machine_lock
from quant_assets.errors import ResourceError
from quant_assets.processes.protocol import ProgressEvent
from quant_assets.processes.session import UNATTENDED, WorkerSession

ENDPOINT_VARIANT = "endpoint"
"""The variant name of endpoints in records."""
# Short, frequent words: about one token each in every vocabulary.
_WORDS = (
    "time", "year", "people", "way", "day", "man", "thing", "woman", "life", "child", "world",
    "school", "state", "family", "student", "group", "country", "problem", "hand", "part",
    "place", "case", "week", "company", "system", "program", "question", "work", "night", "point",
)  # fmt: skip


def _measured_run(
    endpoint: Endpoint, batch_size: int, settings: BenchSettings, generator: random.Random
) -> tuple[RunSample, int | None]:
    """(the batch as one run, the server's mean count of prompt tokens).

    The first token counts when every sequence has one; a step ends when all have the next.
    """
    prompts = [
        " ".join(generator.choices(_WORDS, k=settings.prompt_tokens)) for _ in range(batch_size)
    ]
    replies = endpoint.stream_all(prompts, settings.generated_tokens)
    if not all(reply.arrivals for reply in replies):
        raise ResourceError(
            f"The endpoint {endpoint.base_url} sent an empty answer.",
            "A streamed completion had no text at all.",
            "Check that the model can complete plain text.",
        )
    start = min(reply.started for reply in replies)
    steps = min(len(reply.arrivals) for reply in replies)
    ends = [max(reply.arrivals[step] for reply in replies) for step in range(steps)]
    last = max(reply.arrivals[-1] for reply in replies)
    counted = [reply.prompt_tokens for reply in replies if reply.prompt_tokens]
    sample = RunSample(
        time_to_first_token_ms=(ends[0] - start) * 1000,
        token_ms=[(after - before) * 1000 for before, after in pairwise(ends)],
        total_ms=(last - start) * 1000,
    )
    return sample, round(sum(counted) / len(counted)) if counted else None


def run_endpoint_cell(
    endpoint: Endpoint,
    batch_size: int,
    settings: BenchSettings,
    *,
    on_progress: Callable[[str, int, int], None] = lambda *_: None,
    locks: Path | None = None,
) -> MeasuredCell:
    """Measure one batch size on a running server. Memory and load time stay null.

    So do the host's conditions: the server's own work cannot be separated from other load.
    """
    generator = random.Random(batch_size)  # noqa: S311 - words of a prompt, no secret
    with machine_lock(locks):
        started = time.perf_counter()
        for done in range(settings.warmups):
            _measured_run(endpoint, batch_size, settings, generator)
            on_progress("warm-up", done + 1, settings.warmups)
        samples, counts = [], []
        for done in range(settings.runs):
            sample, prompt_tokens = _measured_run(endpoint, batch_size, settings, generator)
            samples.append(sample)
            counts.append(prompt_tokens)
            on_progress("runs", done + 1, settings.runs)
        command_duration_ms = (time.perf_counter() - started) * 1000
    counted = [count for count in counts if count is not None]
    prompt_tokens = round(sum(counted) / len(counted)) if counted else settings.prompt_tokens
    measurement = CellMeasurement(
        load_time_ms=None,
        samples=samples,
        peak_rss_bytes=None,
        conditions=None,
        library_versions={"requests": version("requests")},
        build_flags="",
        cpu_name=None,
        gpu_name=None,
        device="remote",
    )
    origin = RecordOrigin(
        model_name=endpoint.model,
        variant_name=ENDPOINT_VARIANT,
        variant=None,
        artifact_id=endpoint.base_url,
        backend="endpoint",
        threads=None,
    )
    counted_settings = settings.model_copy(update={"prompt_tokens": prompt_tokens})
    record = make_record(
        measurement, origin, counted_settings, batch_size, command_duration_ms=command_duration_ms
    )
    return MeasuredCell(record, samples)


def bench_endpoint(
    endpoint: Endpoint,
    settings: BenchSettings,
    results: ResultStore,
    *,
    prompts_folder: Path | None = None,
    session: WorkerSession = UNATTENDED,
) -> list[BenchmarkRecord]:
    """Benchmark a server at every batch size, and append a record for each.

    With `prompts_folder` its obedience is measured first. Raises `InputError` or `ResourceError`
    for a server that does not respond as expected.
    """

    def forward(step: str, done: int, total: int) -> None:
        session.progress(ProgressEvent(step=step, done=done, total=total, unit="runs"))

    obedience = _endpoint_obedience(endpoint, prompts_folder) if prompts_folder else None
    records = []
    for batch_size in settings.batch_sizes:
        cell = run_endpoint_cell(endpoint, batch_size, settings, on_progress=forward)
        record = cell.record.with_quality(obedience=obedience)
        records.append(results.append(record, cell.samples))
    return records


def _endpoint_obedience(endpoint: Endpoint, folder: Path) -> ObedienceResult:
    prompts = load_prompts(folder)
    return check_answers(
        prompts,
        [endpoint.chat(prompt.prompt, MAX_TOKENS) for prompt in prompts],
        variant=ENDPOINT_VARIANT,
        model=endpoint.model,
        artifact_id=endpoint.base_url,
    )
