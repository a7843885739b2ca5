"""The host: peaks of this machine's memory and processor."""

import datetime

import dagster as dg

from quant_assets.assets.conventions import DEVICE_POOL, HOST_GROUP, OWNERS
from quant_assets.host.devices import available_physical_cores
from quant_assets.resources.failures import clear_failures
from quant_assets.resources.stores import DataRoot
from quant_assets.speed.host_peaks import ATTEMPTS, RecordedPeaks, measure_host_peaks

PEAKS_UNCONTENDED = "peaks_are_uncontended"


def build_host_peaks() -> dg.AssetsDefinition:
    """The asset that measures this machine's peak memory bandwidth and matrix throughput."""

    @dg.asset(
        key="host_peaks",
        group_name=HOST_GROUP,
        owners=OWNERS,
        kinds={"json"},
        pool=DEVICE_POOL,
        description=(
            "Memory bandwidth and dense matrix throughput of this machine. The marts state measured "
            "runs as a share of the roofline that follows from these peaks. "
            "Measured again while other load contends; contended peaks are lower bounds."
        ),
        check_specs=[
            dg.AssetCheckSpec(
                PEAKS_UNCONTENDED,
                asset="host_peaks",
                description="No other load disturbed the measurement of the peaks that serve.",
            )
        ],
    )
    def host_peaks(context: dg.AssetExecutionContext, data_root: DataRoot) -> dg.MaterializeResult:  # type: ignore[type-arg]  # Dagster knows the bare class only here
        started = datetime.datetime.now(datetime.UTC)
        with clear_failures():
            peaks = measure_host_peaks(data_root.settings.results, available_physical_cores())
        note = _note(peaks, started)
        if note:
            context.log.warning(note)
        return dg.MaterializeResult(
            check_results=[
                dg.AssetCheckResult(
                    check_name=PEAKS_UNCONTENDED,
                    passed=not peaks.contended,
                    severity=dg.AssetCheckSeverity.WARN,
                    description=note,
                )
            ],
            metadata={
                "processor": peaks.cpu_name or "unknown",
                "threads": peaks.threads,
                "memory bandwidth, reading (GB/s)": peaks.read_gb_s,
                "memory bandwidth, triad (GB/s)": peaks.triad_gb_s,
                "matrix product (GFLOP/s)": peaks.matmul_gflop_s,
                "contended": peaks.contended,
                "attempts": peaks.attempts,
                "measured at": peaks.measured_at.isoformat(timespec="seconds"),
                "host": peaks.host_id or "unknown",
                **({"note": note} if note else {}),
            },
        )

    return host_peaks


def _note(peaks: RecordedPeaks, started: datetime.datetime) -> str | None:
    """What other load did to the measurement, if anything."""
    if peaks.measured_at < started:
        return (
            f"Other load disturbed all {ATTEMPTS} measurements, so the uncontended peaks of "
            f"{peaks.measured_at:%Y-%m-%d %H:%M} UTC still serve."
        )
    if peaks.contended:
        return (
            f"Other load disturbed all {ATTEMPTS} measurements, and there are no earlier ones of "
            "this processor and thread count. The highest serve as lower bounds of the peaks; "
            "measure again when the machine is quiet."
        )
    return None
