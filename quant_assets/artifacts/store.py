"""The artifact store: one folder per job, complete or absent."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from quant_assets.artifacts.manifest import MANIFEST_NAME, ArtifactManifest, read_manifest
from quant_assets.atomic_files import fsync_file, replace_durably, write_text_atomically
from quant_assets.errors import InputError
from quant_assets.host.locks import LONG_WAIT_S, exclusive_lock
from quant_assets.host.own_files import own_folder
from quant_assets.models.identity import sha256_of

_STAGING = ".staging"
_REJECTED = ".rejected"


class ArtifactStore:
    """Artifacts under `root`, found by job id.

    A job works in its staging folder, which survives a killed process so that the job can resume;
    `commit` gives the folder its final name. Rejected artifacts are kept in `.rejected`.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def folder(self, job_id: str) -> Path:
        """The folder of a job's finished artifact, whether it exists yet or not."""
        return self.root / job_id

    def staging_folder(self, job_id: str) -> Path:
        """The folder in which a job works until it is finished, whether it exists or not."""
        return self.root / _STAGING / job_id

    def find(self, job_id: str, *, verify_content: bool = False) -> ArtifactManifest | None:
        """The manifest of a finished artifact, if all its files exist with the right sizes.

        `verify_content` also compares every file's SHA-256. None when anything differs, or the
        manifest is damaged or of another job; the artifact is then rebuilt.
        """
        folder = self.folder(job_id)
        try:
            manifest = read_manifest(folder)
        except InputError:
            return None
        if manifest is None or manifest.job_id != job_id:
            return None
        for file in manifest.files:
            path = folder / file.name
            if not path.is_file() or path.stat().st_size != file.size_bytes:
                return None
            if verify_content and sha256_of(path) != file.sha256:
                return None
        return manifest

    def all(self) -> list[ArtifactManifest]:
        """Manifests of all finished artifacts, by job id."""
        folders = sorted(self.root.glob(f"*/{MANIFEST_NAME}"))
        found = (self.find(path.parent.name) for path in folders)
        return [manifest for manifest in found if manifest is not None]

    @contextmanager
    def staging(self, job_id: str) -> Iterator[Path]:
        """The staging folder of a job, locked by this process while the block runs.

        Raises `ResourceError` when another process holds it for hours, or when a folder of another
        user has its name.
        """
        folder = self.staging_folder(job_id)
        own_folder(folder.parent)
        lock = folder.with_name(f"{job_id}.lock")
        with exclusive_lock(lock, f"the artifact {job_id}", wait_s=LONG_WAIT_S):
            own_folder(folder)
            yield folder

    def commit(self, staging: Path, manifest: ArtifactManifest) -> Path:
        """Write the manifest, make everything durable and give the folder its final name.

        Files in the staging folder that the manifest does not list are removed.
        """
        named = {file.name for file in manifest.files}
        for path in staging.iterdir():
            if path.name in named:
                fsync_file(path)
            elif path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
        return self._put(staging, manifest)

    def replace_manifest(self, manifest: ArtifactManifest) -> Path:
        """Replace a finished artifact's manifest, moving it if now rejected; returns its folder."""
        return self._put(self.folder(manifest.job_id), manifest)

    def _put(self, folder: Path, manifest: ArtifactManifest) -> Path:
        """Write the manifest and move the folder to the valid or the rejected artifacts."""
        write_text_atomically(folder / MANIFEST_NAME, manifest.model_dump_json(indent=2))
        rejected = manifest.status == "rejected"
        final = (self.root / _REJECTED if rejected else self.root) / manifest.job_id
        if final != folder:
            final.parent.mkdir(parents=True, exist_ok=True)
            if final.is_symlink():
                final.unlink()
            shutil.rmtree(final, ignore_errors=True)
            replace_durably(folder, final)
        return final
