"""Where things are and what the environment says: one pydantic-settings model.

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
    """Configuration of one installation; `home` is the root of everything that a run produces."""

    model_config = SettingsConfigDict(env_prefix="QUANT_ASSETS_", extra="ignore")

    home: Path = PROJECT_ROOT / ".quant_assets"
    data: Path = PROJECT_ROOT / "data"
    models_file: Path | None = None
    variants_file: Path | None = None
    listings_folder: Path | None = None
    model_roots: list[Path] = Field(default_factory=list)
    ui_hosts: list[Annotated[str, Field(pattern=r"^[A-Za-z0-9.:\[\]-]+$")]] = Field(
        default_factory=list
    )
    """Further names, with their ports, by which browsers may reach the UI, such as `box:3000`."""
    ui_any_user: bool = False
    """Let other users of this machine use the UI."""
    hf_token: SecretStr | None = Field(default=None, validation_alias="HF_TOKEN")

    @field_validator("home", mode="before")
    @classmethod
    def _databases_can_be_there(cls, home: str | Path) -> str | Path:
        """DuckDB, dbt and Dagster's SQLite take their files' paths apart at these signs."""
        path = os.fsencode(Path(home).absolute())
        if (
            re.search(rb"[?#\\]|%[0-9A-Fa-f]{2}", path)
            or path.decode("utf-8", "ignore").encode() != path
        ):
            raise InputError(
                f"The data root {path.decode('utf-8', 'backslashreplace')} cannot be used.",
                "No database can be in a folder whose path has a question mark, a hash, a backslash, "
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
    def serving_grid(self) -> Path:
        """Context lengths and batch sizes that the marts answer for."""
        return self.data / "serving_grid.yaml"

    @property
    def listings_drop_folder(self) -> Path:
        """Where users drop listing files."""
        return self.listings_folder or self.data / "listings"

    @property
    def artifacts(self) -> Path:
        """Finished artifacts, one folder a job."""
        return self.home / "artifacts"

    @property
    def sources(self) -> Path:
        """Source models made or downloaded by the project."""
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
        """The DuckDB file that people query."""
        return self.home / "warehouse" / "quant_assets.duckdb"

    @property
    def decision_report(self) -> Path:
        """The report of the whole project, without its endings (.html, .md)."""
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
        """Files that processes of this machine lock against each other."""
        return self.home / "locks"

    @property
    def cache(self) -> Path:
        """What can be deleted at any time, such as remembered file hashes."""
        return self.home / "cache"


@cache
def get_settings() -> Settings:
    """The settings of this process, read once."""
    return Settings()
