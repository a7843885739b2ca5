"""GPTQ and AWQ artifacts: one asset per model and format, partitioned by variant."""

from collections.abc import Iterator, Mapping

import dagster as dg

from quant_assets.artifacts.job import library_versions
from quant_assets.artifacts.manifest import MANIFEST_NAME
from quant_assets.assets.conventions import (
    DEVICE_POOL,
    OWNERS,
    groupwise_artifacts_key,
    groupwise_variants,
    peak_memory_metadata,
    source_model_key,
)
from quant_assets.assets.partitions import PartitionEvent, materialized_partitions
from quant_assets.bench.variants import Variant
from quant_assets.errors import CheckFailed
from quant_assets.formats.artifact_formats import GroupwiseFormat
from quant_assets.formats.group_quantization import GroupQuantization
from quant_assets.models.config import ModelConfig
from quant_assets.models.inspection import inspect_model
from quant_assets.quantize.configured_intent import configured_calibration, configured_dataset
from quant_assets.quantize.groupwise.artifact import GroupwiseArtifact, GroupwiseSpec
from quant_assets.quantize.groupwise.calibration import CalibrationChoice
from quant_assets.quantize.groupwise.job import (
    DEFAULT_ENGINE,
    ENVIRONMENT,
    GroupwiseSettings,
    groupwise_settings,
)
from quant_assets.quantize.groupwise.layout import check_layout
from quant_assets.resources.failures import clear_failures
from quant_assets.resources.stores import DataRoot
from quant_assets.resources.torch import Torch
from quant_assets.texts.calibration import CalibrationText, calibration_text

FILES_CHECK = "files_are_as_configured"
GATE_CHECK = "perplexity_gate"


class GroupwiseConfig(dg.Config):
    """Calibration of a run's artifacts: windows of text, tokens per window, act-order.

    Without numbers, those of the model's `quantization:` block are used; without them, the standard
    of the field as far as text and memory allow.
    """

    samples: int | None = None
    sequence_length: int | None = None
    act_order: bool = False

    def choice(self, model: ModelConfig) -> CalibrationChoice:
        """The numbers that the run or the model list names."""
        listed = configured_calibration(model)
        return CalibrationChoice(
            samples=self.samples or listed.num_samples,
            sequence_length=self.sequence_length or listed.max_length,
        )

    def applied_to(self, quantization: GroupQuantization, architecture: str) -> GroupwiseSettings:
        """The settings of one artifact; raises `InputError` for an unsupported combination."""
        return groupwise_settings(
            quantization,
            architecture=architecture,
            desc_act=self.act_order and quantization.method == "gptq",
            samples=self.samples,
            sequence_length=self.sequence_length,
        )


def build_groupwise_artifacts(
    model: ModelConfig, method: GroupwiseFormat, variants: Mapping[str, Variant]
) -> dg.AssetsDefinition:
    """The asset that quantizes a model to one format, one partition per variant.

    It needs the worker environments of GPTQ and AWQ. An artifact that the gate rejects fails the
    check and the run, and its partition is not materialized; the run's other partitions are.
    """
    chosen = groupwise_variants(variants, method)
    key = groupwise_artifacts_key(model, method)

    @dg.asset(
        key=key,
        deps=[source_model_key(model)],
        group_name=model.slug,
        owners=OWNERS,
        kinds={"pytorch", "huggingface"},
        pool=DEVICE_POOL,
        partitions_def=dg.StaticPartitionsDefinition(list(chosen)),
        backfill_policy=dg.BackfillPolicy.single_run(),
        output_required=False,
        code_version=", ".join(
            f"{name} {version}"
            for name, version in library_versions(
                method, ENVIRONMENT[DEFAULT_ENGINE[method]]
            ).items()
        ),
        check_specs=[
            dg.AssetCheckSpec(
                FILES_CHECK,
                asset=key,
                description="Every packed tensor has the shape and type that config.json declares.",
            ),
            dg.AssetCheckSpec(
                GATE_CHECK,
                asset=key,
                description=(
                    "The artifact loads, generates text, and has a lower perplexity than plain "
                    "rounding; from 1B parameters up, its perplexity is close to the source's."
                ),
            ),
        ],
        description=(
            f"{method.upper()} folders of {model.name} for vLLM and transformers, calibrated on "
            f"{configured_calibration(model).dataset or 'WikiText-2'} and gated by their perplexity. "
            "Needs `make setup-groupwise`."
        ),
    )
    def groupwise_artifacts(
        context: dg.AssetExecutionContext,
        config: GroupwiseConfig,
        data_root: DataRoot,
        torch: Torch,
    ) -> Iterator[PartitionEvent | dg.AssetCheckResult]:
        store, settings = data_root.artifacts, data_root.settings
        artifacts: dict[str, GroupwiseArtifact] = {}
        with clear_failures():
            context.log.info(torch.probe().text)
            source = data_root.source(context, model)
            architecture = inspect_model(source.path).architecture
            calibration = calibration_text(configured_dataset(model, settings), settings.cache)
            choice = config.choice(model)
            for name in context.partition_keys:
                quantization = chosen[name].quantization
                assert quantization is not None, "the partitions are GPTQ or AWQ variants"
                chosen_settings = config.applied_to(quantization, architecture)
                spec = GroupwiseSpec(model.name, source, chosen_settings, calibration)
                artifacts[name] = torch.quantize(context, spec, choice, store, settings)
                context.log.info(f"{name}: {artifacts[name].rejection or artifacts[name].folder}")
                if artifacts[name].quality_warning:
                    context.log.warning(f"{name}: {artifacts[name].quality_warning}")
        passed = {
            name: _artifact_metadata(artifact, calibration)
            for name, artifact in artifacts.items()
            if not artifact.rejection
        }
        checks = [_files_check(key, artifacts), _gate_check(key, artifacts)]
        complete = len(passed) == len(artifacts)
        yield from materialized_partitions(context, passed, complete=complete)
        if complete:
            yield from checks
            return
        # A failed step yields no check results: they are logged before it fails.
        for check in checks:
            context.log_event(
                dg.AssetCheckEvaluation(
                    asset_key=key,
                    check_name=str(check.check_name),
                    passed=check.passed,
                    metadata=check.metadata,
                )
            )
        with clear_failures():
            for artifact in artifacts.values():
                artifact.valid()

    return groupwise_artifacts


def _files_check(
    key: dg.AssetKey, artifacts: Mapping[str, GroupwiseArtifact]
) -> dg.AssetCheckResult:
    damaged: dict[str, dg.MetadataValue] = {}
    for name, artifact in artifacts.items():
        try:
            check_layout(artifact.folder)
        except CheckFailed as error:
            damaged[name] = dg.MetadataValue.text(error.why)
    return dg.AssetCheckResult(
        passed=not damaged,
        asset_key=key,
        check_name=FILES_CHECK,
        metadata={"artifacts": dg.MetadataValue.int(len(artifacts)), **damaged},
    )


def _gate_check(
    key: dg.AssetKey, artifacts: Mapping[str, GroupwiseArtifact]
) -> dg.AssetCheckResult:
    remarks = {
        name: dg.MetadataValue.text(remark)
        for name, artifact in artifacts.items()
        if (remark := artifact.rejection or artifact.quality_warning)
    }
    ratios = {
        f"{name}: perplexity over {what}": dg.MetadataValue.float(float(ratio))
        for name, artifact in artifacts.items()
        for what, field in (
            ("the source's", "ratio_to_source"),
            ("rounding's", "ratio_to_rounding"),
        )
        if (ratio := artifact.manifest.validation.get(field)) is not None
    }
    return dg.AssetCheckResult(
        passed=not any(artifact.rejection for artifact in artifacts.values()),
        asset_key=key,
        check_name=GATE_CHECK,
        metadata={"artifacts": dg.MetadataValue.int(len(artifacts)), **remarks, **ratios},
    )


def _artifact_metadata(
    artifact: GroupwiseArtifact, calibration: CalibrationText
) -> dict[str, dg.MetadataValue]:
    manifest = artifact.manifest
    checks = manifest.validation
    numbers = {
        "size (MB)": manifest.size_bytes / 1e6,
        "bits per weight": manifest.bits_per_weight,
        "perplexity": manifest.perplexity,
        "perplexity, standard error": checks.get("perplexity_standard_error"),
        "perplexity over the source's": checks.get("ratio_to_source"),
        "perplexity over the source's, low": checks.get("ratio_to_source_low"),
        "perplexity over the source's, high": checks.get("ratio_to_source_high"),
        "perplexity over rounding's": checks.get("ratio_to_rounding"),
        "perplexity over rounding's, low": checks.get("ratio_to_rounding_low"),
        "perplexity over rounding's, high": checks.get("ratio_to_rounding_high"),
        "seconds": manifest.seconds,
    }
    return {
        "folder": dg.MetadataValue.path(artifact.folder),
        "manifest": dg.MetadataValue.path(artifact.folder / MANIFEST_NAME),
        "job": dg.MetadataValue.text(manifest.job_id),
        "status": dg.MetadataValue.text(manifest.status),
        "source": dg.MetadataValue.text(manifest.source_provenance),
        "calibrated on": dg.MetadataValue.text(manifest.engine["calibration"]),
        "calibration samples": dg.MetadataValue.text(
            "{samples} of {sequence_length} tokens".format_map(manifest.job.parameters)
        ),
        "calibration warning": dg.MetadataValue.text(
            manifest.engine.get("calibration remarks") or calibration.warning or "none"
        ),
        "generated on validation": dg.MetadataValue.text(str(checks.get("generated_text"))),
        **peak_memory_metadata(
            manifest.peak_rss_bytes, manifest.peak_own_bytes, manifest.peak_vram_bytes
        ),
        **{
            name: dg.MetadataValue.float(float(value))
            for name, value in numbers.items()
            if value is not None
        },
    }
