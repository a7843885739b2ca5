"""`quant-assets validate`: check that an artifact is complete, loads and generates."""

from pathlib import Path
from typing import Annotated

import typer
from pydantic import BaseModel

from quant_assets.cli.output import print_line
from quant_assets.cli.presentation import Reply
from quant_assets.cli.verbosity import Verbosity
from quant_assets.cli.worker_progress import WorkerProgress
from quant_assets.host.devices import Device
from quant_assets.processes.quantization_job import QuantizationJob
from quant_assets.processes.session import WorkerSession
from quant_assets.quantize.validation import validate_artifact


class ValidateDocument(BaseModel):
    """A valid artifact: what each check found, in the order of the checks.

    `quantization_job` is the final state of the validation.
    """

    path: Path
    checks: dict[str, str]
    quantization_job: QuantizationJob | None = None


def validate(
    path: Annotated[Path, typer.Argument(help="GGUF file or artifact folder.", exists=True)],
    device: Annotated[Device, typer.Option(help="GPTQ, AWQ: where to compute.")] = "auto",
    text: Annotated[
        Path | None, typer.Option(help="GPTQ, AWQ: file to measure perplexity on.")
    ] = None,
    *,
    verbosity: Verbosity,
) -> Reply[ValidateDocument]:
    """Check the files against the manifest and the tensor layout, then load the model and generate.

    Exit codes: 0 valid; 3 not an artifact, or files missing or damaged; 7 a check failed.
    """
    with WorkerProgress(verbosity) as progress:
        answers = validate_artifact(
            path, text=text, device=device, session=WorkerSession(progress.show)
        )
    document = ValidateDocument(path=path, checks=answers, quantization_job=progress.job)
    return Reply(document, _show)


def _show(document: ValidateDocument) -> None:
    for check, answer in document.checks.items():
        print_line(f"{check}: {answer}")
