"""The strategies by name: built-in ones, and those of other packages."""

from collections.abc import Mapping
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Final

import yaml
from pydantic import ValidationError

from quant_assets.capacity.heuristics.detailed_capacity import DetailedCapacity
from quant_assets.capacity.heuristics.quantization_capable import QuantizationCapable
from quant_assets.capacity.heuristics.quantization_capacity import QuantizationCapacity
from quant_assets.capacity.heuristics.strategy import HeuristicStrategy
from quant_assets.errors import InputError
from quant_assets.settings import get_settings

ENTRY_POINT_GROUP: Final = "quant_assets.heuristics"

BUILT_IN: Final[Mapping[str, type[HeuristicStrategy]]] = {
    strategy.name: strategy
    for strategy in (QuantizationCapable, QuantizationCapacity, DetailedCapacity)
}


@cache
def available_strategies() -> Mapping[str, type[HeuristicStrategy]]:
    """All strategies by name.

    A package registers one as an entry point in the group `quant_assets.heuristics` that refers to a
    subclass of `HeuristicStrategy`. Raises `InputError` for one that cannot be loaded, is not such
    a class, or reuses an existing name.
    """
    found = dict(BUILT_IN)
    for entry in entry_points(group=ENTRY_POINT_GROUP):
        origin = entry.dist.name if entry.dist else entry.value
        try:
            strategy = entry.load()
        except Exception as error:
            raise InputError(
                f"The heuristic {entry.name!r} of {origin} cannot be loaded.",
                f"{type(error).__name__}: {error}.",
                f"Correct or uninstall {origin}.",
            ) from error
        if not (isinstance(strategy, type) and issubclass(strategy, HeuristicStrategy)):
            raise InputError(
                f"The heuristic {entry.name!r} of {origin} is not a strategy.",
                f"{entry.value} is not a subclass of HeuristicStrategy.",
                "Derive it from quant_assets.capacity.heuristics.strategy.HeuristicStrategy.",
            )
        if strategy.name in found:
            raise InputError(
                f"The heuristic {strategy.name!r} of {origin} has a name that already exists.",
                f"{found[strategy.name].__module__} defines a strategy of that name.",
                "Give the strategy another name.",
            )
        found[strategy.name] = strategy
    return found


def make_strategy(
    name: str, *, config: Path | None = None, **overrides: object
) -> HeuristicStrategy:
    """The strategy `name` with the options of `heuristics.yaml` (or `config`) and `overrides`.

    An override of None counts as not given. Raises `InputError` for an unknown name or an invalid
    option.
    """
    strategies = available_strategies()
    if name not in strategies:
        raise InputError(
            f"There is no heuristic {name!r}.",
            f"Available: {', '.join(sorted(strategies))}.",
            "Use one of them, or install the package that provides it.",
        )
    file = config or get_settings().heuristics_yaml
    given = {option: value for option, value in overrides.items() if value is not None}
    options = {**_options(file).get(name, {}), **given}
    try:
        return strategies[name].model_validate(options)
    except ValidationError as error:
        first = error.errors()[0]
        option = ".".join(str(part) for part in first["loc"])
        raise InputError(
            f"The option {option!r} of the heuristic {name!r} is invalid.",
            f"{first['msg']}, not {first['input']!r}.",
            f"Correct it in {file} or on the command line.",
        ) from error


def _options(file: Path) -> dict[str, dict[str, Any]]:
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
    except (OSError, yaml.YAMLError) as error:
        raise InputError(
            f"The heuristics configuration {file} cannot be read.",
            " ".join(str(error).split()),
            "Correct or restore the file.",
        ) from error
    if not isinstance(content, dict) or not all(
        options is None or isinstance(options, dict) for options in content.values()
    ):
        raise InputError(
            f"The heuristics configuration {file} is malformed.",
            "It maps the name of a strategy to its options.",
            "See data/heuristics.yaml in the project.",
        )
    return {str(name): options or {} for name, options in content.items()}
