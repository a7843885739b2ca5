"""Fixed, dated exchange rates, so that a conversion to US dollars is reproducible."""

from datetime import date
from pathlib import Path

import yaml
from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, ValidationError

from quant_assets.errors import InputError
from quant_assets.settings import get_settings


class ExchangeRates(BaseModel):
    """Reference rates of one day, in units of each currency per euro."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    date: date
    source: str
    per_euro: dict[str, PositiveFloat] = Field(min_length=1)

    def usd(self, amount: float, currency: str) -> float:
        """`amount` of `currency` (ISO 4217 code) in US dollars; raises `KeyError` if unknown."""
        return amount if currency == "USD" else amount * self.usd_for_one(currency)

    def usd_for_one(self, currency: str) -> float:
        """US dollars per unit of `currency`; raises `KeyError` for an unknown currency."""
        return self.per_euro["USD"] / self.per_euro[currency]


def load_exchange_rates(path: Path | None = None) -> ExchangeRates:
    """The rates in `path` (default: `exchange_rates.yaml` of the data folder).

    Raises `InputError` when the file is missing or not valid.
    """
    file = path or get_settings().data / "exchange_rates.yaml"
    try:
        return ExchangeRates.model_validate(yaml.safe_load(file.read_text(encoding="utf-8")))
    except OSError as error:
        why = f"{error.strerror}."
    except (yaml.YAMLError, ValidationError) as error:
        why = " ".join(str(error).split())
    raise InputError(
        f"The exchange rates in {file} cannot be used.", why, "Restore or correct the file."
    )
