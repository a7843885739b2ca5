"""The perplexity gate's rules, and unsupported settings."""

import math

import pytest

from quant_assets.errors import InputError
from quant_assets.formats.group_quantization import GroupQuantization
from quant_assets.models.inspection import ModelShape
from quant_assets.quantize.groupwise.gate import CheckpointQuality, quality_warning, rejection
from quant_assets.quantize.groupwise.job import check_shape, groupwise_settings
from quant_assets.window_intervals import Interval

LARGE, SMALL = 1_200_000_000, 135_000_000


@pytest.mark.parametrize(
    ("perplexity", "source", "rounding", "bits", "n_parameters", "passes"),
    [
        (27.8, 25.0, 31.6, 4, SMALL, True),
        (35.1, 25.0, 31.6, 4, SMALL, False),
        (581_390.0, 25.0, 31.6, 4, SMALL, False),
        (math.nan, 25.0, 31.6, 4, SMALL, False),
        (math.inf, 25.0, 31.6, 4, SMALL, False),
        (10.4, 10.0, 10.8, 4, LARGE, True),
        (10.6, 10.0, 10.8, 4, LARGE, False),
        (10.6, 10.0, 10.8, 3, LARGE, True),
        (10.05, 10.0, 10.04, 8, LARGE, True),
        (10.3, 10.0, 10.04, 8, LARGE, False),
        (119.291, 110.0, 119.290, 8, SMALL, True),
        (119.390, 110.0, 119.290, 8, SMALL, False),
    ],
)
def test_rule(
    perplexity: float, source: float, rounding: float, bits: int, n_parameters: int, passes: bool
) -> None:
    reason = rejection(
        perplexity=perplexity, source=source, rounding=rounding, bits=bits,
        n_parameters=n_parameters,
    )  # fmt: skip
    assert (reason is None) == passes


@pytest.mark.parametrize(
    ("to_source", "to_rounding", "passes"),
    [
        (Interval(1.03, 1.09), Interval(0.95, 0.99), True),  # the limit is within the error
        (Interval(1.051, 1.07), Interval(0.95, 0.99), False),
        (Interval(1.005, 1.09), Interval(1.01, 1.03), True),  # nearly lossless, for all we know
        (Interval(1.02, 1.09), Interval(0.98, 1.03), True),  # perhaps better than rounding
        (Interval(1.02, 1.04), Interval(1.01, 1.03), False),
    ],
)
def test_an_artifact_is_rejected_only_when_the_intervals_say_so(
    to_source: Interval, to_rounding: Interval, passes: bool
) -> None:
    reason = rejection(
        perplexity=10.6, source=10.0, rounding=10.5, bits=4, n_parameters=LARGE,
        to_source=to_source, to_rounding=to_rounding,
    )  # fmt: skip
    assert (reason is None) == passes


def test_a_perplexity_that_is_not_a_number_is_rejected() -> None:
    measured = CheckpointQuality(
        perplexity=math.nan, standard_error=math.nan, scored_tokens=8, generated_text="The"
    )
    # Workers send JSON, which writes NaN as null.
    sent = CheckpointQuality.model_validate_json(measured.model_dump_json())
    assert math.isnan(sent.perplexity)
    assert rejection(
        perplexity=sent.perplexity, source=25.0, rounding=31.6, bits=4, n_parameters=SMALL
    )


def test_better_than_rounding_can_still_be_useless() -> None:
    assert quality_warning(1.5) is None
    assert "86.9 times the source's" in str(quality_warning(86.9))


def quantization(method: str, bits: int = 4, group_size: int = 64) -> GroupQuantization:
    return GroupQuantization.model_validate(
        {"method": method, "bits": bits, "group_size": group_size}
    )


def test_unsupported_combinations() -> None:
    with pytest.raises(InputError, match="no act-order"):
        groupwise_settings(quantization("awq"), desc_act=True)
    with pytest.raises(InputError, match="does not write GPTQ"):
        groupwise_settings(quantization("gptq"), engine="autoawq")
    with pytest.raises(InputError, match="one group per row"):
        groupwise_settings(quantization("awq", group_size=-1))
    with pytest.raises(InputError, match="not symmetric"):
        groupwise_settings(quantization("awq"), sym=True)
    assert not groupwise_settings(quantization("awq")).sym
    assert groupwise_settings(quantization("gptq")).sym
    assert not groupwise_settings(quantization("gptq"), sym=False).sym


def shape(hidden: int = 256, intermediate: int = 256, **changes: object) -> ModelShape:
    values: dict[str, object] = {
        "architecture": "llama", "n_layers": 2, "hidden_size": hidden,
        "intermediate_size": intermediate, "n_heads": 4, "kv_heads_by_layer": (2, 2),
        "head_dim_k": hidden // 4, "head_dim_v": hidden // 4, "vocab_size": 512,
        "n_parameters": 1000, "n_linear_parameters": 900,
    }  # fmt: skip
    return ModelShape.model_validate({**values, **changes})


def test_groups_must_divide_every_row() -> None:
    check_shape(shape(), groupwise_settings(quantization("gptq", group_size=128)))
    with pytest.raises(InputError, match="do not divide") as caught:
        check_shape(shape(576, 1536), groupwise_settings(quantization("gptq", group_size=128)))
    assert "--group-size 64 or 32" in caught.value.next_step
    check_shape(shape(576, 1536), groupwise_settings(quantization("gptq", group_size=64)))


def test_sizes_that_kernels_cannot_pack() -> None:
    settings = groupwise_settings(quantization("gptq", bits=3, group_size=-1))
    with pytest.raises(InputError, match="cannot pack"):
        check_shape(shape(200, 200), settings)


def test_experts_are_refused() -> None:
    with pytest.raises(InputError, match="Mixture-of-experts"):
        check_shape(shape(n_experts=8), groupwise_settings(quantization("gptq")))
