"""Small Markdown tables for the pages of assets."""

import pandas as pd

_CELL_CHARACTERS = 60


def preview_table(frame: pd.DataFrame) -> str:
    """A Markdown table of `frame`, with long cells cut and control characters shown as spaces."""

    def cell(value: object) -> str:
        text = f"{value:.4g}" if isinstance(value, float) else str(value)
        text = " ".join(text.split()).replace("|", "\\|")
        return text if len(text) <= _CELL_CHARACTERS else text[: _CELL_CHARACTERS - 1] + "…"

    header = [str(column) for column in frame.columns]
    lines = [header, ["---"] * len(header)]
    lines += [[cell(value) for value in row] for row in frame.itertuples(index=False)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
