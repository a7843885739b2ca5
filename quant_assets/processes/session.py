"""A worker session: the event handler and extra environment variables of a job's workers."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Final

from quant_assets.processes.protocol import Event, ProgressEvent

EventHandler = Callable[[Event], None]


@dataclass(frozen=True)
class WorkerSession:
    """Shared by all workers that a job starts.

    `on_event` receives every event in order, if set. `variables` extend those of
    `worker_variables`; they are read when a worker starts, so that a mapping can open a resource
    (Dagster Pipes) at that moment.
    """

    on_event: EventHandler | None = None
    variables: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))

    def with_defaults(self, variables: Mapping[str, str]) -> "WorkerSession":
        """This session with `variables` added, except where it sets them itself."""
        return replace(self, variables={**variables, **self.variables})

    def part(self, start: float, end: float) -> "WorkerSession":
        """This session for one of several workers, whose work is the job's from `start` to `end`.

        Both are fractions of the whole job, from 0 to 1.
        """
        report = self.on_event
        if report is None:
            return self

        def placed(event: Event) -> None:
            if isinstance(event, ProgressEvent) and event.job_fraction is not None:
                fraction = start + (end - start) * event.job_fraction
                event = event.model_copy(update={"job_fraction": fraction})
            report(event)

        return replace(self, on_event=placed)

    def progress(self, event: ProgressEvent) -> None:
        """Report progress that the caller itself makes, between workers."""
        if self.on_event is not None:
            self.on_event(event)


UNATTENDED: Final = WorkerSession()
"""No event handler and no extra variables."""
