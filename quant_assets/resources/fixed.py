"""Resources that a run takes as they are: nobody who launches one chooses paths or programs."""

from typing import Any

import dagster as dg


def fixed(resource: dg.ConfigurableResource[Any]) -> dg.ResourceDefinition:
    """`resource` without a config schema: a run config that names any of its fields is refused.

    A run config comes from whoever reaches the webserver. In it, a folder to write to or the
    program that stands for dbt would be theirs.
    """
    return dg.ResourceDefinition(
        resource_fn=lambda _: resource, config_schema={}, description=type(resource).__doc__
    )
