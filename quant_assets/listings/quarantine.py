"""Reasons why a listing row is quarantined instead of being enriched."""

from enum import StrEnum


class QuarantineReason(StrEnum):
    """A stable code per reason; `words` explains it to users."""

    UNREADABLE_FILE = "unreadable_file"
    WRONG_FIELD_COUNT = "wrong_field_count"
    BROKEN_QUOTES = "broken_quotes"
    LINE_TOO_LONG = "line_too_long"
    NUL_BYTE = "nul_byte"
    NOT_AN_OBJECT = "not_an_object"
    UNREADABLE_ROW = "unreadable_row"
    MISSING_TITLE = "missing_title"
    NO_GPU_NAMED = "no_gpu_named"
    UNKNOWN_MODEL = "unknown_model"
    SEVERAL_MODELS = "several_models"
    AMBIGUOUS_VARIANT = "ambiguous_variant"
    NEAR_MISS = "near_miss"
    MEMORY_MISMATCH = "memory_mismatch"
    FORM_FACTOR_MISMATCH = "form_factor_mismatch"
    ACCESSORY = "accessory"
    NOT_WORKING = "not_working"
    LAPTOP = "laptop"
    WHOLE_SYSTEM = "whole_system"
    INVALID_GPU_COUNT = "invalid_gpu_count"
    UNREADABLE_PRICE = "unreadable_price"
    AMBIGUOUS_PRICE = "ambiguous_price"
    NEGATIVE_PRICE = "negative_price"
    ABSURD_PRICE = "absurd_price"
    UNKNOWN_CURRENCY = "unknown_currency"
    CURRENCY_CONFLICT = "currency_conflict"

    @property
    def words(self) -> str:
        """The reason as one sentence."""
        return _WORDS[self]


_WORDS = {
    QuarantineReason.UNREADABLE_FILE: "The file cannot be read as listings.",
    QuarantineReason.WRONG_FIELD_COUNT: "The row and the header have different numbers of fields.",
    QuarantineReason.BROKEN_QUOTES: "A quote in the row is never closed or is misplaced.",
    QuarantineReason.LINE_TOO_LONG: "The line is longer than a listing can be.",
    QuarantineReason.NUL_BYTE: "The row contains NUL bytes.",
    QuarantineReason.NOT_AN_OBJECT: "The JSON value is not an object with named fields.",
    QuarantineReason.UNREADABLE_ROW: "The row is not valid text.",
    QuarantineReason.MISSING_TITLE: "The row has no title.",
    QuarantineReason.NO_GPU_NAMED: "The title names no GPU.",
    QuarantineReason.UNKNOWN_MODEL: "The title names no model in the GPU registry.",
    QuarantineReason.SEVERAL_MODELS: "The title names more than one model.",
    QuarantineReason.AMBIGUOUS_VARIANT: (
        "The card exists in several variants and the title does not say which."
    ),
    QuarantineReason.NEAR_MISS: "The name is close to several cards and matches none.",
    QuarantineReason.MEMORY_MISMATCH: "The card does not exist with the stated memory size.",
    QuarantineReason.FORM_FACTOR_MISMATCH: "The card does not exist in the stated form factor.",
    QuarantineReason.ACCESSORY: "The offer is an accessory, not a GPU.",
    QuarantineReason.NOT_WORKING: "The card is sold as broken or for parts.",
    QuarantineReason.LAPTOP: "The GPU is part of a laptop or a mobile variant.",
    QuarantineReason.WHOLE_SYSTEM: "The price is for a whole computer.",
    QuarantineReason.INVALID_GPU_COUNT: "The number of GPUs is not valid or contradicts the title.",
    QuarantineReason.UNREADABLE_PRICE: "The price cannot be read as an amount.",
    QuarantineReason.AMBIGUOUS_PRICE: "The separator in the price has two possible meanings.",
    QuarantineReason.NEGATIVE_PRICE: "The price is negative or zero.",
    QuarantineReason.ABSURD_PRICE: "The price for one GPU is outside any plausible range.",
    QuarantineReason.UNKNOWN_CURRENCY: "The currency is unknown or its sign is ambiguous.",
    QuarantineReason.CURRENCY_CONFLICT: "The currency column and the sign in the price disagree.",
}
