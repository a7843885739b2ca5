"""The unfinished output: a locked `.part` file and its journal, resumable after any finished layer."""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from quant_assets.artifacts.output_record import differences
from quant_assets.errors import ResourceError
from quant_assets.host.own_files import is_named, locked_file
from quant_assets.processes.protocol import EventChannel
from quant_assets.workers.gguf.chunks import chunks_of, digest_at, write_at
from quant_assets.workers.gguf.journal import Journal
from quant_assets.workers.gguf.plan import FilePlan

_STAT_BLOCK_BYTES = 512  # the unit of st_blocks


@dataclass
class PartFile:
    """The unfinished output under its temporary name, open and locked."""

    path: Path
    descriptor: int
    journal: Journal

    @property
    def size_on_disk(self) -> int:
        """Bytes that the file already occupies."""
        return os.fstat(self.descriptor).st_blocks * _STAT_BLOCK_BYTES

    def check_name(self) -> None:
        """Raise `ResourceError` if the name no longer refers to the file that was written."""
        if not is_named(self.path, self.descriptor):
            raise ResourceError(
                f"The unfinished file {self.path} was removed or replaced.",
                "Another program did this while the run was writing it.",
                "Run the same command again, and do not touch its files until it ends.",
            )


@contextmanager
def opened_part_file(output: Path) -> Iterator[PartFile]:
    """The part file of `output`, locked; removed at the end if nothing was written.

    Raises `ResourceError` if another run holds it.
    """
    path = output.with_name(f"{output.name}.part")
    journal = Journal(path.with_name(f"{path.name}.journal"))
    with suppress(FileNotFoundError):
        journal.path.lstat()  # the longest name of the run: if it is too long, fail here
    with locked_file(path, output.name) as descriptor:
        part = PartFile(path, descriptor, journal)
        try:
            yield part
        finally:
            journal.close()
            if not os.fstat(descriptor).st_size and is_named(path, descriptor):
                # Nothing was written: the job was rejected, or had finished before.
                path.unlink()
                journal.path.unlink(missing_ok=True)


def resume_point(
    part: PartFile,
    plan: FilePlan,
    identity: dict[str, str],
    channel: EventChannel,
    *,
    resume: bool,
) -> int:
    """Prepare the part file for writing; returns the index of the first unfinished layer."""
    known, digests = part.journal.read()
    intact: list[str] = []
    if known and not resume:
        channel.log("Starting over: resuming is disabled.")
    elif known and known != identity:
        changed = "; ".join(differences(known, identity))
        channel.log(
            f"Starting over: the unfinished file belongs to another job ({changed}).", "warning"
        )
    elif known:
        intact = _intact_layers(part, plan, digests)
        if len(intact) < len(digests):
            channel.log(
                f"The unfinished file is damaged after layer {len(intact)}; resuming from there.",
                "warning",
            )
        channel.log(f"Resuming: {len(intact)} of {len(plan.layers)} layers are finished.")
    if not intact:
        os.ftruncate(part.descriptor, 0)
    os.ftruncate(part.descriptor, plan.file_bytes)
    # Digests cover tensors only; the header and the padding are written again.
    write_at(part.descriptor, plan.header, 0)
    for offset, n_bytes in _gaps(plan):
        write_at(part.descriptor, bytes(n_bytes), offset)
    part.journal.start(identity, intact)
    return len(intact)


def _gaps(plan: FilePlan) -> Iterator[tuple[int, int]]:
    """(offset, bytes) of the padding after the header, between tensors and after the last one."""
    end = len(plan.header)
    for tensor in sorted(plan.tensors, key=lambda tensor: tensor.offset):
        if tensor.offset > end:
            yield end, tensor.offset - end
        end = tensor.offset + tensor.n_bytes
    if plan.file_bytes > end:
        yield end, plan.file_bytes - end


def _intact_layers(part: PartFile, plan: FilePlan, digests: list[str]) -> list[str]:
    """The leading digests that still match the contents of the file."""
    intact = []
    for layer, digest in zip(plan.layers, digests, strict=False):
        found = [
            digest_at(part.descriptor, chunk) for tensor in layer for chunk in chunks_of(tensor)
        ]
        if layer_digest(found) != digest:
            break
        intact.append(digest)
    return intact


def layer_digest(chunk_digests: list[bytes]) -> str:
    """The digest of a layer, from those of its chunks in order."""
    return hashlib.sha256(b"".join(chunk_digests)).hexdigest()
