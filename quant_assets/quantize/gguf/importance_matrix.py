"""A model's importance matrix: found, or measured once per source and calibration text."""

import datetime
import hashlib
from pathlib import Path

from pydantic import BaseModel, ValidationError

from quant_assets.artifacts.job import library_versions
from quant_assets.atomic_files import write_text_atomically
from quant_assets.host.locks import LONG_WAIT_S, exclusive_lock
from quant_assets.models.identity import sha256_of
from quant_assets.models.source import SourceModel
from quant_assets.processes.session import UNATTENDED, WorkerSession
from quant_assets.quantize.gguf.job import (
    DEFAULT_CHUNK_TOKENS,
    DEFAULT_CHUNKS,
    ImatrixJob,
    make_imatrix,
)
from quant_assets.texts.calibration import CalibrationText


class ImportanceMatrixRecord(BaseModel):
    """An importance matrix file in llama.cpp's GGUF format, and what it was measured on."""

    model_name: str
    path: Path
    sha256: str
    source_identity: str
    calibration: str
    calibration_sha256: str
    warning: str | None
    n_entries: int
    n_chunks: int
    n_tokens: int
    seconds: float
    peak_rss_bytes: int
    peak_own_bytes: int | None = None
    peak_vram_bytes: int | None = None
    created_at: datetime.datetime


def model_importance_matrix(
    model_name: str,
    source: SourceModel,
    calibration: CalibrationText,
    folder: Path,
    *,
    max_chunks: int = DEFAULT_CHUNKS,
    chunk_tokens: int = DEFAULT_CHUNK_TOKENS,
    threads: int | None = None,
    session: WorkerSession = UNATTENDED,
) -> ImportanceMatrixRecord:
    """The importance matrix of a source over a text, kept in `folder` and measured at most once.

    At most `max_chunks` chunks of `chunk_tokens` tokens are read. Raises what `make_imatrix` does.
    """
    identity = "\n".join(
        [
            source.identity,
            calibration.sha256,
            *(f"{k}={v}" for k, v in library_versions("gguf").items()),
            # Only what differs from the default, so that earlier records are found.
            *([] if max_chunks == DEFAULT_CHUNKS else [f"chunks={max_chunks}"]),
            *([] if chunk_tokens == DEFAULT_CHUNK_TOKENS else [f"chunk tokens={chunk_tokens}"]),
        ]
    )
    stem = f"{model_name}--imatrix--{hashlib.sha256(identity.encode()).hexdigest()[:16]}"
    path, record = folder / f"{stem}.gguf", folder / f"{stem}.json"
    folder.mkdir(parents=True, exist_ok=True)
    purpose = f"the importance matrix of {model_name}"
    with exclusive_lock(folder / f".{stem}.lock", purpose, wait_s=LONG_WAIT_S):
        if known := _read(record, path):
            return known
        result = make_imatrix(
            ImatrixJob(
                source=source.path,
                source_kind=source.kind,
                source_identity=source.identity,
                calibration=calibration.path,
                calibration_name=calibration.name,
                output=path,
                threads=threads,
                max_chunks=max_chunks,
                chunk_tokens=chunk_tokens,
            ),
            session=session,
        )
        made = ImportanceMatrixRecord(
            model_name=model_name,
            path=path,
            sha256=result.sha256,
            source_identity=source.identity,
            calibration=calibration.name,
            calibration_sha256=calibration.sha256,
            warning=calibration.warning,
            n_entries=result.n_entries,
            n_chunks=result.n_chunks,
            n_tokens=result.n_tokens,
            seconds=result.seconds,
            peak_rss_bytes=result.peak_rss_bytes,
            peak_own_bytes=result.peak_own_bytes,
            peak_vram_bytes=result.peak_vram_bytes,
            created_at=datetime.datetime.now(datetime.UTC),
        )
        write_text_atomically(record, made.model_dump_json(indent=2))
    return made


def _read(record: Path, path: Path) -> ImportanceMatrixRecord | None:
    """The record of the matrix at `path`; None unless its checksum matches the file."""
    try:
        known = ImportanceMatrixRecord.model_validate_json(record.read_bytes())
        intact = sha256_of(path) == known.sha256
    except (OSError, ValidationError):
        return None
    return known.model_copy(update={"path": path}) if intact else None
