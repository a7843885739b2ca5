"""WikiText-2 and other data sets from the hub."""

from pathlib import Path
from typing import Final, Literal

import requests

from quant_assets.duckdb_files import READ_OPTIONS, readable

_WIKITEXT: Final = "Salesforce/wikitext"
_TIMEOUT_S: Final = 10


def wikitext(split: Literal["train", "test"]) -> str:
    """A split of WikiText-2 as one text, equal to the file `wiki.<split>.raw`, from cache or hub.

    Raises what the hub's client raises when neither provides it.
    """
    import duckdb

    parquet = hub_file(_WIKITEXT, f"wikitext-2-raw-v1/{split}-00000-of-00001.parquet")
    query = f"select text from read_parquet(?, {READ_OPTIONS})"  # noqa: S608, own text
    with duckdb.connect() as connection, readable(parquet) as pattern:
        rows = connection.execute(query, [pattern]).fetchall()
    return "".join(row[0] for row in rows)


def hub_file(repository: str, file: str) -> Path:
    """A file of a data set from the hub's cache or the hub; raises what its client raises."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(repository, file, repo_type="dataset", local_files_only=True))
    except LocalEntryNotFoundError:
        reach_hub()
        return Path(hf_hub_download(repository, file, repo_type="dataset"))


def reach_hub() -> None:
    """Raise immediately when the hub cannot be reached; its client retries for half a minute."""
    from huggingface_hub import constants

    if not constants.HF_HUB_OFFLINE:
        requests.head(constants.ENDPOINT, timeout=_TIMEOUT_S)
