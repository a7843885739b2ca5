"""Which cells of a campaign to measure, so that the others can be estimated from them."""

from dataclasses import replace

from quant_assets.bench.campaign import Campaign
from quant_assets.bench.variants import Variant
from quant_assets.speed.host_cells import (
    HostArtifact,
    StepLengths,
    host_cell,
    open_host_artifact,
)
from quant_assets.speed.host_fit import cells_to_measure


def with_designed_cells(campaign: Campaign, count: int) -> Campaign:
    """The campaign limited to the `count` cells that `cells_to_measure` chooses of it.

    Raises what `open_host_artifact` raises for a damaged artifact.
    """
    settings = campaign.settings
    opened: dict[str, HostArtifact] = {}

    def artifact_of(variant: Variant) -> HostArtifact:
        located = campaign.find(variant)
        assert located is not None, "a planned cell has its artifact"
        if located.artifact_id not in opened:
            opened[located.artifact_id] = open_host_artifact(campaign.model_name, located.path)
        return opened[located.artifact_id]

    cells = [
        host_cell(
            artifact_of(variant),
            variant,
            StepLengths(planned.batch_size, settings.prompt_tokens, settings.generated_tokens),
        )
        for planned in campaign.plan()
        if planned.skipped is None
        for variant in [campaign.variants[planned.variant]]
    ]
    chosen = (cells[place] for place in cells_to_measure(cells, count))
    return replace(campaign, only=frozenset((cell.variant, cell.batch) for cell in chosen))
