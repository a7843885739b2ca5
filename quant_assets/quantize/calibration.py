"""The text that importance matrices are measured on by default."""

from pathlib import Path

from pydantic import BaseModel

from quant_assets.atomic_files import write_text_atomically
from quant_assets.models.identity import sha256_of

_REPOSITORY = "Salesforce/wikitext"
_FILE = "wikitext-2-raw-v1/train-00000-of-00001.parquet"
_HUB_TIMEOUT_S = 10


class CalibrationText(BaseModel):
    """A text by name and content; `warning` says why it is not the preferred one."""

    name: str
    path: Path
    sha256: str
    warning: str | None = None


def default_calibration_text(cache: Path) -> CalibrationText:
    """WikiText-2's training split from the hub, kept under `cache`; offline, Python's reference.

    Perplexity is measured on other text: WikiText-2's test split, or the reference's first half,
    of which this takes the second.
    """
    wikitext = cache / "texts" / "wikitext-2-train.txt"
    try:
        if not wikitext.exists():
            write_text_atomically(wikitext, _fetch_wikitext())
    except Exception as error:  # the hub's client raises many kinds when there is no network
        reference = cache / "texts" / "python-reference-second-half.txt"
        write_text_atomically(reference, _python_reference_second_half())
        return CalibrationText(
            name="python-reference-second-half",
            path=reference,
            sha256=sha256_of(reference),
            warning="WikiText-2 cannot be fetched, so Python's language reference is used "
            f"({type(error).__name__}).",
        )
    return CalibrationText(name="wikitext-2-train", path=wikitext, sha256=sha256_of(wikitext))


def _fetch_wikitext() -> str:
    import duckdb
    from huggingface_hub import hf_hub_download

    parquet = hf_hub_download(_REPOSITORY, _FILE, repo_type="dataset", etag_timeout=_HUB_TIMEOUT_S)
    with duckdb.connect() as connection:
        rows = connection.execute("select text from read_parquet(?)", [parquet]).fetchall()
    return "".join(row[0] for row in rows)


def _python_reference_second_half() -> str:
    from pydoc_data.topics import topics

    text = "\n\n".join(topics[name] for name in sorted(topics))
    return text[len(text) // 2 :]
