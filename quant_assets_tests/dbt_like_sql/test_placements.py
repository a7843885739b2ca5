"""The marts answer as `estimate` does: copies, GPUs per copy and speed, for every GPU of the registry."""

import datetime
from typing import Any

import pytest

from quant_assets.bench.variants import Variant
from quant_assets.capacity.memory import Serving, Weights, estimate_memory
from quant_assets.capacity.placement import copy_parts, fit
from quant_assets.capacity.reference_models import reference_models
from quant_assets.gpus.registry import load_registry
from quant_assets.models.inspection import LayerWeights, ModelShape, TensorRoles
from quant_assets.speed.model import load_speed_model
from quant_assets.speed.needs import ServingGrid, ServingNeeds, StoredWeights, grid_needs
from quant_assets.speed.placed_speed import PlacedFit, with_speeds
from quant_assets.warehouse.connection import Warehouse
from quant_assets.warehouse.loads.placements import PlacedCopy, needs_estimate, placement_rows
from quant_assets.warehouse.loads.references import load_gpus
from quant_assets.warehouse.loads.speed import load_speed_predictions
from quant_assets.warehouse.loads.tables import replace_frames
from quant_assets_tests.marts_world import dbt, insert

REGISTRY = load_registry()
GRID = ServingGrid(contexts=(4096, 32768), batches=(1, 8))
VARIANT = Variant(name="q4", format="gguf", level="Q4_K_M")


def with_files(shape: ModelShape) -> ModelShape:
    """`shape` as read from files at 4.85 bits per weight, all layers alike."""
    layer = LayerWeights(round(shape.n_linear_parameters * 4.85 / 8 / shape.n_layers))
    head = round(shape.vocab_size * shape.hidden_size * 4.85 / 8)
    roles = TensorRoles(main_type="Q4_K", lookup_bytes=head, expert_bytes=0, expert_parameters=0)
    return shape.model_copy(
        update={
            "tensor_roles": roles,
            "layer_weights": (layer,) * shape.n_layers,
            "weights_bytes": round(shape.n_parameters * 4.85 / 8),
        }
    )


MODELS = {
    name: with_files(reference_models()[name].shape) for name in ("Llama 2 7B", "Llama 3 70B")
}
COUNTS = (1, 2, 3, 8)
"""Cards of the offers, in turn over the registry."""


def weights_of(model: str) -> StoredWeights:
    return StoredWeights(f"{model} q4", round(MODELS[model].n_parameters * 4.85 / 8))


def all_needs() -> list[ServingNeeds]:
    return [
        needs
        for model, shape in MODELS.items()
        for needs in grid_needs(model, shape, VARIANT, weights_of(model), GRID)
    ]


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The deployment options of one offer per GPU of the registry."""
    root = tmp_path_factory.mktemp("placements")
    warehouse = Warehouse(root / "quant_assets.duckdb")
    with warehouse.write() as connection:
        load_gpus(connection, REGISTRY)
        insert(
            connection,
            "enriched_listings",
            [
                {"row_id": f"offer-{index}", "canonical_name": gpu.canonical_name,
                 "gpu_count": COUNTS[index % len(COUNTS)], "price_kind": "hourly",
                 "price_usd": 2.0, "vram_gb": gpu.vram_gb, "tdp_w": gpu.tdp_w,
                 "quantization_capacity": '{"7b": 1, "13b": 1, "70b": 0}'}
                for index, gpu in enumerate(REGISTRY.all)
            ],
        )  # fmt: skip
        insert(
            connection,
            "models",
            [
                {"model": model, "n_kv_heads": shape.n_kv_heads,
                 **shape.model_dump(include={
                     "architecture", "n_layers", "n_heads", "head_dim_k", "head_dim_v",
                     "hidden_size", "intermediate_size", "vocab_size", "context_length",
                     "n_sliding_layers", "n_experts", "n_experts_used", "n_parameters",
                     "n_linear_parameters"})}
                for model, shape in MODELS.items()
            ],
        )  # fmt: skip
        insert(
            connection,
            "variants",
            [{"variant": "q4", "format": "gguf", "level": "Q4_K_M", "cache_type_k": "f16",
              "cache_type_v": "f16", "description": ""}],
        )  # fmt: skip
        insert(
            connection,
            "artifacts",
            [
                {"job_id": f"{model} q4", "model": model, "format": "gguf", "level": "Q4_K_M",
                 "status": "valid", "size_bytes": weights_of(model).tensor_bytes,
                 "n_parameters": shape.n_parameters, "bits_per_weight": 4.85,
                 "created_at": datetime.datetime(2026, 5, 4, tzinfo=datetime.UTC)}
                for model, shape in MODELS.items()
            ],
        )  # fmt: skip
        insert(connection, "serving_needs", [needs.model_dump() for needs in all_needs()])
        replace_frames(connection, "placements", (rows_of(needs) for needs in all_needs()))
        load_speed_predictions(connection, REGISTRY, load_speed_model())
    with warehouse.exclusive() as build_path:
        selection = ("--select", "+deployment_options", "--indirect-selection", "cautious")
        done = dbt(build_path, root, "build", *selection)
    assert done.returncode == 0, done.stdout
    with warehouse.read() as connection:
        cursor = connection.execute("select * from marts.deployment_options")
        names = [column[0] for column in cursor.description or []]
        return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]


def rows_of(needs: ServingNeeds) -> Any:
    shape = MODELS[needs.model]
    parts = copy_parts(needs_estimate(needs, shape, VARIANT))
    return placement_rows(PlacedCopy(needs, parts, shape.hidden_size), REGISTRY.all)


@pytest.fixture(scope="module")
def answers() -> dict[tuple[str, str, int, int], PlacedFit]:
    """What `estimate` says about the cards of each offer."""
    found: dict[tuple[str, str, int, int], PlacedFit] = {}
    for needs in all_needs():
        size, kind = weights_of(needs.model).tensor_bytes, "Q4_K"
        weights = Weights(level="Q4_K_M", weights_bytes=size, basis="", weight_type=kind)
        serving = Serving(context=needs.context_tokens, batch=needs.batch_size)
        estimate = estimate_memory(needs.model, MODELS[needs.model], weights, serving)
        every = [
            fit(estimate, gpu, cards=COUNTS[index % len(COUNTS)])
            for index, gpu in enumerate(REGISTRY.all)
        ]
        for placed in with_speeds(every, estimate, load_speed_model(), REGISTRY):
            point = (needs.model, needs.context_tokens, needs.batch_size)
            found[placed.gpu, *point] = placed
    return found


def point_of(option: dict[str, Any]) -> tuple[str, str, int, int]:
    return option["gpu"], option["model"], option["context_tokens"], option["batch_size"]


def test_copies_are_those_of_estimate(
    options: list[dict[str, Any]], answers: dict[tuple[str, str, int, int], PlacedFit]
) -> None:
    assert len(options) == len(REGISTRY.all) * len(all_needs())
    spanning = [option for option in options if option["fits"] and option["gpus_per_copy"] > 1]
    assert spanning
    for option in options:
        found = answers[point_of(option)]
        assert option["copies"] == found.copies, option
        assert option["gpus_per_copy"] == found.gpus_per_copy
        assert option["fits"] == (found.copies >= 1)
        per_slot = option["price_usd"] / found.copies if found.copies else None
        assert option["usd_per_slot"] == pytest.approx(per_slot)


def test_speeds_and_costs_are_those_of_one_copy_on_each_group(
    options: list[dict[str, Any]], answers: dict[tuple[str, str, int, int], PlacedFit]
) -> None:
    compared = 0
    for option in options:
        speed = answers[point_of(option)].speed
        if not option["fits"] or speed is None:
            assert option["decode_tokens_per_s"] is None
            assert option["usd_per_million_tokens"] is None
            continue
        compared += 1
        ours = (
            speed.decode_tokens_per_s_low,
            speed.decode_tokens_per_s,
            speed.decode_tokens_per_s_high,
        )
        assert ours == pytest.approx(
            (
                option["decode_tokens_per_s_low"],
                option["decode_tokens_per_s"],
                option["decode_tokens_per_s_high"],
            ),
            rel=1e-3,
        )
        gpus = option["gpu_count"] * REGISTRY.by_name[option["gpu"]].devices
        groups = gpus // option["gpus_per_copy"]
        cost = 1e6 * 2.0 / (3600 * groups * option["decode_tokens_per_s"])
        assert option["usd_per_million_tokens"] == pytest.approx(cost)
        if option["gpus_per_copy"] > 1:
            assert f"split over {option['gpus_per_copy']} GPUs" in option["explanation"]
    assert compared > len(options) / 4
