"""The host: peaks of this machine's memory and processor."""

import dagster as dg

from quant_assets.assets.conventions import DEVICE_POOL, HOST_GROUP, OWNERS
from quant_assets.host.devices import available_physical_cores
from quant_assets.resources.failures import clear_failures
from quant_assets.resources.stores import DataRoot
from quant_assets.speed.host_peaks import measure_host_peaks


def build_host_peaks() -> dg.AssetsDefinition:
    """The asset that measures this machine's peak memory bandwidth and matrix throughput."""

    @dg.asset(
        key="host_peaks",
        group_name=HOST_GROUP,
        owners=OWNERS,
        kinds={"json"},
        pool=DEVICE_POOL,
        description=(
            "Memory bandwidth and dense matrix throughput of this machine. Measured runs relative "
            "to these peaks give the efficiency from which speeds on other hardware are estimated."
        ),
    )
    def host_peaks(data_root: DataRoot) -> dg.MaterializeResult[None]:
        with clear_failures():
            peaks = measure_host_peaks(data_root.settings.results, available_physical_cores())
        return dg.MaterializeResult(
            metadata={
                "processor": peaks.cpu_name or "unknown",
                "threads": peaks.threads,
                "memory bandwidth, reading (GB/s)": peaks.read_gb_s,
                "memory bandwidth, triad (GB/s)": peaks.triad_gb_s,
                "matrix product (GFLOP/s)": peaks.matmul_gflop_s,
                "contended": peaks.contended,
            }
        )

    return host_peaks
