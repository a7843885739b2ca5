"""The runs that were measured here, as observations of the speed model."""

from dataclasses import dataclass
from typing import Final

import duckdb

from quant_assets.gpus.registry import GpuRegistry
from quant_assets.speed.model import BACKEND_OF_VENDOR
from quant_assets.speed.needs import ServingNeeds
from quant_assets.speed.workload import Observation

_RUNS: Final = """
select
    runs.record_id,
    runs.gpu,
    runs.decode_tokens_per_s,
    runs.prefill_tokens_per_s,
    needs
from raw.benchmark_runs as runs
inner join raw.serving_needs as needs
    on
        runs.model = needs.model
        and runs.variant = needs.variant
        and runs.backend = needs.backend
        and runs.batch_size = needs.batch_size
        and runs.prompt_tokens = needs.prompt_tokens
        and runs.generated_tokens = needs.context_tokens - needs.prompt_tokens
        and needs.source = 'run'
        and needs.weight_type is not null
where not runs.contended and runs.device <> 'cpu' and runs.gpu is not null
qualify row_number() over (partition by runs.record_id order by runs."timestamp" desc) = 1
order by runs."timestamp", runs.record_id
"""


@dataclass(frozen=True, slots=True)
class OwnRun:
    """One phase of a benchmark record; `depth_tokens` is the mean depth of the KV cache."""

    record_id: str
    observation: Observation
    depth_tokens: float


def own_runs(connection: duckdb.DuckDBPyConnection, registry: GpuRegistry) -> list[OwnRun]:
    """Decoding and prefill of every uncontended run on a GPU of the registry, oldest first.

    From `raw.benchmark_runs`, with the work of each run from `raw.serving_needs`. What a run did not
    measure is absent.
    """
    runs = []
    for record_id, gpu_name, decode, prefill, fields in connection.execute(_RUNS).fetchall():
        gpu = registry.by_name.get(gpu_name)
        if gpu is None:
            continue
        needs = ServingNeeds.model_validate(fields)
        backend = BACKEND_OF_VENDOR[gpu.vendor]
        middle = (needs.prompt_tokens + needs.context_tokens) / 2
        for tokens_per_s, workload, depth in (
            (decode, needs.decode_workload, middle),
            (prefill, needs.prefill_workload, needs.prompt_tokens / 2),
        ):
            if tokens_per_s is not None and tokens_per_s > 0:
                observation = Observation(gpu_name, workload(backend), tokens_per_s)
                runs.append(OwnRun(record_id, observation, depth))
    return runs
