"""`recommend`: the ranking, each limit of a question, and the command."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from quant_assets.cli.app import app
from quant_assets.cli.recommend import parse_hourly_price, parse_share
from quant_assets.errors import InputError
from quant_assets.settings import get_settings
from quant_assets.warehouse.connection import Warehouse
from quant_assets.warehouse.recommendation import Answer, Question, recommend


def ask(warehouse: Warehouse, **question: Any) -> Answer:
    with warehouse.read() as connection:
        return recommend(connection, Question(model="m", **{"context": 4096, **question}))


def test_everything_that_fits_is_ranked_by_cost_per_token(marts_warehouse: Warehouse):
    answer = ask(marts_warehouse)
    known = [item for item in answer.recommendations if item.quality_basis != "unmeasured"]
    costs = [item.usd_per_million_tokens for item in known]
    assert costs == sorted(costs)
    assert answer.recommendations[: len(known)] == known
    assert {item.variant for item in answer.recommendations} == {"f16", "q8", "q4"}
    assert answer.suitable + sum(answer.left_out.values()) == 15
    assert answer.left_out == {
        "without an expected speed: the memory bandwidth of the GPU is unknown": 3,
        "without a price": 3,
    }


@pytest.mark.parametrize("batch", [1, 4])
def test_the_mart_and_the_command_rank_alike(marts_warehouse: Warehouse, batch: int):
    # The limits of the mart are those of dbt_project.yml; no measured loss of this world exceeds 5%.
    options = ask(marts_warehouse, batch=batch, min_tokens_per_s=10, limit=1000).recommendations
    with marts_warehouse.read() as connection:
        mart = connection.execute(
            "select price_kind, place, variant, gpu, gpu_count, price_usd from marts.recommendations "
            "where batch_size = ? order by price_kind, place",
            [batch],
        ).fetchall()
    kinds = ("hourly", "purchase")
    ranked = {kind: [item for item in options if item.price_kind == kind][:5] for kind in kinds}
    assert mart == [
        (kind, place, item.variant, item.gpu, item.gpu_count, item.price_usd)
        for kind in kinds
        for place, item in enumerate(ranked[kind], start=1)
    ]
    assert mart


def test_an_hourly_limit_excludes_purchases(marts_warehouse: Warehouse):
    answer = ask(marts_warehouse, max_hourly_usd=2.0)
    assert {(item.price_kind, item.gpu_count) for item in answer.recommendations} == {("hourly", 1)}
    assert answer.left_out["over budget"] == 3
    assert answer.left_out["for sale only"] == 6


def test_a_budget_excludes_rentals(marts_warehouse: Warehouse):
    assert {item.gpu for item in ask(marts_warehouse, budget_usd=2000).recommendations} == {"A"}
    assert ask(marts_warehouse, budget_usd=1999).suitable == 0


def test_the_speed_limit_applies_to_every_sequence(marts_warehouse: Warehouse):
    speeds = [
        item.decode_tokens_per_s_per_sequence
        for item in ask(marts_warehouse, batch=4).recommendations
    ]
    limit = sorted(speeds)[len(speeds) // 2]
    kept = ask(marts_warehouse, batch=4, min_tokens_per_s=limit)
    assert 0 < kept.suitable < len(speeds)
    assert all(
        item.decode_tokens_per_s / 4 == pytest.approx(item.decode_tokens_per_s_per_sequence)
        and item.decode_tokens_per_s_per_sequence >= limit
        for item in kept.recommendations
    )
    assert kept.left_out["too slow"] > 0


def test_a_limit_on_quality_loss_leaves_out_unmeasured_variants(marts_warehouse: Warehouse):
    assert {
        item.variant for item in ask(marts_warehouse, max_quality_loss=0.03).recommendations
    } == {
        "f16",
        "q8",
    }
    strict = ask(marts_warehouse, max_quality_loss=0.005)
    assert {item.variant for item in strict.recommendations} == {"f16"}
    assert strict.left_out["over the limit on quality loss"] == 3


def test_a_limit_within_the_error_of_a_loss_keeps_the_option_and_says_so(
    marts_warehouse: Warehouse,
):
    # q8 loses 1.0%, 0.6% to 1.4%.
    for limit, kept in ((0.005, False), (0.008, True), (0.02, True)):
        options = ask(marts_warehouse, max_quality_loss=limit).recommendations
        losses = {item.variant: (item.quality_loss_low, item.quality_loss_high) for item in options}
        assert ("q8" in losses) == kept
        reasons = " ".join(item.reason for item in options)
        assert ("The limit of 0.8% on its quality loss is within its error." in reasons) == (
            limit == 0.008
        )
    assert losses == {
        "f16": (0, 0), "q8": (pytest.approx(0.006), pytest.approx(0.014)),
    }  # fmt: skip


def test_a_question_between_grid_points_takes_the_next_larger_point(marts_warehouse: Warehouse):
    answer = ask(marts_warehouse, context=1000, batch=2)
    assert (answer.context, answer.batch) == (4096, 4)


@pytest.mark.parametrize(
    ("question", "message"),
    [({"context": 5000}, "go up to 4096 tokens"), ({"batch": 9}, "to batch 4")],
)
def test_a_question_beyond_the_grid(
    marts_warehouse: Warehouse, question: dict[str, int], message: str
):
    with pytest.raises(InputError, match=message):
        ask(marts_warehouse, **question)


def test_an_unknown_model_is_answered_with_the_known_ones(marts_warehouse: Warehouse):
    with marts_warehouse.read() as connection, pytest.raises(InputError, match="They have m"):
        recommend(connection, Question(model="x"))


def test_prices_and_shares_are_parsed_as_people_write_them():
    assert [parse_hourly_price(text) for text in ("2", "2.0/h", "$2 / hour", "2 USD/h")] == [
        2.0
    ] * 4
    assert [parse_share(text) for text in ("3%", "0.03", "3 %")] == pytest.approx([0.03] * 3)
    for text in ("0/h", "cheap", "2/day", "-1"):
        with pytest.raises(InputError):
            parse_hourly_price(text)
    for text in ("3", "many", "-1%"):
        with pytest.raises(InputError):
            parse_share(text)


def test_the_command_answers_in_words_and_in_json(
    marts_home: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("QUANT_ASSETS_HOME", str(marts_home))
    get_settings.cache_clear()
    arguments = ["recommend", "--model", "m", "--context", "4096", "--max-quality-loss", "3%"]
    words = CliRunner().invoke(app, arguments)
    data = CliRunner().invoke(app, [*arguments, "--format", "json"])
    get_settings.cache_clear()
    assert words.exit_code == 0
    assert "Number 1 of 6 suitable options" in words.stdout
    answer = Answer.model_validate(json.loads(data.stdout))
    assert answer.recommendations[0].variant == "q8"
