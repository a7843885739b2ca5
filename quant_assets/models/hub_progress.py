"""Progress of downloads from the hub, in bytes, as events of a session."""

import io
import threading
from collections.abc import Iterable
from typing import Any

from huggingface_hub.utils.tqdm import tqdm

from quant_assets.processes.protocol import ProgressEvent
from quant_assets.processes.session import WorkerSession

_BYTES = "B"


class _Fetched:
    """Bytes that the bars of one download report, as one step."""

    def __init__(self, step: str, total: int | None, session: WorkerSession) -> None:
        self._step = step
        self._total = total
        self._session = session
        self._lock = threading.Lock()
        self._done = 0.0

    def note(self, done: float, total: float) -> None:
        """Report `done` bytes; several bars may count the same bytes, and the furthest counts."""
        with self._lock:
            known = max(total, self._total or 0)
            if done <= self._done or known <= 0:
                return
            self._done = min(done, known)
            self._session.progress(
                ProgressEvent(
                    step=self._step,
                    done=self._done,
                    total=known,
                    unit="bytes",
                    job_fraction=self._done / known,
                )
            )


def download_bar(step: str, session: WorkerSession, total: int | None = None) -> type[tqdm]:
    """A bar for the hub's client that draws nothing and reports bytes to `session`.

    `total` is the number of bytes to download, if it is known beforehand: the client learns the
    sizes of files only as it gets to them.
    """
    fetched = _Fetched(step, total, session)

    class Bar(tqdm):
        """Counts; bars that do not count bytes are ignored."""

        def __init__(self, *arguments: Iterable[Any], **options: Any) -> None:
            options.pop("name", None)
            super().__init__(*arguments, **{**options, "file": io.StringIO(), "disable": False})  # type: ignore[no-untyped-call]

        def display(self, *_: Any, **__: Any) -> bool:
            """Report in place of drawing."""
            if self.unit == _BYTES:
                fetched.note(self.n, self.total or 0)
            return True

    return Bar
