"""GGUF quantization levels: their names, llama.cpp's file types, and which need calibration."""

from typing import Final

from pydantic import BaseModel, ConfigDict
from rapidfuzz import process

from quant_assets.errors import InputError


class GgufLevel(BaseModel):
    """One level of llama.cpp's `llama-quantize`.

    `ftype` is the value of `enum llama_ftype` (llama.h). llama.cpp refuses a level
    with `needs_imatrix` without an importance matrix.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    ftype: int
    needs_imatrix: bool = False

    def __str__(self) -> str:
        return self.name

    @property
    def main_type(self) -> str:
        """The tensor type of most weights, `Q4_K` for Q4_K_M (`llama_ftype_get_default_type`)."""
        if (main := _MAIN_TYPES.get(self.name)) is not None:
            return main
        return self.name.rsplit("_", 1)[0] if "_K_" in self.name else self.name


GGUF_LEVELS: Final[tuple[GgufLevel, ...]] = (
    GgufLevel(name="F32", ftype=0),
    GgufLevel(name="F16", ftype=1),
    GgufLevel(name="BF16", ftype=32),
    GgufLevel(name="Q8_0", ftype=7),
    GgufLevel(name="Q6_K", ftype=18),
    GgufLevel(name="Q5_K_M", ftype=17),
    GgufLevel(name="Q5_K_S", ftype=16),
    GgufLevel(name="Q5_1", ftype=9),
    GgufLevel(name="Q5_0", ftype=8),
    GgufLevel(name="Q4_K_M", ftype=15),
    GgufLevel(name="Q4_K_S", ftype=14),
    GgufLevel(name="Q4_1", ftype=3),
    GgufLevel(name="Q4_0", ftype=2),
    GgufLevel(name="IQ4_NL", ftype=25),
    GgufLevel(name="IQ4_XS", ftype=30),
    GgufLevel(name="Q3_K_L", ftype=13),
    GgufLevel(name="Q3_K_M", ftype=12),
    GgufLevel(name="Q3_K_S", ftype=11),
    GgufLevel(name="IQ3_M", ftype=27),
    GgufLevel(name="IQ3_S", ftype=26),
    GgufLevel(name="IQ3_XS", ftype=22, needs_imatrix=True),
    GgufLevel(name="IQ3_XXS", ftype=23, needs_imatrix=True),
    GgufLevel(name="Q2_K", ftype=10),
    GgufLevel(name="Q2_K_S", ftype=21, needs_imatrix=True),
    GgufLevel(name="IQ2_M", ftype=29, needs_imatrix=True),
    GgufLevel(name="IQ2_S", ftype=28, needs_imatrix=True),
    GgufLevel(name="IQ2_XS", ftype=20, needs_imatrix=True),
    GgufLevel(name="IQ2_XXS", ftype=19, needs_imatrix=True),
    GgufLevel(name="IQ1_M", ftype=31, needs_imatrix=True),
    GgufLevel(name="IQ1_S", ftype=24, needs_imatrix=True),
)

_MAIN_TYPES: Final = {
    "IQ3_M": "IQ3_S", "IQ3_XS": "IQ3_S", "IQ2_M": "IQ2_S", "IQ2_S": "IQ2_XS",
}  # fmt: skip
"""The IQ levels whose main type has another name; Q4_K_M and its kind are named after theirs."""
# The short names that llama-quantize accepts for its medium mixtures.
_ALIASES: Final = {"Q3_K": "Q3_K_M", "Q4_K": "Q4_K_M", "Q5_K": "Q5_K_M"}
_BY_NAME: Final = {level.name: level for level in GGUF_LEVELS}
_MAX_SUGGESTIONS = 3


def parse_level(text: str) -> GgufLevel:
    """The level that `text` names, in any case and with `-` or `_`.

    Raises `InputError`, naming the nearest levels, for an unknown one.
    """
    name = text.strip().upper().replace("-", "_")
    level = _BY_NAME.get(_ALIASES.get(name, name))
    if level is not None:
        return level
    near = [match for match, _, _ in process.extract(name, list(_BY_NAME), limit=_MAX_SUGGESTIONS)]
    raise InputError(
        f"There is no GGUF level {text!r}.",
        f"Nearest are {', '.join(near)}.",
        f"Use one of {', '.join(_BY_NAME)}.",
    )
