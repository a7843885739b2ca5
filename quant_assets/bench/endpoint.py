"""Client of a server with an OpenAI-compatible API (llama.cpp, vLLM, TensorRT-LLM).

The server is not trusted: answers are validated and limited in time and bytes, and redirects are
not followed. Credentials in the URL (`http://user:password@host`, `?api_key=...`) go into requests
and nowhere else.
"""

import queue
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from threading import Barrier
from typing import Any, NamedTuple, TypeVar
from urllib.parse import parse_qsl, unquote, urlsplit, urlunsplit

import requests
import urllib3
from pydantic import BaseModel, Field, TypeAdapter, ValidationError
from requests.auth import HTTPBasicAuth

from quant_assets.errors import InputError, ResourceError
from quant_assets.record_files import TokenCount

_DATA = b"data:"
_DONE = b"[DONE]"
_BARRIER_S = 60.0
_SHORTEST_SECRET = 3  # masking shorter text would garble the message and thereby reveal it
_URL_IN_MESSAGE = re.compile(r"(?: for| with)? url: \S+")
_Answer = TypeVar("_Answer")


class EndpointLimits(NamedTuple):
    """Limits of one response: seconds to connect, of silence and in total; bytes."""

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


class _CompletionChoice(BaseModel):
    text: str | None = None
    finish_reason: str | None = None

    @property
    def is_token(self) -> bool:
        """Whether it carries a token, not just the finish reason."""
        return bool(self.text) or self.finish_reason is None


class _Usage(BaseModel):
    prompt_tokens: TokenCount | None = None


class _Event(BaseModel):
    choices: list[_CompletionChoice] | None = None
    usage: _Usage | None = None
    error: Any = None


_EVENT = TypeAdapter(_Event)


class StreamedReply(NamedTuple):
    """When a streamed completion was sent and its tokens arrived, in seconds of one clock.

    `prompt_tokens` is the server's own count, null when it sends none.
    """

    started: float
    arrivals: list[float]
    prompt_tokens: int | None


class Endpoint:
    """A server at `base_url` (with or without `/v1`), and the model it serves.

    The attribute `base_url` holds no credentials and no query. Raises `InputError` for an invalid
    URL. The constructor and all methods raise `ResourceError` for an invalid response or none.
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
            # The text before an @ or after a ? may be a secret.
            shown = base_url.rpartition("@")[2].partition("?")[0]
            raise InputError(
                f"{shown!r} is not an endpoint.",
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
        content = self._in_time(lambda: self._content("GET", "/v1/models", None))
        return self._parsed(TypeAdapter(_Models), content).data[0].id

    def chat(self, prompt: str, max_tokens: int) -> str:
        """A greedy answer through the server's chat template."""
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": prompt}],
            "temperature": 0.0,
            "max_tokens": max_tokens,
        }
        content = self._in_time(lambda: self._content("POST", "/v1/chat/completions", body))
        return self._parsed(TypeAdapter(_ChatAnswer), content).choices[0].message.content or ""

    def stream_all(self, prompts: Sequence[str], tokens: int) -> list[StreamedReply]:
        """Stream the completions of all prompts concurrently and time their tokens."""
        barrier = Barrier(len(prompts))

        def ready() -> None:
            barrier.wait(_BARRIER_S)

        return self._all_in_time(
            [partial(self._stream, prompt, tokens, ready) for prompt in prompts]
        )

    def _stream(self, prompt: str, tokens: int, ready: Callable[[], None]) -> StreamedReply:
        body = {
            "model": self.model,
            "prompt": prompt,
            "max_tokens": tokens,
            "temperature": 0.0,
            "stream": True,
            "stream_options": {"include_usage": True},
            # vLLM: generate to the requested length; others ignore it.
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
                    raise self._bad_response(f"It reports an error: {str(event.error)[:500]}")
                choices = event.choices or []
                if any(choice.is_token for choice in choices):
                    arrivals.append(arrived)
                ended |= any(choice.finish_reason is not None for choice in choices)
                if event.usage is not None:
                    prompt_tokens = event.usage.prompt_tokens
        if not ended:
            raise self._bad_response("It closed the connection in the middle of an answer.")
        return StreamedReply(started, arrivals, prompt_tokens)

    def _request(self, method: str, path: str, body: object) -> requests.Response:
        """The response to a request, with a success status and its content unread."""
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
                raise self._bad_response(
                    "It redirects, and redirects are not followed; give the final address."
                )
            if not answer.ok:
                raise self._bad_response(f"It answers {answer.status_code} {answer.reason}.")
            if answer.headers.get("content-encoding", "identity").lower() != "identity":
                raise self._bad_response(
                    "It compresses its responses although the request declines that."
                )
        except BaseException:
            answer.close()
            raise
        return answer

    def _content(self, method: str, path: str, body: object) -> bytes:
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
            raise self._bad_response(
                f"An answer has more than {self._limits.answer_bytes:,} bytes."
            )

    def _in_time(self, call: Callable[[], _Answer]) -> _Answer:
        (answer,) = self._all_in_time([call])
        return answer

    def _all_in_time(self, calls: Sequence[Callable[[], _Answer]]) -> list[_Answer]:
        """The results of all `calls`, run concurrently; the first error ends the wait.

        The threads are daemons, so that a server that never finishes its response blocks neither
        Ctrl-C nor the end of the process.
        """
        done: queue.SimpleQueue[tuple[int, _Answer | None, Exception | None]] = queue.SimpleQueue()

        def run(number: int, call: Callable[[], _Answer]) -> None:
            try:
                done.put((number, call(), None))
            except Exception as error:
                done.put((number, None, error))

        for number, call in enumerate(calls):
            threading.Thread(target=run, args=(number, call), daemon=True).start()
        deadline = time.monotonic() + self._limits.answer_s
        answers: dict[int, Any] = {}
        while len(answers) < len(calls):
            try:
                number, answer, error = done.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                raise self._bad_response(
                    f"An answer took more than {self._limits.answer_s:.0f} s."
                ) from None
            if error is not None:
                raise self._explained(error) from None
            answers[number] = answer
        return [answers[number] for number in range(len(calls))]

    def _explained(self, error: Exception) -> Exception:
        if isinstance(
            error, requests.RequestException | urllib3.exceptions.HTTPError | ValueError | OSError
        ):
            message = _URL_IN_MESSAGE.sub("", str(error))
            return self._bad_response(f"{type(error).__name__}: {message}")
        return error

    def _parsed(self, form: TypeAdapter[_Answer], content: bytes) -> _Answer:
        try:
            return form.validate_json(content)
        except ValidationError as error:
            (problem, *_) = error.errors(include_url=False, include_input=False)
            place = ".".join(map(str, problem["loc"])) or "the answer"
            raise self._bad_response(f"{place}: {problem['msg']}") from None

    def _bad_response(self, why: str) -> ResourceError:
        for secret in self._secrets:
            why = why.replace(secret, "<redacted>")
        return ResourceError(
            f"The endpoint {self.base_url} does not respond as expected.",
            why,
            "Start the server, and check the address and that it serves /v1/completions.",
        )


def _secrets(password: str | None, query: str) -> list[str]:
    """The secrets of a URL, both percent-encoded and decoded, the longest first."""
    written = [password, query, *(value for _, value in parse_qsl(query))]
    known = {text for text in written if text}
    known |= {unquote(text) for text in known}
    return sorted((text for text in known if len(text) >= _SHORTEST_SECRET), key=len, reverse=True)
