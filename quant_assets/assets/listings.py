"""GPU listings: live, raw, normalized, quarantined, enriched. Each stage is kept as Parquet."""

import datetime
from collections.abc import Iterator

import dagster as dg
from pydantic import Field

from quant_assets.assets.conventions import (
    LISTINGS_GROUP,
    LIVE_GROUP,
    OWNERS,
    WAREHOUSE_POOL,
)
from quant_assets.assets.previews import PREVIEW_ROWS, preview_table, table_metadata
from quant_assets.gpus.registry import load_registry
from quant_assets.listings.enrichment import enrich
from quant_assets.listings.live import fetch_live_listings
from quant_assets.listings.normalization import normalize
from quant_assets.listings.reading.files import read_raw
from quant_assets.listings.stages import NormalizedListings, RawListings
from quant_assets.listings.store import ListingStore, ListingTable
from quant_assets.resources.failures import clear_failures
from quant_assets.resources.stores import DataRoot
from quant_assets.warehouse.loads.listings import load_listing_table
from quant_assets.warehouse.price_history import record_prices

LIVE_CHECK = "offers_are_fresh"


class LiveConfig(dg.Config):
    """Providers by their gpuhunt names; an empty list means all that have a public catalog."""

    providers: list[str] = Field(default=[])


class EnrichmentConfig(dg.Config):
    """Bit widths of the capacity columns, and the GB of each GPU that models cannot use.

    An empty list or no number means those of `heuristics.yaml`.
    """

    bits: list[int] = Field(default=[])
    overhead_gb: float | None = None


def build_listings() -> list[dg.AssetsDefinition]:
    """The assets of all listing stages."""

    @dg.asset(
        key="live_listings",
        group_name=LIVE_GROUP,
        owners=OWNERS,
        kinds={"json"},
        check_specs=[
            dg.AssetCheckSpec(
                LIVE_CHECK,
                asset="live_listings",
                description="The last attempt fetched the offers, and they are recent.",
            )
        ],
        description=(
            "Offers of cloud providers with their hourly prices, fetched by the library gpuhunt "
            "(extra `live`). Without a network, the last fetched offers stay in use."
        ),
    )
    def live_listings(
        context: dg.AssetExecutionContext, config: LiveConfig, data_root: DataRoot
    ) -> dg.MaterializeResult:  # type: ignore[type-arg]  # Dagster knows the bare class only here
        with clear_failures():
            folder = ListingStore(data_root.settings.listings).live_folder
            live = fetch_live_listings(folder, providers=config.providers or None)
        if live.warning:
            context.log.warning(live.warning)
        return dg.MaterializeResult(
            metadata={
                "offers": live.offers,
                "fetched at": live.fetched_at.isoformat(timespec="seconds"),
                "file": dg.MetadataValue.path(live.path),
                "warning": live.warning or "none",
            },
            check_results=[
                dg.AssetCheckResult(
                    passed=live.is_fresh(),
                    check_name=LIVE_CHECK,
                    metadata={"fetched at": live.fetched_at.isoformat(timespec="seconds")},
                )
            ],
        )

    @dg.asset(
        key="raw_listings",
        deps=["live_listings"],
        group_name=LISTINGS_GROUP,
        owners=OWNERS,
        kinds={"csv"},
        pool=WAREHOUSE_POOL,
        description=(
            "Offers as sellers wrote them, from the files of the drop folder and from live_listings, "
            "if fetched. Those are optional: confirm where the UI warns that they are not "
            "materialized. Files with unchanged content are not parsed again."
        ),
    )
    def raw_listings(data_root: DataRoot) -> dg.MaterializeResult[None]:
        settings = data_root.settings
        store = ListingStore(settings.listings)
        with clear_failures():
            live = store.live_folder
            folders = [settings.listings_drop_folder, *([live] if live.exists() else [])]
            raw = read_raw(folders, cache=store.parse_cache)
            store.save(raw)
            table = _load(data_root, "raw_listings")
        return dg.MaterializeResult(
            metadata={
                **table,
                "rows that could not be read": raw.counts["rejected"],
                "files": len(raw.files),
                "files parsed": sum(file.parsed for file in raw.files),
                "folder": dg.MetadataValue.path(settings.listings_drop_folder),
            }
        )

    @dg.multi_asset(
        name="normalize_listings",
        specs=[
            dg.AssetSpec(
                "normalized_listings",
                deps=["raw_listings"],
                group_name=LISTINGS_GROUP,
                owners=OWNERS,
                kinds={"parquet"},
                description="Offers with their GPU and price; duplicates are collapsed and counted.",
            ),
            dg.AssetSpec(
                "quarantined_listings",
                deps=["raw_listings"],
                group_name=LISTINGS_GROUP,
                owners=OWNERS,
                kinds={"parquet", "duckdb"},
                description="Offers that match no GPU or more than one, each with its reason.",
            ),
        ],
        pool=WAREHOUSE_POOL,
    )
    def normalize_listings(data_root: DataRoot) -> Iterator[dg.MaterializeResult[None]]:
        store = ListingStore(data_root.settings.listings)
        with clear_failures():
            normalized = normalize(store.load(RawListings), load_registry())
            store.save(normalized)
            table = _load(data_root, "quarantined_listings")
        counts = normalized.counts
        preview = normalized.frame(PREVIEW_ROWS)
        columns = ["title", "canonical_name", "match_type", "match_score", "gpu_count", "price_usd"]
        yield dg.MaterializeResult(
            asset_key="normalized_listings",
            metadata={
                "dagster/row_count": counts["normalized"],
                "duplicates collapsed": counts["collapsed_duplicates"],
                "match rate": normalized.match_rate or 0.0,
                "preview": dg.MetadataValue.md(preview_table(preview[columns])),
            },
        )
        reasons = {
            f"reason: {reason}": number for reason, number in normalized.quarantine_counts.items()
        }
        yield dg.MaterializeResult(asset_key="quarantined_listings", metadata={**table, **reasons})

    @dg.asset(
        key="enriched_listings",
        deps=["normalized_listings"],
        group_name=LISTINGS_GROUP,
        owners=OWNERS,
        kinds={"parquet", "duckdb"},
        pool=WAREHOUSE_POOL,
        description=(
            "Offers with the memory, bandwidth and power of their GPU, and quantization_capacity: "
            "how many 7B, 13B and 70B models fit one GPU by the simple rule."
        ),
    )
    def enriched_listings(
        config: EnrichmentConfig, data_root: DataRoot
    ) -> dg.MaterializeResult[None]:
        store = ListingStore(data_root.settings.listings)
        with clear_failures():
            enriched = enrich(
                store.load(NormalizedListings),
                load_registry(),
                bits=config.bits or None,
                overhead_gb=config.overhead_gb,
            )
            store.save(enriched)
            table = _load(data_root, "enriched_listings")
            changed = record_prices(
                enriched, store.price_history, datetime.datetime.now(datetime.UTC)
            )
        frame = enriched.frame()
        return dg.MaterializeResult(
            metadata={
                **table,
                "prices changed": changed is not None,
                "cards": int(frame["canonical_name"].nunique()),
                "offers to buy": int((frame["price_kind"] == "purchase").sum()),
                "offers to rent": int((frame["price_kind"] == "hourly").sum()),
            }
        )

    return [live_listings, raw_listings, normalize_listings, enriched_listings]


def _load(data_root: DataRoot, table: ListingTable) -> dict[str, dg.MetadataValue]:
    snapshot = ListingStore(data_root.settings.listings).snapshot(table)
    with data_root.warehouse.write() as connection:
        load_listing_table(connection, table, snapshot)
        return table_metadata(connection, f"raw.{table}")
