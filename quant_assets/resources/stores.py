"""The data root as a Dagster resource: artifacts, results, source models and the warehouse."""

from pathlib import Path

import dagster as dg

from quant_assets.artifacts.store import ArtifactStore
from quant_assets.bench.results import ResultStore
from quant_assets.models.config import ModelConfig
from quant_assets.models.source import SourceModel
from quant_assets.quantize.conversion.float_source import float_source
from quant_assets.resources.worker_logs import worker_session
from quant_assets.settings import Settings
from quant_assets.warehouse.connection import Warehouse
from quant_assets.warehouse.rebuild import warehouse_of


class DataRoot(dg.ConfigurableResource[Settings]):
    """`home` holds everything that runs produce, `data` the files shipped with the project."""

    home: str
    data: str

    @property
    def settings(self) -> Settings:
        """The settings of the process, with this root."""
        return Settings(home=Path(self.home), data=Path(self.data))

    @property
    def artifacts(self) -> ArtifactStore:
        """The artifact store."""
        return ArtifactStore(self.settings.artifacts)

    @property
    def results(self) -> ResultStore:
        """The benchmark records."""
        return ResultStore(self.settings.results)

    @property
    def warehouse(self) -> Warehouse:
        """The DuckDB warehouse."""
        return warehouse_of(self.settings)

    def source(self, context: dg.AssetExecutionContext, model: ModelConfig) -> SourceModel:
        """The model's floating-point source; fetched or dequantized at first use."""
        with worker_session(context) as session:
            return float_source(model.source, model.name, self.settings, session=session)
