"""Resources without run config: whoever launches a run cannot choose its paths or programs."""

from typing import Any

import dagster as dg


def fixed(resource: dg.ConfigurableResource[Any]) -> dg.ResourceDefinition:
    """`resource` without a config schema: a run config that sets any of its fields is rejected.

    Anyone who reaches the webserver can send a run config. With a schema, they could choose the
    folder to write to, or the program to run as dbt.
    """
    return dg.ResourceDefinition(
        resource_fn=lambda _: resource, config_schema={}, description=type(resource).__doc__
    )
