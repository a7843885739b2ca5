"""Several partitions in one run: the tags by which Dagster knows their range."""

from collections.abc import Sequence

_RANGE_START = "dagster/asset_partition_range_start"
_RANGE_END = "dagster/asset_partition_range_end"


def range_tags(keys: Sequence[str]) -> dict[str, str]:
    """Tags of a run over the partitions from the first key to the last; none without keys."""
    return {_RANGE_START: keys[0], _RANGE_END: keys[-1]} if keys else {}
