"""Everything that Dagster serves, assembled from the configuration of the installation."""

import dagster as dg

from quant_assets.assets.benchmarks import build_benchmark_results
from quant_assets.assets.conventions import groupwise_formats
from quant_assets.assets.gguf import build_gguf_artifacts, build_importance_matrix
from quant_assets.assets.groupwise import build_groupwise_artifacts
from quant_assets.assets.host import build_host_peaks
from quant_assets.assets.listings import build_listings
from quant_assets.assets.marts import build_marts
from quant_assets.assets.quality import build_variant_quality
from quant_assets.assets.report import build_report
from quant_assets.assets.source_models import build_source_model
from quant_assets.assets.tables import build_tables
from quant_assets.automation.checks import build_checks
from quant_assets.automation.full_run import build_full_rebuild
from quant_assets.automation.jobs import build_jobs
from quant_assets.automation.schedules import build_schedules
from quant_assets.automation.sensors import build_sensors
from quant_assets.bench.variants import load_settings, load_variants
from quant_assets.models.config import load_models
from quant_assets.resources.dbt import dbt_project, dbt_resource
from quant_assets.resources.executor import patient_in_process_executor
from quant_assets.resources.fixed import fixed
from quant_assets.resources.llama_cpp import LlamaCpp
from quant_assets.resources.stores import DataRoot
from quant_assets.resources.torch import Torch
from quant_assets.settings import Settings, get_settings


def build_definitions(settings: Settings) -> dg.Definitions:
    """The graph of one installation: listings, one asset group per model, warehouse and marts."""
    models = load_models(settings.models_yaml)
    variants = load_variants(settings.variants_yaml)
    bench_settings = load_settings(settings.variants_yaml)
    dbt = dbt_project(settings)
    jobs = build_jobs(models, variants)

    def job_of(name: str) -> dg.JobDefinition:
        return definitions.resolve_job_def(name)

    definitions = dg.Definitions(
        assets=[
            *build_listings(),
            *(build_source_model(model) for model in models),
            *(build_importance_matrix(model) for model in models),
            *(build_gguf_artifacts(model) for model in models),
            *(
                build_groupwise_artifacts(model, method, variants)
                for model in models
                for method in groupwise_formats(variants)
            ),
            *(build_variant_quality(model, variants, bench_settings) for model in models),
            *(build_benchmark_results(model, variants, bench_settings) for model in models),
            build_host_peaks(),
            *build_tables(models, variants),
            build_marts(dbt),
            build_report(),
        ],
        asset_checks=build_checks(models),
        jobs=jobs,
        # For runs that the UI launches without a job.
        executor=patient_in_process_executor,
        schedules=build_schedules(
            jobs, models, variants, bench_settings, build_full_rebuild(job_of)
        ),
        sensors=build_sensors(jobs, models),
        resources={
            "data_root": fixed(DataRoot(home=str(settings.home), data=str(settings.data))),
            "llama_cpp": LlamaCpp(),
            "torch": Torch(),
            "dbt": fixed(dbt_resource(dbt)),
            # Assets write their own files; Dagster's default IO manager would take a folder from the
            # run config.
            "io_manager": dg.IOManagerDefinition(dg.mem_io_manager.resource_fn, config_schema={}),
        },
    )
    return definitions


defs: dg.Definitions = build_definitions(get_settings())
