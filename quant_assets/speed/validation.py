"""Validates the speed model: every run is predicted from the other runs."""

import duckdb
from pydantic import BaseModel

MAX_MEDIAN_ERROR = 0.5
"""The median prediction error allowed: levels and batch sizes differ that much."""
MAX_EFFICIENCY = 1.5
"""A higher share of the roofline means that the processor's peaks are wrong."""


class SpeedModelCheck(BaseModel):
    """How well the model predicts its measured points.

    Errors are shares of the measured decoding throughput. `predicted_points` have at least one
    other run of the same backend on the same kind of processor. Null: no run could be predicted.
    """

    points: int
    predicted_points: int
    median_error: float | None
    worst_error: float | None
    highest_efficiency: float | None
    problems: list[str]

    @property
    def passed(self) -> bool:
        """No measured point contradicts the model; also true without any points."""
        return not self.problems


def check_speed_model(connection: duckdb.DuckDBPyConnection) -> SpeedModelCheck:
    """Predict each uncontended run by the median efficiency of the others, and compare."""
    ((points, predicted, median_error, worst_error, highest),) = connection.execute(
        """
        with others as (
            select mine.record_id,
                any_value(mine.decode_efficiency) as measured,
                median(other.decode_efficiency) as predicted
            from intermediate.int_speed_points as mine
            left join intermediate.int_speed_points as other
                on mine.backend = other.backend
                and mine.processor_kind = other.processor_kind
                and mine.record_id <> other.record_id
            group by mine.record_id
        )
        select count(*), count(predicted), median(abs(predicted / measured - 1)),
            max(abs(predicted / measured - 1)), max(measured)
        from others
        """
    ).fetchall()
    problems = []
    if median_error is not None and median_error > MAX_MEDIAN_ERROR:
        problems.append(
            f"The median prediction error is {median_error:.0%}; {MAX_MEDIAN_ERROR:.0%} is allowed."
        )
    if highest is not None and highest > MAX_EFFICIENCY:
        problems.append(f"A run reached {highest:.2f} of the roofline; its peaks cannot be right.")
    return SpeedModelCheck(
        points=points,
        predicted_points=predicted,
        median_error=median_error,
        worst_error=worst_error,
        highest_efficiency=highest,
        problems=problems,
    )
