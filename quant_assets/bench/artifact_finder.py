"""Locates the artifact that a variant runs."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from quant_assets.artifacts.store import ArtifactStore
from quant_assets.bench.variants import Variant
from quant_assets.record_files import recency


class LocatedArtifact(NamedTuple):
    """A finished artifact: its model file (or folder), its id in records, and its size."""

    path: Path
    artifact_id: str
    size_bytes: int


FindArtifact = Callable[[Variant], LocatedArtifact | None]


def artifact_finder(store: ArtifactStore, model_name: str) -> FindArtifact:
    """A function that finds the newest valid artifact of a model for a variant."""
    manifests = sorted(store.all(), key=lambda manifest: recency(manifest.created_at), reverse=True)

    def find(variant: Variant) -> LocatedArtifact | None:
        for manifest in manifests:
            job = manifest.job
            parameters = {"bits": variant.bits, "group_size": variant.group_size}
            if (job.model_name, job.target_format, job.level) == (
                model_name,
                variant.format,
                variant.level,
            ) and all(
                value is None or job.parameters.get(name) == value
                for name, value in parameters.items()
            ):
                folder = store.folder(manifest.job_id)
                single = variant.format == "gguf"
                path = folder / manifest.files[0].name if single else folder
                return LocatedArtifact(path, manifest.job_id, manifest.size_bytes)
        return None

    return find
