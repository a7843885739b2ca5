"""The dbt project: its parsed manifest in the data root, and the dbt command as a resource."""

import hashlib
import sys
from pathlib import Path

from dagster_dbt import DbtCliResource, DbtProject

from quant_assets.atomic_files import atomic_path, write_text_atomically
from quant_assets.host.locks import exclusive_lock
from quant_assets.processes.guarded import guarded_script
from quant_assets.settings import PROJECT_ROOT, Settings

DBT_PROJECT_FOLDER = PROJECT_ROOT / "dbt_like_sql"
DBT_GRACE_S = 2.0
"""How long dbt may take to roll back its transaction on SIGINT."""
_PROJECT_FILES = ("*.yml", "models/**/*", "macros/**/*", "tests/**/*")


def dbt_project(settings: Settings) -> DbtProject:
    """The dbt project with its manifest in the data root, parsed again when a file has changed."""
    settings.dbt_target.mkdir(parents=True, exist_ok=True)
    project = DbtProject(
        DBT_PROJECT_FOLDER, target_path=settings.dbt_target, profiles_dir=DBT_PROJECT_FOLDER
    )
    stamp = settings.dbt_target / "manifest.sha256"
    fingerprint = _fingerprint()
    with exclusive_lock(settings.dbt_target / "manifest.lock", "the parsed dbt project"):
        known = stamp.read_text(encoding="utf-8") if stamp.exists() else ""
        if known != fingerprint or not project.manifest_path.exists():
            settings.warehouse.parent.mkdir(parents=True, exist_ok=True)
            dbt_resource(project).cli(["parse"], target_path=settings.dbt_target).wait()
            write_text_atomically(stamp, fingerprint)
    return project


def dbt_resource(project: DbtProject) -> DbtCliResource:
    """The dbt that is installed beside the running Python, whether or not that is on PATH.

    It runs under a guard: otherwise it would outlive a killed parent.
    """
    command = [str(Path(sys.executable).with_name("dbt"))]
    executable = Path(project.target_path) / "guarded-dbt"
    with atomic_path(executable) as script:
        script.write_text(guarded_script(command, grace_s=DBT_GRACE_S), encoding="utf-8")
        script.chmod(0o755)
    return DbtCliResource(project, dbt_executable=str(executable))


def _fingerprint() -> str:
    digest = hashlib.sha256()
    files: set[Path] = set()
    for pattern in _PROJECT_FILES:
        files.update(path for path in DBT_PROJECT_FOLDER.glob(pattern) if path.is_file())
    for path in sorted(files):
        digest.update(f"{path.relative_to(DBT_PROJECT_FOLDER)}\0".encode() + path.read_bytes())
    return digest.hexdigest()
