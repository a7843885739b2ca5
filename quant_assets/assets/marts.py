"""The dbt project in the graph: staging views and marts, with their tests as asset checks."""

import os
from collections.abc import Iterator, Mapping
from typing import Any

import dagster as dg
from dagster_dbt import DagsterDbtTranslator, DbtCliResource, DbtProject, dbt_assets

from quant_assets.assets.conventions import FOLLOWS_ITS_INPUTS, OWNERS, WAREHOUSE_POOL
from quant_assets.resources.failures import clear_failures
from quant_assets.resources.stores import DataRoot
from quant_assets.warehouse.queries import row_counts

WAREHOUSE_VARIABLE = "QUANT_ASSETS_WAREHOUSE"
"""The environment variable that dbt's profile reads the path of the database from."""


class Translator(DagsterDbtTranslator):
    """Asset keys, groups and automation of dbt models: keyed by name, grouped by folder."""

    def get_asset_key(self, dbt_resource_props: Mapping[str, Any]) -> dg.AssetKey:
        """A source declares its key in `meta`; a model's key is its name."""
        if dbt_resource_props["resource_type"] == "source":
            return super().get_asset_key(dbt_resource_props)
        return dg.AssetKey(dbt_resource_props["name"])

    def get_automation_condition(
        self, dbt_resource_props: Mapping[str, Any]
    ) -> dg.AutomationCondition[dg.AssetKey] | None:
        """Models follow their inputs."""
        if dbt_resource_props["resource_type"] == "model":
            return FOLLOWS_ITS_INPUTS
        return None

    def get_group_name(self, dbt_resource_props: Mapping[str, Any]) -> str | None:
        """The folder of the model: staging, intermediate or marts."""
        return str(dbt_resource_props["fqn"][1])


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
