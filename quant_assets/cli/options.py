"""Options as models: a command takes validated models in place of many parameters.

A group of options is a subclass of `CommandOptions`, each field an
`Annotated[type, typer.Option(...)]`; commands that share options share the class.
"""

import inspect
from collections.abc import Callable, Iterator
from functools import wraps
from typing import Any, get_type_hints

from pydantic import BaseModel, ConfigDict


class CommandOptions(BaseModel):
    """Base of all groups of options."""

    model_config = ConfigDict(frozen=True)


def takes_models(command: Callable[..., Any]) -> Callable[..., Any]:
    """Replace each `CommandOptions` parameter of `command` by its fields, as Typer reads them.

    Options keep the order of parameters and fields. Typer itself takes no models.
    """
    signature = inspect.signature(command, eval_str=True)
    models = {
        name: parameter.annotation
        for name, parameter in signature.parameters.items()
        if inspect.isclass(parameter.annotation)
        and issubclass(parameter.annotation, CommandOptions)
    }

    @wraps(command)
    def with_models(**values: Any) -> Any:
        for name, model in models.items():
            values[name] = model(**{field: values.pop(field) for field in model.model_fields})
        return command(**values)

    parameters: list[inspect.Parameter] = []
    for name, parameter in signature.parameters.items():
        if name in models:
            parameters += _parameters(models[name])
        else:
            parameters.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY))
    set_parameters(with_models, signature.replace(parameters=parameters))
    return with_models


def set_parameters(wrapper: Callable[..., Any], signature: inspect.Signature) -> None:
    """Let Typer read the parameters of `wrapper`, which takes them all by name, from `signature`."""
    wrapper.__signature__ = signature  # type: ignore[attr-defined]
    wrapper.__annotations__ = {item.name: item.annotation for item in signature.parameters.values()}


def _parameters(model: type[CommandOptions]) -> Iterator[inspect.Parameter]:
    hints = get_type_hints(model, include_extras=True)
    for name, field in model.model_fields.items():
        yield inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty
            if field.is_required()
            else field.get_default(call_default_factory=True),
            annotation=hints[name],
        )
