"""The marts, compared with figures calculated by hand."""

import json
import shutil
from pathlib import Path
from typing import Any

import duckdb
import pytest

from quant_assets.warehouse.connection import Warehouse
from quant_assets_tests.marts_world import CPU_EFFICIENCIES, dbt, insert, run


def rows(warehouse: Warehouse, query: str) -> list[tuple[Any, ...]]:
    with warehouse.read() as connection:
        return connection.execute(query).fetchall()


def test_capacities_are_those_at_4_bits(marts_warehouse: Warehouse):
    found = rows(
        marts_warehouse,
        "select row_id, capacity_7b, capacity_13b, capacity_70b, usd_per_70b_slot "
        "from marts.listing_capacity where row_id in ('buy-a', 'rent-b') order by 1",
    )
    assert found == [("buy-a", 6, 3, 0, None), ("rent-b", 22, 12, 2, 1.0)]


def test_benchmarks_have_the_specified_names(marts_warehouse: Warehouse):
    ((same, total),) = rows(
        marts_warehouse,
        "select count(*) filter (p50 = p50_ms and p95 = p95_ms "
        "and token_throughput = decode_tokens_per_s "
        "and peak_rss is not distinct from peak_rss_bytes "
        "and command_duration_ms is null and obedience_pass_rate is null), count(*) "
        "from marts.variant_benchmarks",
    )
    assert same == total > 0


def test_efficiency_comes_only_from_uncontended_runs(marts_warehouse: Warehouse):
    points = rows(
        marts_warehouse,
        "select decode_efficiency from intermediate.int_speed_points "
        "where processor_kind = 'cpu' order by 1",
    )
    assert [value for (value,) in points] == pytest.approx(sorted(CPU_EFFICIENCIES))


def test_an_estimate_is_what_the_speed_model_predicts(marts_warehouse: Warehouse):
    found = rows(
        marts_warehouse,
        "select gpu, decode_tokens_per_s, decode_tokens_per_s_low, decode_tokens_per_s_high, "
        "speed_basis, speed_runs from marts.expected_speed "
        "where variant = 'f16' and batch_size = 1 order by gpu",
    )
    # 10.25 GB at 1000 and 2000 GB/s; the short run on B does not stand for 4096 tokens.
    assert found == [
        ("A", *map(pytest.approx, (600 / 10.25, 500 / 10.25, 700 / 10.25)), "its architecture", 40),
        ("B", *map(pytest.approx, (1200 / 10.25, 1000 / 10.25, 1400 / 10.25)), "all GPUs", 900),
    ]  # the bandwidth of C is unknown


def test_a_run_on_the_same_card_replaces_the_estimate(marts_warehouse: Warehouse):
    measured = rows(
        marts_warehouse,
        "select variant, batch_size, decode_tokens_per_s, decode_tokens_per_s_low, "
        "decode_tokens_per_s_high, speed_runs, prefill_tokens_per_s, prefill_basis, prefill_runs "
        "from marts.expected_speed where speed_basis = 'measured'",
    )
    ((variant, batch, speed, low, high, runs, *prefill),) = measured
    assert (variant, batch, speed, high, runs) == ("q4", 1, 300.0, 300.0, 1)
    assert low == pytest.approx(300 * 3.2 / 4.0)
    assert prefill == [10.0, "measured", 1]


def test_prefill_has_its_own_interval_and_basis(marts_warehouse: Warehouse):
    found = rows(
        marts_warehouse,
        "select distinct gpu, prefill_tokens_per_s_low, prefill_tokens_per_s, "
        "prefill_tokens_per_s_high, prefill_basis, prefill_runs from marts.deployment_options "
        "where variant = 'f16' order by gpu",
    )
    assert found == [
        ("A", 6000.0, 8000.0, 9000.0, "its maker", 70),
        ("B", None, None, None, None, None),  # a figure of the GPU is unknown
        ("C", None, None, None, None, None),
    ]


def test_the_explanation_says_what_the_speed_rests_on(marts_warehouse: Warehouse):
    explanations = dict(
        rows(
            marts_warehouse,
            "select gpu || ' ' || variant, explanation from marts.deployment_options "
            "where batch_size = 1 and row_id in ('buy-a', 'rent-b')",
        )
    )
    assert (
        "59 tokens/s in total (49 to 68, estimated from 40 runs on GPUs of its architecture), 59"
        in (explanations["A f16"])
    )
    assert "estimated from 900 runs on all GPUs), 117" in explanations["B f16"]
    assert "300 tokens/s in total (240 to 300, measured), 300" in explanations["B q4"]


def test_the_cost_of_a_token_on_purchased_and_rented_gpus(marts_warehouse: Warehouse):
    found = {
        row[0]: row[1:]
        for row in rows(
            marts_warehouse,
            "select row_id, hourly_cost_usd, usd_per_million_tokens, decode_tokens_per_s, copies "
            "from marts.deployment_options where variant = 'f16' and batch_size = 1",
        )
    }
    hourly, cost, speed, copies = found["buy-a"]
    assert hourly == pytest.approx(2000 / (3 * 365.25 * 24 * 0.5) + 0.25 * 0.15)
    assert cost == pytest.approx(hourly / (speed * 3600) * 1e6)
    assert copies == 2  # 24 x 2^30 bytes hold two copies of 10 + 0.5 + 0.5 + 1 GB kept free
    # Four cards at 7 USD per hour, one copy on each.
    hourly, cost, speed, copies = found["rent-4b"]
    assert (hourly, copies) == (7.0, 28)
    assert cost == pytest.approx(7.0 / (4 * speed * 3600) * 1e6)
    # Without bandwidth there is no speed, without a price no cost.
    assert found["buy-c"][1:3] == (None, None)
    assert found["no-price"][:2] == (None, None)


def test_every_offer_is_combined_with_every_variant_at_every_point(marts_warehouse: Warehouse):
    assert rows(marts_warehouse, "select count(*) from marts.deployment_options") == [(5 * 3 * 2,)]


def test_quality_of_an_older_artifact_does_not_count(marts_warehouse: Warehouse):
    found = rows(
        marts_warehouse,
        "select variant, quality_basis, quality_loss from marts.variant_quality order by 1",
    )
    assert found == [
        ("f16", "baseline", 0.0),
        ("q4", "unmeasured", None),
        ("q8", "measured", pytest.approx(0.01)),
    ]


def test_recommendations_are_ranked_and_give_their_reason(marts_warehouse: Warehouse):
    ranked = rows(
        marts_warehouse,
        "select place, variant, gpu_count, usd_per_million_tokens, quality_basis, reason "
        "from marts.recommendations where batch_size = 1 and price_kind = 'hourly' order by place",
    )
    known = [row for row in ranked if row[4] != "unmeasured"]
    assert ranked[: len(known)] == known
    assert [row[3] for row in known] == sorted(row[3] for row in known)
    assert ranked[0][1:3] == ("q8", 4)
    # Two offers to rent x three variants, of which five are kept.
    assert len(ranked) == 5 and "Number 1 of 6 suitable options" in ranked[0][5]
    assert "+1.00% relative to F16" in ranked[0][5]
    assert "measured)" in next(row[5] for row in ranked if row[1] == "q4")


def measured_on(
    variant: str, text: str, windows: int, ratio: float, when: str, artifact: str | None = None
) -> str:
    return (
        "insert into raw.variant_quality (model, variant, artifact_id, kind, measured_at, text, "
        "text_sha256, windows, context_tokens, perplexity, perplexity_ratio) values "
        f"('m', '{variant}', '{artifact or 'm-' + variant}', 'perplexity', '{when}', '{text}', "
        f"'sha of {text}', {windows}, 512, {10 * ratio}, {ratio})"
    )


@pytest.mark.parametrize(
    ("measurements", "q8", "q4"),
    [
        # Newer, but on another text, on which fewer variants or as many were measured before.
        ([("q4", "other", 30, 1.2, "2026-05-01")], 1.01, None),
        # As many on a newer text: all figures come from that one.
        ([("q4", "other", 30, 1.2, "2026-06-01")], None, 1.2),
        # The number of windows is part of what was measured.
        ([("q4", "other", 30, 1.2, "2026-05-01"), ("q8", "other", 8, 1.5, "2026-05-02")], 1.01, None),
        # Most variants win over the newest measurement, and the older of two of one variant loses.
        (
            [
                ("q4", "other", 30, 1.2, "2026-04-01"), ("q8", "other", 30, 1.5, "2026-04-01"),
                ("q8", "other", 30, 1.4, "2026-04-02"), ("q8", "third", 30, 1.6, "2026-06-01"),
            ],
            1.4,
            1.2,
        ),
        # What F16 was measured on does not count, nor does a clock that is ahead.
        ([("f16", "other", 30, 1.0, "2999-01-01"), ("q4", "other", 30, 1.2, "2999-01-01")], 1.01, None),
    ],
)  # fmt: skip
def test_losses_on_different_texts_never_meet(
    marts_warehouse: Warehouse,
    tmp_path: Path,
    measurements: list[tuple[str, str, int, float, str]],
    q8: float | None,
    q4: float | None,
):
    copy = tmp_path / marts_warehouse.path.name
    shutil.copyfile(marts_warehouse.path, copy)
    with duckdb.connect(str(copy)) as connection:
        for measurement in measurements:
            connection.execute(measured_on(*measurement)).fetchall()
        found = {
            variant: (ratio, because)
            for variant, ratio, because in connection.execute(
                "select variant, perplexity_ratio, unmeasured_because "
                "from intermediate.int_variant_quality"
            ).fetchall()
        }
    assert (found["q8"][0], found["q4"][0]) == (q8, q4)
    assert found["f16"] == (1.0, None)
    for variant, ratio in (("q8", q8), ("q4", q4)):
        assert (found[variant][1] is None) == (ratio is not None)
    if q8 is None:
        assert found["q8"][1] == (
            "its quality was measured on wiki (30 windows of 512 tokens), that of the others on "
            "other (30 windows of 512 tokens)"
        )


def test_the_cost_of_a_kv_cache_is_that_of_the_current_types_on_one_text(
    marts_warehouse: Warehouse, tmp_path: Path
):
    copy = tmp_path / marts_warehouse.path.name
    shutil.copyfile(marts_warehouse.path, copy)
    rows_of = [  # K type, context, text, ratio, day
        ("q4_0", 512, "a", 1.01, 1), ("q4_0", 2048, "a", 1.03, 1), ("q4_0", 2048, "a", 1.04, 2),
        ("q4_0", 2048, "b", 1.50, 1), ("q8_0", 8192, "a", 1.90, 3),
    ]  # fmt: skip
    with duckdb.connect(str(copy)) as connection:
        connection.execute("update raw.variants set cache_type_k = 'q4_0' where variant = 'q4'")
        for k, context, text, ratio, day in rows_of:
            connection.execute(
                "insert into raw.kv_cache_quality (model, variant, artifact_id, cache_type_k, "
                "cache_type_v, context_tokens, measured_at, text, text_sha256, windows, "
                "perplexity_ratio) values ('m', 'q4', 'm-q4', ?, 'f16', ?, ?, ?, ?, 4, ?)",
                [k, context, f"2026-05-0{day}", text, text, ratio],
            ).fetchall()
        found = connection.execute(
            "select context_tokens, perplexity_ratio from intermediate.int_kv_cache_quality "
            "order by all"
        ).fetchall()
        shown = connection.execute(
            "select kv_cache_context_tokens, kv_cache_loss from intermediate.int_variant_quality "
            "order by variant"
        ).fetchall()
    assert found == [(512, 1.01), (2048, 1.04)]
    assert shown == [(None, None), (2048, pytest.approx(0.04)), (None, None)]


def test_pareto_names_the_variants_that_dominate(marts_warehouse: Warehouse):
    found = {
        variant: (flag, better)
        for variant, flag, better in rows(
            marts_warehouse, "select variant, is_pareto, dominated_by from marts.pareto_variants"
        )
    }
    # F16 decoded its newest run faster (0.7 of 1.95 tokens/s) than Q8_0 (0.9) and loses nothing.
    assert found["f16"] == (True, None)
    assert found["q8"] == (True, None)
    assert found["q4"] == (None, None)


def test_histories_compare_with_the_previous_entry(marts_warehouse: Warehouse):
    prices = rows(
        marts_warehouse,
        "select offers, lowest_per_gpu_usd, median_per_gpu_usd, lowest_change, is_newest "
        "from marts.price_history order by recorded_at",
    )
    assert prices == [
        (2, 2000.0, 2200.0, None, False),
        (1, 1800.0, 1800.0, pytest.approx(-0.1), True),
    ]
    runs = rows(
        marts_warehouse,
        "select run_number, p50_change from marts.run_history "
        "where record_id = 'run-5' and variant = 'f16'",
    )
    assert runs == [(7, pytest.approx(105 / 104 - 1))]


def test_every_column_of_every_model_is_documented(marts_home: Path, marts_warehouse: Warehouse):
    manifest = json.loads((marts_home / "target" / "manifest.json").read_text())
    documented = {
        (node["schema"], node["name"], column["name"])
        for node in manifest["nodes"].values()
        if node["resource_type"] == "model" and node["description"]
        for column in node["columns"].values()
        if column["description"]
    }
    built = rows(
        marts_warehouse,
        "select table_schema, table_name, column_name from information_schema.columns "
        "where table_catalog = current_database() and table_schema <> 'raw'",
    )
    assert documented == set(built)


def test_a_fresh_installation_has_empty_marts(tmp_path: Path):
    empty = Warehouse(tmp_path / "quant_assets.duckdb")
    with empty.write():
        pass
    with empty.exclusive() as build_path:
        done = dbt(build_path, tmp_path, "build")
    assert done.returncode == 0, done.stdout
    assert rows(empty, "select count(*) from marts.deployment_options") == [(0,)]


def test_a_wrong_row_fails_the_build(marts_warehouse: Warehouse, tmp_path: Path):
    copy = tmp_path / marts_warehouse.path.name
    shutil.copyfile(marts_warehouse.path, copy)
    with duckdb.connect(str(copy)) as connection:
        connection.execute("update raw.benchmark_runs set p50_ms = -1 where record_id = 'run-92'")
        connection.execute(
            "update raw.enriched_listings set row_id = 'buy-a' where row_id = 'buy-c'"
        )
    done = dbt(copy, tmp_path, "test", "--select", "stg_benchmark_runs", "stg_listings")
    assert done.returncode == 1
    assert "FAIL 1 unique_stg_listings_row_id" in done.stdout
    assert "FAIL 1 in_range_stg_benchmark_runs_p50_ms" in done.stdout


def test_a_run_with_a_wrong_clock_is_not_the_newest(marts_warehouse: Warehouse, tmp_path: Path):
    copy = tmp_path / marts_warehouse.path.name
    shutil.copyfile(marts_warehouse.path, copy)
    with duckdb.connect(str(copy)) as connection:
        ((record_id, *cell),) = connection.execute(
            "select record_id, model, variant, batch_size from staging.stg_benchmark_runs "
            "where recency = 2 order by record_id limit 1"
        ).fetchall()
        connection.execute(
            "update raw.benchmark_runs set timestamp = '2999-01-01' where record_id = ?",
            [record_id],
        ).fetchall()
        newest_last = connection.execute(
            "select record_id from staging.stg_benchmark_runs "
            "where model = ? and variant = ? and batch_size = ? order by recency desc",
            cell,
        ).fetchall()
    assert len(newest_last) > 1
    assert newest_last[0] == (record_id,)


def test_one_contended_measurement_of_the_peaks_loses_no_run(
    marts_warehouse: Warehouse, tmp_path: Path
):
    copy = tmp_path / marts_warehouse.path.name
    shutil.copyfile(marts_warehouse.path, copy)
    with duckdb.connect(str(copy)) as connection:
        insert(
            connection,
            "benchmark_runs",
            [run(number, decode_tokens_per_s=1.0 + number / 1000) for number in range(100, 108)],
        )
        connection.execute("delete from raw.hosts where not contended").fetchall()
        connection.execute(
            "update raw.hosts set triad_gb_s = 2, read_gb_s = 1, matmul_gflop_s = 2"
        ).fetchall()
    built = dbt(copy, tmp_path, "build", "--select", "stg_hosts+")
    assert built.returncode == 0, built.stdout
    with duckdb.connect(str(copy)) as connection:
        ((threads, contended),) = connection.execute(
            "select threads, peaks_contended from intermediate.int_processors "
            "where processor_kind = 'cpu'"
        ).fetchall()
        points = connection.execute(
            "select decode_efficiency, prefill_efficiency from intermediate.int_speed_points "
            "where processor_kind = 'cpu'"
        ).fetchall()
        bases = connection.execute(
            "select distinct speed_basis from marts.expected_speed where gpu = 'A'"
        ).fetchall()
    assert (threads, contended) == (2, True)
    assert len(points) == len(CPU_EFFICIENCIES) + 8
    # No run is faster than its processor: what a run reached bounds the peaks from below.
    assert all(0 < share <= 1 + 1e-9 for point in points for share in point)
    assert bases == [("its architecture",)]


def test_peaks_of_the_same_processor_on_another_machine_serve(
    marts_warehouse: Warehouse, tmp_path: Path
):
    copy = tmp_path / marts_warehouse.path.name
    shutil.copyfile(marts_warehouse.path, copy)
    with duckdb.connect(str(copy)) as connection:
        connection.execute("update raw.hosts set host_id = 'other' where not contended").fetchall()
        connection.execute("update raw.hosts set host_id = 'this' where contended").fetchall()
        found = connection.execute(
            "select memory_bandwidth_gb_s, peaks_contended from staging.stg_hosts"
        ).fetchall()
    assert found == [(20.0, False)]


def machine_runs() -> list[dict[str, Any]]:
    """Q8_0 at 10 tokens/s and a faster, better Q4_0, on machines that differ in one thing."""
    q8 = {"variant": "q8", "artifact_id": "m-q8", "decode_tokens_per_s": 10.0}
    q4 = {"variant": "q4", "artifact_id": "m-q4", "decode_tokens_per_s": 50.0}
    pairs: list[tuple[dict[str, Any], dict[str, Any]]] = [
        ({"cpu_name": "one machine", "host_id": "h1"}, {}),
        ({"cpu_name": "two machines", "host_id": "h2"}, {"host_id": "h3"}),
        ({"cpu_name": "other threads", "host_id": "h4"}, {"threads": 4}),
        ({"cpu_name": "other prompts", "host_id": "h5"}, {"prompt_tokens": 512}),
        ({"cpu_name": "before host ids", "host_id": None}, {"host_id": "h6"}),
    ]
    found = []
    for number, (machine, difference) in enumerate(pairs):
        found.append(run(200 + number, **{**q8, **machine}))
        found.append(run(300 + number, **{**q4, **machine, **difference}))
    server = {"backend": "endpoint", "device": "remote", "cpu_name": None, "threads": None}
    found.append(run(400, variant="endpoint", artifact_id="http://server:8000", **server))
    return found


@pytest.fixture(scope="module")
def machines(
    marts_warehouse: Warehouse, tmp_path_factory: pytest.TempPathFactory
) -> duckdb.DuckDBPyConnection:
    """The marts with runs on several machines, and a Q4_0 of less loss than Q8_0."""
    folder = tmp_path_factory.mktemp("machines")
    copy = folder / marts_warehouse.path.name
    shutil.copyfile(marts_warehouse.path, copy)
    with duckdb.connect(str(copy)) as connection:
        insert(connection, "benchmark_runs", machine_runs())
        connection.execute(
            "update raw.variant_quality set artifact_id = 'm-q4', perplexity_ratio = 0.99, "
            "perplexity_ratio_low = 0.985, perplexity_ratio_high = 0.995 "
            "where variant = 'q4'"
        ).fetchall()
    built = dbt(copy, folder, "build", "--select", "stg_benchmark_runs+", "int_variant_quality+")
    assert built.returncode == 0, built.stdout
    return duckdb.connect(str(copy), read_only=True)


def test_variants_are_compared_on_one_machine_under_equal_conditions(
    machines: duckdb.DuckDBPyConnection,
):
    found = machines.execute(
        "select processor, is_pareto, dominated_by from marts.pareto_variants "
        "where variant = 'q8' order by processor"
    ).fetchall()
    assert found == [
        ("before host ids", False, "q4"),
        ("cpu", True, None),
        ("one machine", False, "q4"),
        ("other prompts", True, None),
        ("other threads", True, None),
        ("two machines", True, None),
    ]


def test_a_summary_has_one_row_per_machine_and_conditions(machines: duckdb.DuckDBPyConnection):
    found = machines.execute(
        "select host_id, threads, prompt_tokens, decode_tokens_per_s_batch_1 "
        "from marts.variant_summary where variant = 'q4' and device = 'cpu' order by host_id"
    ).fetchall()
    assert found == [
        ("h1", 2, 128, 50.0),
        ("h3", 2, 128, 50.0),
        ("h4", 4, 128, 50.0),
        ("h5", 2, 512, 50.0),
        ("h6", 2, 128, 50.0),
    ]


def test_the_conditions_measured_last_come_first(machines: duckdb.DuckDBPyConnection):
    found = machines.execute(
        "select distinct conditions_recency, coalesce(host_id, processor) "
        "from staging.stg_benchmark_runs order by 1"
    ).fetchall()
    # By the newest record of each; Q4_0 was measured last on every machine.
    assert [name for _, name in found[:5]] == ["http://server:8000", "h6", "h5", "h4", "h3"]
    assert len({rank for rank, _ in found}) == len(found)


def test_a_run_of_a_server_has_its_address_as_processor(machines: duckdb.DuckDBPyConnection):
    ((processor,),) = machines.execute(
        "select processor from marts.variant_benchmarks where backend = 'endpoint'"
    ).fetchall()
    assert processor == "http://server:8000"


def test_a_run_is_compared_with_the_previous_one_of_its_machine(
    machines: duckdb.DuckDBPyConnection,
):
    found = machines.execute(
        "select run_number from marts.run_history where processor = 'two machines'"
    ).fetchall()
    assert found == [(1,), (1,)]
