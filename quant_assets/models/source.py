"""Source models: a hub id, a folder with safetensors, a GGUF file, or a GGUF inside a package."""

import importlib.metadata
import re
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from quant_assets.atomic_files import path_inside
from quant_assets.errors import EnvironmentNotReady, InputError
from quant_assets.formats.safetensors_header import SUFFIX
from quant_assets.models.identity import COMPANION_PATTERNS, HashCache, identity_of, model_files
from quant_assets.models.integrity import check_gguf, check_hf_folder
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


def resolve_source(text: str, settings: Settings) -> SourceModel:
    """Find the model that `text` names, downloading it from the hub for a hub id.

    Raises `InputError` for a path that does not exist or holds no model and for a hub id that
    cannot be fetched, `EnvironmentNotReady` for a package that is not installed.
    """
    if package := _PACKAGE_SOURCE.match(text):
        return _from_path(_file_in_package(**package.groupdict()), settings, provenance=text)
    path = Path(text).expanduser()
    if path.exists():
        return _from_path(path.resolve(), settings, provenance=f"local files in {path.name}")
    hub = _HUB_SOURCE.match(text)
    if hub and not text.startswith((".", "~", "/")):
        return _from_hub(hub["repo"], hub["revision"], settings)
    raise InputError(
        f"There is no model at {text!r}.",
        "It is neither an existing path nor a hub id of the form owner/name.",
        "Check the spelling, or give the full path of a folder with safetensors or a GGUF file.",
    )


def resolve_configured_source(text: str, settings: Settings) -> SourceModel:
    """Like `resolve_source`, for a value from a configuration file.

    A path must lie inside the data root, the project's own data, or a folder named in
    `QUANT_ASSETS_MODEL_ROOTS`; a relative path is resolved against the data root, and takes
    precedence over a hub id of the same spelling if it exists.
    """
    if text.startswith("package:"):
        return resolve_source(text, settings)
    path = Path(text).expanduser()
    if path.is_absolute():
        roots = [settings.home, settings.data, *settings.model_roots]
        if not any(path.resolve().is_relative_to(root.resolve()) for root in roots):
            raise InputError(
                f"The model path {text!r} lies outside the data root {settings.home}.",
                "Paths from a configuration stay inside the data root and the model roots.",
                "Move the model, or name its parent folder in QUANT_ASSETS_MODEL_ROOTS "
                '(a JSON list, such as ["/models"]).',
            )
        return resolve_source(str(path), settings)
    inside = path_inside(settings.home, path)
    return resolve_source(str(inside) if inside.exists() else text, settings)


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


def _from_hub(repo: str, revision: str | None, settings: Settings) -> SourceModel:
    # Deferred: it is slow to import, and most commands need no network.
    from huggingface_hub import snapshot_download

    token = settings.hf_token.get_secret_value() if settings.hf_token else None
    try:
        folder = Path(
            snapshot_download(
                repo,
                revision=revision,
                token=token,
                cache_dir=settings.cache / "hub",
                allow_patterns=[f"*{SUFFIX}", *COMPANION_PATTERNS],
            )
        )
    except Exception as error:
        raise InputError(
            f"The model {repo!r} could not be fetched from the Hugging Face hub.",
            redact(f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"),
            "Check the id, the network and, for a gated model, HF_TOKEN; "
            "or give a local folder or a GGUF file.",
        ) from error
    source = _from_path(folder, settings, provenance=f"hub {repo} at revision {folder.name}")
    return source.model_copy(update={"name": repo.rsplit("/", 1)[1]})
