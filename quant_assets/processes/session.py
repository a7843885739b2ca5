"""A worker session: who follows the workers of one piece of work, and what they are told besides."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Final

from quant_assets.processes.protocol import Event

EventHandler = Callable[[Event], None]


@dataclass(frozen=True)
class WorkerSession:
    """Given to every worker that a piece of work starts.

    `on_event` sees every event in order; None: nobody follows. `variables` are environment
    variables beyond those of `worker_variables`; they are read when a worker starts, so that a
    mapping may open something (Dagster Pipes) at that moment.
    """

    on_event: EventHandler | None = None
    variables: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))

    def with_defaults(self, variables: Mapping[str, str]) -> "WorkerSession":
        """The same session with `variables` below its own."""
        return replace(self, variables={**variables, **self.variables})


UNATTENDED: Final = WorkerSession()
"""Nobody follows, and there is nothing besides."""
