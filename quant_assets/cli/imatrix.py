"""`quant-assets imatrix`: compute the importance matrix that low-bit GGUF levels need."""

from pathlib import Path
from typing import Annotated

import typer

from quant_assets.cli.output import print_path
from quant_assets.cli.presentation import Reply
from quant_assets.cli.verbosity import Verbosity, warn
from quant_assets.cli.worker_progress import WorkerProgress, fetched_source
from quant_assets.processes.session import WorkerSession
from quant_assets.quantize.gguf.job import MOST_THREADS, ImatrixJob, ImatrixResult, make_imatrix
from quant_assets.settings import get_settings
from quant_assets.texts.calibration import plain_calibration_text


def imatrix(
    model: Annotated[
        str, typer.Argument(help="Hub id, folder with safetensors, or F16/BF16/F32 GGUF file.")
    ],
    text: Annotated[
        Path | None, typer.Option(help="Calibration text (UTF-8); WikiText-2 by default.")
    ] = None,
    output_dir: Annotated[
        Path, typer.Option(help="Folder for the file <model>.imatrix.gguf.")
    ] = Path(),
    chunks: Annotated[
        int, typer.Option(help="Maximum number of chunks of 512 tokens.", min=1)
    ] = 100,
    threads: Annotated[
        int | None, typer.Option(help="Threads; all cores by default.", min=1, max=MOST_THREADS)
    ] = None,
    overwrite: Annotated[
        bool, typer.Option(help="Replace a file made from another model or of unknown origin.")
    ] = False,
    *,
    verbosity: Verbosity,
) -> Reply[ImatrixResult]:
    """Run a model over a text and store activation statistics per matrix, in llama.cpp's format.

    The path of the file goes to standard output. Records and exit codes are those of `quantize`.
    """
    settings = get_settings()
    source = fetched_source(model, settings, verbosity)
    calibration = plain_calibration_text(text, settings.cache)
    warn(calibration.warning)
    with WorkerProgress(verbosity) as progress:
        result = make_imatrix(
            ImatrixJob(
                source=source.path,
                source_kind=source.kind,
                source_identity=source.identity,
                calibration=calibration.path,
                calibration_name=calibration.name,
                output=output_dir.resolve() / f"{source.name}.imatrix.gguf",
                threads=threads,
                max_chunks=chunks,
                record=True,
                overwrite=overwrite,
            ),
            session=WorkerSession(progress.show),
        )
    return Reply(result, lambda made: print_path(made.output))
