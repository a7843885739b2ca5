"""Identity of a model by content: SHA-256 per file, cached while a file is unchanged."""

import hashlib
import json
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from quant_assets.errors import InputError, ResourceError
from quant_assets.formats.json_files import read_json_object
from quant_assets.formats.safetensors_header import SUFFIX, require_own_file
from quant_assets.host.caches import is_kept, remember
from quant_assets.host.locks import exclusive_lock
from quant_assets.models.hf_config import CONFIG_NAME

COMPANION_PATTERNS: Final = ("*.json", "*.model", "*.txt", "*.jinja", "*.tiktoken")
"""The files beside the weights: configuration, tokenizer, chat template, generation settings."""
MODEL_FILE_PATTERNS: Final = (
    f"*{SUFFIX}", *COMPANION_PATTERNS, "README.md", "additional_chat_templates/*.jinja",
    # the modules of sentence-transformers, such as 1_Pooling
    f"[0-9]_*/{CONFIG_NAME}", f"[0-9]_*/model{SUFFIX}",
)  # fmt: skip
SOURCE_MANIFEST = "source_manifest.json"
_CHUNK_BYTES = 1 << 20
_LOG = logging.getLogger(__name__)


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's content, in hex."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


class HashCache:
    """Caches SHA-256 by path, size, inode and modification time, so that a file is read once."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def sha256(self, file: Path) -> str:
        """SHA-256 of `file`, from the cache if unchanged; cached where the disk allows."""
        status = file.stat()
        key = f"{file.resolve()}|{status.st_size}|{status.st_mtime_ns}|{status.st_ino}"
        known = self._load()
        if key in known:
            return known[key]
        digest = sha256_of(file)
        lock = self._path.with_name(f"{self._path.name}.lock")
        try:
            with exclusive_lock(lock, "the cache of file hashes"):
                remember(self._path, json.dumps({**self._load(), key: digest}, indent=0))
        except ResourceError as error:
            _LOG.debug("The hash of %s is not cached: %s", file, error)
        return digest

    def _load(self) -> dict[str, str]:
        if not is_kept(self._path):
            return {}
        try:
            return read_json_object(self._path)
        except InputError:
            return {}  # a damaged cache is rebuilt


def model_files(folder: Path) -> list[Path]:
    """The files that make up the model in a Hugging Face folder, sorted by path.

    Every reader of the model sees only these. Raises `InputError` for one that leads out of the
    folder.
    """
    found = {file for pattern in MODEL_FILE_PATTERNS for file in folder.glob(pattern)}
    return [
        require_own_file(file, folder)
        for file in sorted(found)
        if file.is_file() and file.name != SOURCE_MANIFEST
    ]


def identity_of(files: Iterable[Path], folder: Path, cache: HashCache) -> str:
    """One SHA-256 over the contents of `files` and their names relative to `folder`."""
    digest = hashlib.sha256()
    for name, file in sorted((file.relative_to(folder).as_posix(), file) for file in files):
        digest.update(f"{name}\0{cache.sha256(file)}\n".encode())
    return digest.hexdigest()
