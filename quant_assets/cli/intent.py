"""`quant-assets intent`: translate a quantization intent for serving backends."""

from pathlib import Path
from typing import Annotated

import typer
from pydantic import RootModel, ValidationError
from rich.table import Table

from quant_assets.cli.options import CommandOptions, takes_models
from quant_assets.cli.output import LiteralConsole
from quant_assets.cli.presentation import Reply
from quant_assets.errors import InputError
from quant_assets.gpus.registry import load_registry
from quant_assets.models.config import model_named
from quant_assets.models.quantization_intent import (
    DEFAULT_SPLIT,
    Backend,
    CalibrationConfig,
    Method,
)
from quant_assets.quantize.configured_intent import configured_intent
from quant_assets.serving.backend import BackendParams
from quant_assets.serving.intent import IntentAnswers, UnifiedQuantizationConfig
from quant_assets.settings import get_settings


class SubjectOptions(CommandOptions):
    """What is served, where, and by what."""

    backend: Annotated[
        Backend | None, typer.Option(help="The serving backend; all of them by default.")
    ] = None
    gpu: Annotated[str | None, typer.Option(help="A GPU of the registry, such as L4.")] = None
    model: Annotated[
        Path | None,
        typer.Option(
            help="Folder or GGUF file; with `auto`, the method is read from it.", exists=True
        ),
    ] = None
    model_name: Annotated[
        str | None,
        typer.Option(help="A model of models.yaml: its `quantization:` is translated."),
    ] = None


class WishOptions(CommandOptions):
    """How the method is applied; None where it is not stated."""

    weight_only: Annotated[
        bool | None,
        typer.Option(
            "--weight-only/--activations",
            help="Keep activations at 16 bits, or quantize them too; by default as is usual for the "
            "backend.",
            show_default=False,
        ),
    ] = None
    calibration: Annotated[
        str | None,
        typer.Option(help="Data set for methods that calibrate: a file or hub:owner/name."),
    ] = None
    calibration_split: Annotated[
        str | None, typer.Option(help=f"Split of the data set; {DEFAULT_SPLIT} by default.")
    ] = None
    calibration_samples: Annotated[
        int | None, typer.Option(help="Texts to calibrate on.", min=1)
    ] = None
    sequence_length: Annotated[int | None, typer.Option(help="Tokens per text.", min=8)] = None
    backend_method: Annotated[
        str | None, typer.Option(help="The backend's own name for the method, such as gptq.")
    ] = None

    def stated(self, method: Method) -> UnifiedQuantizationConfig:
        """The intent; raises `InputError` where it contradicts itself."""
        calibration = {
            "dataset": self.calibration,
            "split": self.calibration_split,
            "num_samples": self.calibration_samples,
            "max_length": self.sequence_length,
        }
        given = {name: value for name, value in calibration.items() if value is not None}
        values = {
            "weight_only": self.weight_only,
            "calibration": CalibrationConfig.model_validate(given) if given else None,
            "backend_method": self.backend_method,
        }
        try:
            return UnifiedQuantizationConfig.model_validate(
                {"method": method, **{k: v for k, v in values.items() if v is not None}}
            )
        except ValidationError as error:
            raise InputError(
                "The intent contradicts itself.",
                f"{error.errors()[0]['msg'].removeprefix('Value error, ')}.",
                "Omit --backend-method and --activations, or name a method that they fit.",
            ) from error


class IntentDocument(RootModel[BackendParams | IntentAnswers]):
    """The parameters for the backend asked for, or the answers of all of them."""


@takes_models
def intent(
    method: Annotated[
        Method | None,
        typer.Argument(help="The intended quantization; omitted with --model-name."),
    ] = None,
    *,
    subject: SubjectOptions,
    wish: WishOptions,
) -> Reply[IntentDocument]:
    """Translate one intent, such as int4, into backends' parameters and launch commands.

    Without --backend, every backend answers, and a refusal is one of the answers. As JSON, one
    backend's answer has the fields of `BackendParams`, that of all is a list in `answers`.

    Exit code 3: no backend asked, or the GPU, supports it; the message names the nearest that does.
    """
    # All cards of a family share a generation, which decides what they support.
    card = load_registry().variants(subject.gpu)[0] if subject.gpu else None
    model, name = subject.model, None
    if subject.model_name is not None:
        if method is not None or model is not None or wish != WishOptions():
            raise typer.BadParameter(
                "the model list states the method, the model and its options",
                param_hint="--model-name",
            )
        settings = get_settings()
        listed = model_named(subject.model_name, settings.models_yaml)
        config, location = configured_intent(listed, settings)
        model, name = location.path, location.name
    elif method is None:
        raise typer.BadParameter("give a method, or --model-name", param_hint="METHOD")
    else:
        config = wish.stated(method)
    if subject.backend is not None:
        answer = config.to_backend_params(subject.backend, card, model, name)
        return Reply(IntentDocument(answer), lambda _: _show(answer))
    every = config.for_every_backend(card, model, name)
    if len(every.refusals) == len(every.answers):
        raise InputError(
            f"No backend fulfils {config.method} as asked.",
            " ".join(f"{refusal.what} {refusal.why}" for refusal in every.refusals),
            every.refusals[0].next_step,
        )
    return Reply(IntentDocument(every), lambda _: _show_every(every))


def _show_every(every: IntentAnswers) -> None:
    console = LiteralConsole(soft_wrap=True)
    for number, answer in enumerate(every.answers):
        if number:
            console.print()
        if isinstance(answer, BackendParams):
            _show(answer)
        else:
            console.print(f"not on {answer.backend}")
            console.print(f"{answer.what} {answer.why}\n{answer.next_step}")


def _show(answer: BackendParams) -> None:
    console = LiteralConsole(soft_wrap=True)
    table = Table(title=f"{answer.method} on {answer.backend}", title_justify="left")
    table.add_column("parameter")
    table.add_column("value")
    for name, value in answer.params.items():
        table.add_row(name, str(value))
    if answer.params:
        console.print(table)
    else:
        console.print(f"{answer.method} on {answer.backend}: no parameters")
    console.print(answer.launch)
    for note in answer.notes:
        console.print(note)
