"""`quant-assets validate`: is an artifact whole, and does it load and generate?"""

from pathlib import Path
from typing import Annotated

import typer

from quant_assets.cli.output import print_line
from quant_assets.cli.worker_progress import Verbosity, WorkerProgress
from quant_assets.host.devices import Device
from quant_assets.processes.session import WorkerSession
from quant_assets.quantize.validation import validate_artifact


def validate(
    path: Annotated[Path, typer.Argument(help="GGUF file or artifact folder.", exists=True)],
    device: Annotated[Device, typer.Option(help="GPTQ, AWQ: where to compute.")] = "auto",
    text: Annotated[
        Path | None, typer.Option(help="GPTQ, AWQ: file to measure perplexity on.")
    ] = None,
    verbosity: Annotated[
        Verbosity, typer.Option(help="What is shown on standard error.")
    ] = Verbosity.NORMAL,
) -> None:
    """Check files against the manifest and the tensors' layout, load the model, let it generate.

    Exit codes: 0 sound; 3 no artifact, or files missing or damaged; 7 it fails a check.
    """
    with WorkerProgress(verbosity) as progress:
        report = validate_artifact(
            path, text=text, device=device, session=WorkerSession(progress.show)
        )
    for check, answer in report.items():
        print_line(f"{check}: {answer}")
