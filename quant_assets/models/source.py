"""Source models: a hub id, a folder with safetensors, a GGUF file, or a GGUF inside a package."""

import importlib.metadata
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from quant_assets.atomic_files import path_inside
from quant_assets.errors import EnvironmentNotReady, InputError
from quant_assets.formats.safetensors_header import SUFFIX
from quant_assets.models.identity import COMPANION_PATTERNS, HashCache, identity_of, model_files
from quant_assets.models.integrity import check_gguf, check_hf_folder
from quant_assets.processes.session import UNATTENDED, WorkerSession
from quant_assets.redaction import redact
from quant_assets.settings import Settings

_PACKAGE_SOURCE = re.compile(r"^package:(?P<distribution>[\w.-]+)/(?P<file>[\w./-]+)$")
_HUB_SOURCE = re.compile(r"^(?P<repo>[\w.-]+/[\w.-]+?)(@(?P<revision>[\w./-]+))?$")


class SourceModel(BaseModel):
    """A model on the local disk that artifacts can be made from.

    `path` is a folder (kind `hf`) or a file (kind `gguf`). `identity` is a SHA-256 over the content
    of its files. `provenance` describes where the weights come from.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    kind: Literal["hf", "gguf"]
    path: Path
    identity: str
    provenance: str


class SourceLocation(BaseModel):
    """Where a configured source is, found without a download.

    `path` is None for a hub id that is not in the cache. `name` is what commands accept for it: a
    path or a hub id.
    """

    model_config = ConfigDict(frozen=True)

    path: Path | None
    name: str


def resolve_source(
    text: str, settings: Settings, *, session: WorkerSession = UNATTENDED
) -> SourceModel:
    """Find the model that `text` names, downloading it from the hub for a hub id.

    The download's progress in bytes goes to `session`.
    Raises `InputError` for a path that does not exist or holds no model and for a hub id that
    cannot be fetched, `EnvironmentNotReady` for a package that is not installed.
    """
    if package := _PACKAGE_SOURCE.match(text):
        return _from_path(_file_in_package(**package.groupdict()), settings, provenance=text)
    path = Path(text).expanduser()
    if path.exists():
        return _from_path(path.resolve(), settings, provenance=f"local files in {path.name}")
    hub = _hub_id(text)
    return _from_hub(hub["repo"], hub["revision"], settings, session)


def resolve_configured_source(
    text: str, settings: Settings, *, session: WorkerSession = UNATTENDED
) -> SourceModel:
    """Like `resolve_source`, for a value from a configuration file.

    A path must lie inside the data root, the project's own data, or a folder named in
    `QUANT_ASSETS_MODEL_ROOTS`; a relative path is resolved against the data root, and takes
    precedence over a hub id of the same spelling if it exists.
    """
    return resolve_source(_inside_roots(text, settings), settings, session=session)


def locate_source(text: str, settings: Settings) -> SourceLocation:
    """Where the source that a configuration names `text` is, without fetching or hashing it.

    Raises like `resolve_configured_source`, except for a hub id.
    """
    if package := _PACKAGE_SOURCE.match(text):
        path = _file_in_package(**package.groupdict())
        return SourceLocation(path=path, name=str(path))
    located = _inside_roots(text, settings)
    path = Path(located).expanduser()
    if path.exists():
        return SourceLocation(path=path.resolve(), name=str(path.resolve()))
    hub = _hub_id(located)
    cached = _in_hub_cache(hub["repo"], hub["revision"], settings)
    return SourceLocation(path=cached, name=located)


def configured_path(text: str, settings: Settings) -> Path:
    """The path that a configuration names `text`; a relative one is below the data root.

    Raises `InputError` for one outside the data root, the project's own data and the folders named
    in `QUANT_ASSETS_MODEL_ROOTS`.
    """
    path = Path(text).expanduser()
    if not path.is_absolute():
        return path_inside(settings.home, path)
    roots = [settings.home, settings.data, *settings.model_roots]
    if not any(path.resolve().is_relative_to(root.resolve()) for root in roots):
        raise InputError(
            f"The path {text!r} lies outside the data root {settings.home}.",
            "Paths from a configuration stay inside the data root and the model roots.",
            "Move the files, or name their parent folder in QUANT_ASSETS_MODEL_ROOTS "
            '(a JSON list, such as ["/models"]).',
        )
    return path


def _hub_id(text: str) -> re.Match[str]:
    """`text` as a hub id; raises `InputError` for anything else."""
    hub = _HUB_SOURCE.match(text)
    if hub is None or text.startswith((".", "~", "/")):
        raise InputError(
            f"There is no model at {text!r}.",
            "It is neither an existing path nor a hub id of the form owner/name.",
            "Check the spelling, or give the full path of a folder with safetensors or a GGUF file.",
        )
    return hub


def _inside_roots(text: str, settings: Settings) -> str:
    """A configured source as `resolve_source` reads it: an allowed path, a hub id or a package."""
    if text.startswith("package:"):
        return text
    inside = configured_path(text, settings)
    return str(inside) if inside.exists() or Path(text).expanduser().is_absolute() else text


def _in_hub_cache(repo: str, revision: str | None, settings: Settings) -> Path | None:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(
            snapshot_download(
                repo,
                revision=revision,
                cache_dir=settings.cache / "hub",
                local_files_only=True,
            )
        )
    except LocalEntryNotFoundError:
        return None


def _file_in_package(distribution: str, file: str) -> Path:
    try:
        files = importlib.metadata.files(distribution) or []
    except importlib.metadata.PackageNotFoundError as error:
        raise EnvironmentNotReady(
            f"The package {distribution} is not installed.",
            f"The source model {file} ships inside it.",
            "Run `python3 environments/bootstrap.py main --with demo` in the project's folder.",
        ) from error
    for candidate in files:
        if candidate.name == Path(file).name:
            return Path(str(candidate.locate())).resolve()
    raise InputError(
        f"The package {distribution} has no file {file}.",
        "The installed version does not ship it.",
        "Install the version that environments/demo.txt pins.",
    )


def _from_path(path: Path, settings: Settings, *, provenance: str) -> SourceModel:
    cache = HashCache(settings.cache / "file_hashes.json")
    if path.is_file():
        check_gguf(path)
        return SourceModel(
            name=path.stem,
            kind="gguf",
            path=path,
            identity=identity_of([path], path.parent, cache),
            provenance=provenance,
        )
    check_hf_folder(path)
    return SourceModel(
        name=path.name,
        kind="hf",
        path=path,
        identity=identity_of(model_files(path), path, cache),
        provenance=provenance,
    )


def _from_hub(
    repo: str, revision: str | None, settings: Settings, session: WorkerSession
) -> SourceModel:
    # Deferred: it is slow to import, and most commands need no network.
    from huggingface_hub import snapshot_download

    from quant_assets.models.hub_progress import download_bar

    token = settings.hf_token.get_secret_value() if settings.hf_token else None
    download = partial(
        snapshot_download,
        repo,
        revision=revision,
        token=token,
        cache_dir=settings.cache / "hub",
        allow_patterns=[f"*{SUFFIX}", *COMPANION_PATTERNS],
    )
    try:
        bar = download_bar(f"fetch {repo}", session, _bytes_to_fetch(download))
        folder = Path(download(tqdm_class=bar))
    except Exception as error:
        raise InputError(
            f"The model {repo!r} could not be fetched from the Hugging Face hub.",
            redact(f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"),
            "Check the id, the network and, for a gated model, HF_TOKEN; "
            "or give a local folder or a GGUF file.",
        ) from error
    source = _from_path(folder, settings, provenance=f"hub {repo} at revision {folder.name}")
    return source.model_copy(update={"name": repo.rsplit("/", 1)[1]})


def _bytes_to_fetch(download: Callable[..., Any]) -> int | None:
    """Bytes that are not in the cache; None where the hub does not say, as offline."""
    from huggingface_hub.utils.tqdm import silent_tqdm

    try:
        files = download(dry_run=True, tqdm_class=silent_tqdm)
    except Exception:  # the download itself says what is wrong
        return None
    return sum(file.file_size or 0 for file in files if file.will_download) or None
