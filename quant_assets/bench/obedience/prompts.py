"""The prompts: an instruction, the checks of its answer, and sample answers."""

from collections.abc import Sequence
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from quant_assets.bench.obedience.answer_checks import Check
from quant_assets.errors import InputError


class ObediencePrompt(BaseModel):
    """One instruction and the checks, all of which its answer must pass.

    `good` and `bad` are sample answers that the checks must accept and reject.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str
    category: str
    prompt: str
    checks: list[Check] = Field(min_length=1)
    good: list[str] = Field(min_length=1)
    bad: list[str] = Field(min_length=1)

    def failure(self, answer: str) -> str | None:
        """Why the answer disobeys, or None."""
        for check in self.checks:
            reason = check.failure(answer)
            if reason is not None:
                return reason
        return None


class _PromptFile(BaseModel):
    model_config = ConfigDict(extra="forbid")

    category: str
    prompts: list[dict[str, Any]] = Field(min_length=1)


def load_prompts(folder: Path) -> list[ObediencePrompt]:
    """The prompts of all YAML files of a folder; raise `InputError` when one is invalid."""
    prompts: list[ObediencePrompt] = []
    for path in sorted(folder.glob("*.yaml")):
        try:
            content = _PromptFile.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
            prompts += [
                ObediencePrompt.model_validate({**fields, "category": content.category})
                for fields in content.prompts
            ]
        except (OSError, yaml.YAMLError, ValidationError) as error:
            raise InputError(
                f"The prompts of {path} cannot be used.",
                str(error),
                "Correct the file; those in `data/obedience` show the format.",
            ) from error
    ids = [prompt.id for prompt in prompts]
    repeated = sorted({name for name in ids if ids.count(name) > 1})
    if repeated or not prompts:
        raise InputError(
            f"The prompts in {folder} cannot be used.",
            f"Ids occur twice: {', '.join(repeated)}." if repeated else "There are none.",
            "Give each prompt an id of its own, in one of the folder's YAML files.",
        )
    return prompts


def spread_prompts(
    prompts: Sequence[ObediencePrompt], count: int | None = None
) -> list[ObediencePrompt]:
    """`count` of the prompts, taken from the categories in turn; all of them if null or fewer."""
    if count is None or count >= len(prompts):
        return list(prompts)
    by_category: dict[str, list[ObediencePrompt]] = {}
    for prompt in prompts:
        by_category.setdefault(prompt.category, []).append(prompt)
    turns = chain.from_iterable(zip_longest(*by_category.values()))
    return [prompt for prompt in turns if prompt is not None][:count]
