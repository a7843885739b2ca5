"""A worker session: the event handler and extra environment variables of a job's workers."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Final

from quant_assets.processes.protocol import Event

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


UNATTENDED: Final = WorkerSession()
"""No event handler and no extra variables."""
