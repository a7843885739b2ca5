"""The decision report: the marts on one page."""

import dagster as dg

from quant_assets.assets.conventions import FOLLOWS_ITS_INPUTS, OWNERS, REPORT_GROUP
from quant_assets.report.decision.build import (
    build_decision_report,
    render_markdown,
    write_decision_report,
)
from quant_assets.resources.failures import clear_failures
from quant_assets.resources.stores import DataRoot

REPORTED_MARTS = (
    "deployment_options",
    "kv_cache_quality",
    "listing_capacity",
    "pareto_variants",
    "recommendations",
    "variant_benchmarks",
    "variant_quality",
)


def build_report() -> dg.AssetsDefinition:
    """The asset that writes the decision report as HTML and Markdown."""

    @dg.asset(
        key="decision_report",
        deps=list(REPORTED_MARTS),
        group_name=REPORT_GROUP,
        owners=OWNERS,
        kinds={"plotly"},
        automation_condition=FOLLOWS_ITS_INPUTS,
        description=(
            "One self-contained page: what was measured, quality against size and speed, price "
            "against capacity, recommendations, quarantined rows, and stale data."
        ),
    )
    def decision_report(data_root: DataRoot) -> dg.MaterializeResult[None]:
        settings = data_root.settings
        with clear_failures():
            report = build_decision_report(settings)
            html, markdown = write_decision_report(report, settings.decision_report)
        return dg.MaterializeResult(
            metadata={
                "HTML": dg.MetadataValue.path(html),
                "Markdown": dg.MetadataValue.path(markdown),
                "preview": dg.MetadataValue.md(render_markdown(report)),
            }
        )

    return decision_report
