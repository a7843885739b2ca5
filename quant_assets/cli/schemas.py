"""The JSON schemas of every command's document, from their models: `make schemas`.

`docs/schemas/<command>.json` is one per command, with `-` in place of the spaces of a subcommand,
and `error.json` the form of every error.
"""

import inspect
import json
import sys
from collections.abc import Iterator
from functools import reduce
from operator import or_
from pathlib import Path
from typing import Any, get_args, get_origin

import typer
from pydantic import BaseModel, TypeAdapter

from quant_assets.atomic_files import write_text_atomically
from quant_assets.cli.app import app
from quant_assets.cli.presentation import ErrorDocument, Reply


def commands() -> dict[str, Any]:
    """Every command and subcommand that answers, by its words, such as "bench compare"."""
    return dict(_answering(typer.main.get_command(app), ()))


def document_of(command: Any) -> TypeAdapter[BaseModel]:
    """The form of a command's document, from the annotation of what it returns.

    A command whose options choose between documents has all of them in its form.
    """
    returned = inspect.signature(inspect.unwrap(command.callback), eval_str=True).return_annotation
    documents = [
        get_args(kind)[0] for kind in (returned, *get_args(returned)) if get_origin(kind) is Reply
    ]
    if not documents:
        raise TypeError(f"{command.name} returns no Reply")
    return TypeAdapter(reduce(or_, documents))


def schemas() -> dict[str, str]:
    """The text of each schema, by file name."""
    forms = {name.replace(" ", "-"): document_of(item) for name, item in commands().items()}
    forms["error"] = TypeAdapter(ErrorDocument)
    return {
        f"{name}.json": json.dumps(_schema(form), indent=2, ensure_ascii=False) + "\n"
        for name, form in forms.items()
    }


def write_schemas(folder: Path) -> None:
    """Write every schema into `folder`, and remove those of commands that no longer exist."""
    folder.mkdir(parents=True, exist_ok=True)
    written = schemas()
    for name, text in written.items():
        write_text_atomically(folder / name, text)
    for file in folder.glob("*.json"):
        if file.name not in written:
            file.unlink()


def _answering(command: Any, words: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
    subcommands = getattr(command, "commands", {})
    if words and (not subcommands or command.invoke_without_command):
        yield " ".join(words), command
    for name, subcommand in subcommands.items():
        yield from _answering(subcommand, (*words, name))


def _schema(form: TypeAdapter[BaseModel]) -> dict[str, Any]:
    schema = form.json_schema(mode="serialization")
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


if __name__ == "__main__":
    write_schemas(Path(sys.argv[1]))
