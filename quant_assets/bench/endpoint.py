"""Benchmarks of a running server with an OpenAI-compatible API (llama.cpp, vLLM, TensorRT-LLM).

A run sends `batch_size` streamed completions at once, from as many threads. The prompts are made
of words and differ in every request, so that no server answers from its prefix cache; the server's
own count of prompt tokens is what throughput is computed from.

The server is not trusted: an answer has a form and limits in time and bytes, and nothing is sent
anywhere else. Credentials in the URL (`http://user:password@host`, `?api_key=...`) go into requests
and nowhere else.
"""

import queue
import random
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from threading import Barrier
from typing import Any, NamedTuple, TypeVar
from urllib.parse import parse_qsl, unquote, urlsplit, urlunsplit

import requests
import urllib3
from pydantic import BaseModel, Field, TypeAdapter, ValidationError
from requests.auth import HTTPBasicAuth

from quant_assets.bench.cell import MeasuredCell
from quant_assets.bench.jobs import CellMeasurement, RunSample
from quant_assets.bench.record import RecordOrigin, make_record
from quant_assets.bench.settings import BenchSettings
from quant_assets.bench.subject import machine_lock
from quant_assets.errors import InputError, ResourceError
from quant_assets.record_files import TokenCount

_DATA = b"data:"
_DONE = b"[DONE]"
_BARRIER_S = 60.0
_SHORTEST_SECRET = 3  # replacing a letter would garble the message and so say what it is
_URL_IN_MESSAGE = re.compile(r"(?: for| with)? url: \S+")
# Short, frequent words: about one token each in every vocabulary.
_WORDS = (
    "time", "year", "people", "way", "day", "man", "thing", "woman", "life", "child", "world",
    "school", "state", "family", "student", "group", "country", "problem", "hand", "part",
    "place", "case", "week", "company", "system", "program", "question", "work", "night", "point",
)  # fmt: skip
_Answer = TypeVar("_Answer")


class EndpointLimits(NamedTuple):
    """What an answer may take: seconds to connect, between two pieces and in all, and bytes."""

    connect_s: float = 5.0
    silence_s: float = 600.0
    answer_s: float = 1800.0
    answer_bytes: int = 64 * 2**20


class _Model(BaseModel):
    id: str = Field(min_length=1, max_length=500)


class _Models(BaseModel):
    data: list[_Model] = Field(min_length=1)


class _Message(BaseModel):
    content: str | None = None


class _ChatChoice(BaseModel):
    message: _Message


class _ChatAnswer(BaseModel):
    choices: list[_ChatChoice] = Field(min_length=1)


class _Piece(BaseModel):
    text: str | None = None
    finish_reason: str | None = None

    @property
    def is_token(self) -> bool:
        """Whether it is a token, not only the reason for the end."""
        return bool(self.text) or self.finish_reason is None


class _Usage(BaseModel):
    prompt_tokens: TokenCount | None = None


class _Event(BaseModel):
    choices: list[_Piece] | None = None
    usage: _Usage | None = None
    error: Any = None


_EVENT = TypeAdapter(_Event)


class _Reply(NamedTuple):
    started: float
    arrivals: list[float]
    prompt_tokens: int | None


class Endpoint:
    """A server at `base_url` (with or without `/v1`), and the model it serves.

    The attribute `base_url` holds no credentials and no query. Raises `InputError` for a URL that
    is none, and `ResourceError` when no server answers as it should, here as in all methods.
    """

    def __init__(
        self, base_url: str, model: str | None = None, limits: EndpointLimits | None = None
    ) -> None:
        try:
            parts = urlsplit(base_url)
            host, port = parts.hostname, parts.port
        except ValueError:
            host = None
        if not host or parts.scheme not in ("http", "https"):
            # What stands before an @ or behind a ? may be a secret.
            shown = base_url.rpartition("@")[2].partition("?")[0]
            raise InputError(
                f"{shown!r} is no endpoint.",
                "An endpoint is an http or https URL.",
                "Give a URL such as http://127.0.0.1:8000.",
            )
        address = f"[{host}]" if ":" in host else host
        address += f":{port}" if port is not None else ""
        path = parts.path.rstrip("/").removesuffix("/v1")
        self.base_url = urlunsplit((parts.scheme, address, path, "", ""))
        self._auth = (
            HTTPBasicAuth(unquote(parts.username or ""), unquote(parts.password or ""))
            if parts.username or parts.password
            else None
        )
        self._query = parts.query
        self._secrets = _secrets(parts.password, parts.query)
        self._limits = limits or EndpointLimits()
        self.model = model or self._first_model()

    def _first_model(self) -> str:
        content = self._in_time(lambda: self._json("GET", "/v1/models", None))
        return self._parsed(TypeAdapter(_Models), content).data[0].id

    def chat(self, prompt: str, max_tokens: int) -> str:
        """A greedy answer through the server's chat template."""
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": prompt}],
            "temperature": 0.0,
            "max_tokens": max_tokens,
        }
        content = self._in_time(lambda: self._json("POST", "/v1/chat/completions", body))
        return self._parsed(TypeAdapter(_ChatAnswer), content).choices[0].message.content or ""

    def stream_all(self, prompts: Sequence[str], tokens: int) -> list[_Reply]:
        """Stream the completions of all prompts at once; note when each piece arrives."""
        barrier = Barrier(len(prompts))

        def ready() -> None:
            barrier.wait(_BARRIER_S)

        return self._all_in_time(
            [partial(self._stream, prompt, tokens, ready) for prompt in prompts]
        )

    def _stream(self, prompt: str, tokens: int, ready: Callable[[], None]) -> _Reply:
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
        ended = False
        with self._request("POST", "/v1/completions", body) as answer:
            for line in self._lines(answer):
                arrived = time.perf_counter()
                if not line.startswith(_DATA):
                    continue
                content = line.removeprefix(_DATA).strip()
                if content == _DONE:
                    ended = True
                    break
                event = self._parsed(_EVENT, content)
                if event.error is not None:
                    raise self._wrong(f"It reports an error: {str(event.error)[:500]}")
                pieces = event.choices or []
                if any(piece.is_token for piece in pieces):
                    arrivals.append(arrived)
                ended |= any(piece.finish_reason is not None for piece in pieces)
                if event.usage is not None:
                    prompt_tokens = event.usage.prompt_tokens
        if not ended:
            raise self._wrong("It closed the connection in the middle of an answer.")
        return _Reply(started, arrivals, prompt_tokens)

    def _request(self, method: str, path: str, body: object) -> requests.Response:
        """Send a request; its answer has a good status and its content is not read yet."""
        query = f"?{self._query}" if self._query else ""
        answer = requests.request(
            method,
            f"{self.base_url}{path}{query}",
            json=body,
            auth=self._auth,
            headers={"Accept-Encoding": "identity"},
            stream=True,
            # A redirect could lead credentials and prompts anywhere.
            allow_redirects=False,
            timeout=(self._limits.connect_s, self._limits.silence_s),
        )
        try:
            if answer.is_redirect:
                raise self._wrong("It redirects, which is not followed; give the final address.")
            if not answer.ok:
                raise self._wrong(f"It answers {answer.status_code} {answer.reason}.")
            if answer.headers.get("content-encoding", "identity").lower() != "identity":
                raise self._wrong("It compresses its answers, though that is declined.")
        except BaseException:
            answer.close()
            raise
        return answer

    def _json(self, method: str, path: str, body: object) -> bytes:
        with self._request(method, path, body) as answer:
            content = bytearray()
            for piece in answer.iter_content(1 << 16):
                content += piece
                self._check_size(len(content))
        return bytes(content)

    def _lines(self, answer: requests.Response) -> Iterator[bytes]:
        line = bytearray()
        size = 0
        # Small chunks: a larger buffer would hold the first token back.
        for piece in answer.iter_content(chunk_size=1):
            size += len(piece)
            self._check_size(size)
            line += piece
            if piece.endswith(b"\n"):
                yield from bytes(line).splitlines()
                line.clear()
        yield from bytes(line).splitlines()

    def _check_size(self, size: int) -> None:
        if size > self._limits.answer_bytes:
            raise self._wrong(f"An answer has more than {self._limits.answer_bytes:,} bytes.")

    def _in_time(self, work: Callable[[], _Answer]) -> _Answer:
        (answer,) = self._all_in_time([work])
        return answer

    def _all_in_time(self, works: Sequence[Callable[[], _Answer]]) -> list[_Answer]:
        """The answers of all `works`, done at once; the first error ends the waiting.

        The threads are daemons: a server that never ends its answer holds neither Ctrl-C nor the
        end of the process up.
        """
        done: queue.SimpleQueue[tuple[int, _Answer | None, Exception | None]] = queue.SimpleQueue()

        def run(number: int, work: Callable[[], _Answer]) -> None:
            try:
                done.put((number, work(), None))
            except Exception as error:
                done.put((number, None, error))

        for number, work in enumerate(works):
            threading.Thread(target=run, args=(number, work), daemon=True).start()
        deadline = time.monotonic() + self._limits.answer_s
        answers: dict[int, Any] = {}
        while len(answers) < len(works):
            try:
                number, answer, error = done.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                raise self._wrong(
                    f"An answer took more than {self._limits.answer_s:.0f} s."
                ) from None
            if error is not None:
                raise self._explained(error) from None
            answers[number] = answer
        return [answers[number] for number in range(len(works))]

    def _explained(self, error: Exception) -> Exception:
        if isinstance(
            error, requests.RequestException | urllib3.exceptions.HTTPError | ValueError | OSError
        ):
            said = _URL_IN_MESSAGE.sub("", str(error))
            return self._wrong(f"{type(error).__name__}: {said}")
        return error

    def _parsed(self, form: TypeAdapter[_Answer], content: bytes) -> _Answer:
        try:
            return form.validate_json(content)
        except ValidationError as error:
            (problem, *_) = error.errors(include_url=False, include_input=False)
            place = ".".join(map(str, problem["loc"])) or "the answer"
            raise self._wrong(f"{place}: {problem['msg']}") from None

    def _wrong(self, why: str) -> ResourceError:
        for secret in self._secrets:
            why = why.replace(secret, "<redacted>")
        return ResourceError(
            f"The endpoint {self.base_url} does not answer as it should.",
            why,
            "Start the server, and check the address and that it serves /v1/completions.",
        )


def _secrets(password: str | None, query: str) -> list[str]:
    """What must not be shown of a URL, as it is written and as it is meant; the longest first."""
    written = [password, query, *(value for _, value in parse_qsl(query))]
    known = {text for text in written if text}
    known |= {unquote(text) for text in known}
    return sorted((text for text in known if len(text) >= _SHORTEST_SECRET), key=len, reverse=True)


def _one_run(
    endpoint: Endpoint, batch_size: int, settings: BenchSettings, generator: random.Random
) -> tuple[RunSample, int | None]:
    """(the batch as one run, prompt tokens as the server counts them).

    The run's first token is there when every sequence has one; a step ends when all have the next.
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
    origin = RecordOrigin(
        model_name=endpoint.model,
        variant_name=name,
        variant=None,
        artifact_id=endpoint.base_url,
        backend="endpoint",
        threads=None,
    )
    counted_settings = settings.model_copy(update={"prompt_tokens": prompt_tokens})
    record = make_record(measurement, origin, counted_settings, batch_size)
    return MeasuredCell(record, samples)
