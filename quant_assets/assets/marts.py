"""The dbt project in the graph: staging views and marts, with their tests as asset checks."""

import hashlib
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import dagster as dg
from dagster_dbt import DagsterDbtTranslator, DbtCliResource, DbtProject, dbt_assets

from quant_assets.assets.artifacts import OWNERS
from quant_assets.assets.tables import FOLLOWS_ITS_INPUTS, WAREHOUSE_POOL
from quant_assets.atomic_files import atomic_path, write_text_atomically
from quant_assets.host.locks import exclusive_lock
from quant_assets.processes.guarded import guarded_script
from quant_assets.resources.failures import clear_failures
from quant_assets.resources.stores import DataRoot
from quant_assets.settings import PROJECT_ROOT, Settings
from quant_assets.warehouse.loads import row_counts

DBT_PROJECT_FOLDER = PROJECT_ROOT / "dbt_like_sql"
WAREHOUSE_VARIABLE = "QUANT_ASSETS_WAREHOUSE"
DBT_GRACE_S = 2.0
"""dbt rolls its transaction back on SIGINT; it gets this long."""
_PROJECT_FILES = ("*.yml", "models/**/*", "macros/**/*", "tests/**/*")


class Translator(DagsterDbtTranslator):
    """Marts and staging in groups of their own, keyed by their names."""

    def get_asset_key(self, dbt_resource_props: Mapping[str, Any]) -> dg.AssetKey:
        """Sources say their key themselves; a model's key is its name."""
        if dbt_resource_props["resource_type"] == "source":
            return super().get_asset_key(dbt_resource_props)
        return dg.AssetKey(dbt_resource_props["name"])

    def get_automation_condition(
        self, dbt_resource_props: Mapping[str, Any]
    ) -> dg.AutomationCondition[dg.AssetKey] | None:
        """Models follow what they are made of."""
        if dbt_resource_props["resource_type"] == "model":
            return FOLLOWS_ITS_INPUTS
        return None

    def get_group_name(self, dbt_resource_props: Mapping[str, Any]) -> str | None:
        """The folder of the model: staging, intermediate or marts."""
        return str(dbt_resource_props["fqn"][1])


def dbt_project(settings: Settings) -> DbtProject:
    """The dbt project with its manifest in the data root, parsed anew when a file changed."""
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
    """dbt as installed beside the running Python, whether or not that is on PATH.

    It runs under a guard, since dbt would otherwise outlive a process that is killed.
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


def build_marts(project: DbtProject) -> dg.AssetsDefinition:
    """All models of the dbt project as assets of one step, run by `dbt build`."""

    @dbt_assets(
        manifest=project.manifest_path,
        project=project,
        dagster_dbt_translator=Translator(),
        pool=WAREHOUSE_POOL,
        name="dbt_models",
    )
    def dbt_models(
        context: dg.AssetExecutionContext, dbt: DbtCliResource, data_root: DataRoot
    ) -> Iterator[Any]:
        target = data_root.settings.dbt_target / "runs" / context.run_id
        with clear_failures(), data_root.warehouse.exclusive() as build_path:
            os.environ[WAREHOUSE_VARIABLE] = str(build_path)
            events = list(dbt.cli(["build"], context=context, target_path=target).stream())
        with data_root.warehouse.read() as connection:
            counts = {name.split(".")[1]: rows for name, rows in row_counts(connection).items()}
        for event in events:
            if isinstance(event, dg.Output) and event.output_name in counts:
                rows = {"dagster/row_count": counts[event.output_name]}
                yield event.with_metadata({**event.metadata, **rows})
            else:
                yield event

    return dbt_models.map_asset_specs(lambda spec: spec.replace_attributes(owners=OWNERS))
