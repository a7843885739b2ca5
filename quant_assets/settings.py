"""Paths and environment settings: one pydantic-settings model.

Every field can be set by an environment variable with the prefix `QUANT_ASSETS_`.
"""

import os
import re
from functools import cache
from pathlib import Path
from typing import Annotated

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from quant_assets.errors import InputError

PROJECT_ROOT = Path(__file__).resolve().parent.parent


class Settings(BaseSettings):
    """Configuration of one installation; runs write only below `home`, the data root."""

    model_config = SettingsConfigDict(env_prefix="QUANT_ASSETS_", extra="ignore")

    home: Path = PROJECT_ROOT / ".quant_assets"
    data: Path = PROJECT_ROOT / "data"
    models_file: Path | None = None
    variants_file: Path | None = None
    heuristics_file: Path | None = None
    listings_folder: Path | None = None
    model_roots: list[Path] = Field(default_factory=list)
    ui_hosts: list[Annotated[str, Field(pattern=r"^[A-Za-z0-9.:\[\]-]+$")]] = Field(
        default_factory=list
    )
    """Additional host names with ports under which browsers may reach the UI, such as `box:3000`."""
    ui_any_user: bool = False
    """Allow other users of this machine to use the UI."""
    hf_token: SecretStr | None = Field(default=None, validation_alias="HF_TOKEN")

    @field_validator("home", mode="before")
    @classmethod
    def _check_usable_by_databases(cls, home: str | Path) -> str | Path:
        """DuckDB, dbt and Dagster's SQLite misparse paths with these characters."""
        path = os.fsencode(Path(home).absolute())
        if (
            re.search(rb"[?#\\]|%[0-9A-Fa-f]{2}", path)
            or path.decode("utf-8", "ignore").encode() != path
        ):
            raise InputError(
                f"The data root {path.decode('utf-8', 'backslashreplace')} cannot be used.",
                "No database can be in a folder whose path contains a question mark, a hash, a backslash, "
                "a percent sign before two hexadecimal digits, or bytes that are not UTF-8.",
                "Set QUANT_ASSETS_HOME to a folder with another name.",
            )
        return home

    @property
    def models_yaml(self) -> Path:
        """The list of source models."""
        return self.models_file or self.data / "models.yaml"

    @property
    def variants_yaml(self) -> Path:
        """The list of benchmark variants."""
        return self.variants_file or self.data / "variants.yaml"

    @property
    def heuristics_yaml(self) -> Path:
        """The options of the heuristic strategies."""
        return self.heuristics_file or self.data / "heuristics.yaml"

    @property
    def serving_grid(self) -> Path:
        """Context lengths and batch sizes that the marts cover."""
        return self.data / "serving_grid.yaml"

    @property
    def listings_drop_folder(self) -> Path:
        """The folder into which users drop listing files."""
        return self.listings_folder or self.data / "listings"

    @property
    def artifacts(self) -> Path:
        """Finished artifacts, one folder per job."""
        return self.home / "artifacts"

    @property
    def sources(self) -> Path:
        """Source models downloaded or dequantized by the project."""
        return self.home / "models"

    @property
    def importance_matrices(self) -> Path:
        """Importance matrices of the source models (GGUF)."""
        return self.home / "importance_matrices"

    @property
    def results(self) -> Path:
        """Benchmark records (JSON)."""
        return self.home / "results"

    @property
    def listings(self) -> Path:
        """Snapshots of normalized and enriched listings (Parquet)."""
        return self.home / "listings"

    @property
    def warehouse(self) -> Path:
        """The DuckDB file for queries."""
        return self.home / "warehouse" / "quant_assets.duckdb"

    @property
    def decision_report(self) -> Path:
        """The decision report's path, without its extensions (.html, .md)."""
        return self.home / "reports" / "decision"

    @property
    def dagster_home(self) -> Path:
        """Dagster's own storage."""
        return self.home / "dagster"

    @property
    def dbt_target(self) -> Path:
        """dbt's compiled project and logs."""
        return self.home / "dbt"

    @property
    def locks(self) -> Path:
        """Lock files of this machine's processes."""
        return self.home / "locks"

    @property
    def cache(self) -> Path:
        """Files that can be deleted at any time, such as cached file hashes."""
        return self.home / "cache"


@cache
def get_settings() -> Settings:
    """The settings of this process, read once per process."""
    return Settings()
