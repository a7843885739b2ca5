"""Benchmarks of a running server with an OpenAI-compatible API (llama.cpp, vLLM, TensorRT-LLM).

A run sends `batch_size` streamed completions at once, from as many threads. The prompts are made
of words and differ in every request, so that no server answers from its prefix cache; the server's
own count of prompt tokens is what throughput is computed from.
"""

import json
import random
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from threading import Barrier
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import requests

from quant_assets.bench.cell import MeasuredCell, machine_lock
from quant_assets.bench.jobs import CellMeasurement, RunSample
from quant_assets.bench.record import make_record
from quant_assets.bench.settings import BenchSettings
from quant_assets.errors import InputError, ResourceError

_TIMEOUT_S = (5.0, 600.0)  # to connect, and between two pieces of an answer
_DATA = b"data:"
_DONE = b"[DONE]"
# Short, frequent words: about one token each in every vocabulary.
_WORDS = (
    "time", "year", "people", "way", "day", "man", "thing", "woman", "life", "child", "world",
    "school", "state", "family", "student", "group", "country", "problem", "hand", "part",
    "place", "case", "week", "company", "system", "program", "question", "work", "night", "point",
)  # fmt: skip


class _Reply(NamedTuple):
    started: float
    arrivals: list[float]
    prompt_tokens: int | None


class Endpoint:
    """A server at `base_url` (with or without `/v1`), and the model it serves.

    Raises `InputError` for a URL that is none, and `ResourceError` when no server answers.
    """

    def __init__(self, base_url: str, model: str | None = None) -> None:
        if urlsplit(base_url).scheme not in ("http", "https"):
            raise InputError(
                f"{base_url!r} is no endpoint.",
                "An endpoint is an http or https URL.",
                "Give a URL such as http://127.0.0.1:8000.",
            )
        self.base_url = base_url.rstrip("/").removesuffix("/v1")
        self.model = model or self._first_model()

    def _first_model(self) -> str:
        try:
            answer = requests.get(f"{self.base_url}/v1/models", timeout=_TIMEOUT_S)
            answer.raise_for_status()
            return str(answer.json()["data"][0]["id"])
        except (requests.RequestException, ValueError, KeyError, IndexError) as error:
            raise _unreachable(self.base_url, error) from error

    def chat(self, prompt: str, max_tokens: int) -> str:
        """A greedy answer through the server's chat template."""
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": prompt}],
            "temperature": 0.0,
            "max_tokens": max_tokens,
        }
        try:
            answer = requests.post(
                f"{self.base_url}/v1/chat/completions", json=body, timeout=_TIMEOUT_S
            )
            answer.raise_for_status()
            return str(answer.json()["choices"][0]["message"]["content"] or "")
        except (requests.RequestException, ValueError, KeyError, IndexError) as error:
            raise _unreachable(self.base_url, error) from error

    def stream(self, prompt: str, tokens: int, ready: Callable[[], object]) -> _Reply:
        """Stream a completion; note when each piece arrives. `ready` is called before the send."""
        body = {
            "model": self.model,
            "prompt": prompt,
            "max_tokens": tokens,
            "temperature": 0.0,
            "stream": True,
            "stream_options": {"include_usage": True},
            # vLLM: go on to the asked length; others ignore it.
            "ignore_eos": True,
        }
        ready()
        started = time.perf_counter()
        arrivals: list[float] = []
        prompt_tokens: int | None = None
        try:
            with requests.post(
                f"{self.base_url}/v1/completions", json=body, stream=True, timeout=_TIMEOUT_S
            ) as answer:
                answer.raise_for_status()
                for event in _events(answer):
                    if any(map(_is_token, event.get("choices", []))):
                        arrivals.append(time.perf_counter())
                    usage = event.get("usage")
                    if usage:
                        prompt_tokens = usage.get("prompt_tokens")
        except (requests.RequestException, ValueError) as error:
            raise _unreachable(self.base_url, error) from error
        return _Reply(started, arrivals, prompt_tokens)


def _is_token(choice: dict[str, Any]) -> bool:
    """Whether a piece of the stream is a token, not only the reason for the end."""
    return bool(choice.get("text")) or choice.get("finish_reason") is None


def _events(answer: requests.Response) -> Iterator[dict[str, Any]]:
    """The JSON events of a stream of server-sent events."""
    # Small chunks: a larger buffer would hold the first token back.
    for line in answer.iter_lines(chunk_size=1):
        if line.startswith(_DATA):
            content = line.removeprefix(_DATA).strip()
            if content == _DONE:
                return
            yield json.loads(content)


def _unreachable(base_url: str, error: Exception) -> ResourceError:
    return ResourceError(
        f"The endpoint {base_url} does not answer as it should.",
        f"{type(error).__name__}: {error}",
        "Start the server, and check the address and that it serves /v1/completions.",
    )


def _one_run(
    endpoint: Endpoint, batch_size: int, settings: BenchSettings, generator: random.Random
) -> tuple[RunSample, int | None]:
    """(the batch as one run, prompt tokens as the server counts them).

    The run's first token is there when every sequence has one; a step ends when all have the next.
    """
    prompts = [
        " ".join(generator.choices(_WORDS, k=settings.prompt_tokens)) for _ in range(batch_size)
    ]
    barrier = Barrier(batch_size)
    with ThreadPoolExecutor(batch_size) as pool:
        replies = list(
            pool.map(
                lambda prompt: endpoint.stream(prompt, settings.generated_tokens, barrier.wait),
                prompts,
            )
        )
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
    name: str = "endpoint",
    on_progress: Callable[[str, int, int], None] = lambda *_: None,
    locks: Path | None = None,
) -> MeasuredCell:
    """Measure one batch size on a running server. Memory and load time stay null.

    The host's conditions stay null too: the server's own work is not to be told from others'.
    """
    generator = random.Random(batch_size)  # noqa: S311 - words of a prompt, no secret
    with machine_lock(locks):
        for done in range(settings.warmups):
            _one_run(endpoint, batch_size, settings, generator)
            on_progress("warm-up", done + 1, settings.warmups)
        samples, counts = [], []
        for done in range(settings.runs):
            sample, prompt_tokens = _one_run(endpoint, batch_size, settings, generator)
            samples.append(sample)
            counts.append(prompt_tokens)
            on_progress("runs", done + 1, settings.runs)
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
    record = make_record(
        measurement,
        settings.model_copy(update={"prompt_tokens": prompt_tokens}),
        variant_name=name,
        variant=None,
        backend="endpoint",
        batch_size=batch_size,
        model_name=endpoint.model,
        artifact_id=endpoint.base_url,
        threads=None,
    )
    return MeasuredCell(record, samples)
