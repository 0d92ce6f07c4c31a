"""`PolarsOfflineStore`: the offline side of Feast over Parquet files and polars.

It plugs into Feast's documented extension point, `feast.infra.offline_stores.offline_store.OfflineStore`, because
the file stores that Feast ships join in memory that grows with the product of both sides: one `join_asof` per
feature view is linear. A Feast configuration selects it by
`offline_store: {type: tradeloop.common.feature_store.feast.offline.PolarsOfflineStore}`.

A feature view's `FileSource` names a Parquet file, or a directory of them at any depth. Times without a zone are
UTC. Nothing is known before it happened: a row counts from its event timestamp on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from datetime import datetime, timedelta
from pathlib import Path
from typing import IO, Any, Literal

import tradeloop.common.feature_store.feast.imports  # noqa: F401  before Feast

# isort: split
import pandas as pd
import polars as pl
import pyarrow as pa
from feast.data_source import DataSource
from feast.feature_view import DUMMY_ENTITY_ID, DUMMY_ENTITY_VAL, FeatureView
from feast.infra.offline_stores.file_source import FileSource
from feast.infra.offline_stores.offline_store import OfflineStore, RetrievalJob, RetrievalMetadata
from feast.infra.registry.base_registry import BaseRegistry
from feast.on_demand_feature_view import OnDemandFeatureView
from feast.repo_config import FeastConfigBaseModel, RepoConfig

_TIME = pl.Datetime("ns", "UTC")
_ROW, _AS_OF = "__row", "__as_of"


class PolarsOfflineStoreConfig(FeastConfigBaseModel):
    """Nothing to configure. Feast finds it by its name."""

    type: Literal["tradeloop.common.feature_store.feast.offline.PolarsOfflineStore"] = (
        "tradeloop.common.feature_store.feast.offline.PolarsOfflineStore"
    )


class PolarsRetrievalJob(RetrievalJob):
    """A query that runs when its result is asked for. Rows of a historical join keep the order they were asked in."""

    def __init__(
        self,
        evaluate: Callable[[], pa.Table],
        metadata: RetrievalMetadata | None = None,
        full_feature_names: bool = False,
        on_demand_feature_views: Sequence[OnDemandFeatureView] = (),
    ) -> None:
        self._evaluate, self._metadata = evaluate, metadata
        self._full_feature_names, self._on_demand = full_feature_names, list(on_demand_feature_views)

    @property
    def full_feature_names(self) -> bool:
        return self._full_feature_names

    @property
    def on_demand_feature_views(self) -> list[OnDemandFeatureView]:
        return self._on_demand

    @property
    def metadata(self) -> RetrievalMetadata | None:
        return self._metadata

    def _to_arrow_internal(self, timeout: int | None = None) -> pa.Table:
        return self._evaluate()

    def _to_df_internal(self, timeout: int | None = None) -> pd.DataFrame:
        frame: pd.DataFrame = self._evaluate().to_pandas()
        return frame


class PolarsOfflineStore(OfflineStore):
    """Point-in-time joins and scans. Reads only: whoever owns a dataset writes it."""

    @staticmethod
    def get_historical_features(
        config: RepoConfig,
        feature_views: list[FeatureView],
        feature_refs: list[str],
        entity_df: pd.DataFrame | str | None,
        registry: BaseRegistry,
        project: str,
        full_feature_names: bool = False,
        **kwargs: Any,
    ) -> RetrievalJob:
        """The newest feature row of each entity row, at or before its `event_timestamp`, no older than the TTL.

        Among rows of one time the one created last counts. A TTL of zero is none. Raises ValueError for entity
        rows that are no DataFrame, or lack `event_timestamp` or a join key.
        """
        if not isinstance(entity_df, pd.DataFrame):
            raise ValueError("PolarsOfflineStore joins onto a pandas DataFrame of entity rows: pass one as entity_df")
        requested = [(view, _features_of(view, feature_refs)) for view in feature_views]
        keys = {asked for view in feature_views for asked in _join_keys(view)}
        missing = sorted({"event_timestamp", *keys} - set(entity_df.columns))
        if missing:
            raise ValueError(f"entity rows lack the column {', '.join(missing)}: add it to entity_df")

        def evaluate() -> pa.Table:
            asked = pa.Table.from_pandas(entity_df, preserve_index=False)
            rows = pl.from_arrow(asked)
            assert isinstance(rows, pl.DataFrame)
            rows = (
                rows.with_columns(_utc("event_timestamp", rows.schema).alias(_AS_OF)).with_row_index(_ROW).sort(_AS_OF)
            )
            for view, features in requested:
                prefix = f"{_name(view)}__" if full_feature_names else ""
                found = _join(config, rows, view, features).rechunk()
                for feature in features:
                    asked = asked.append_column(prefix + feature, found[feature].to_arrow())
            return asked

        times = pd.to_datetime(entity_df["event_timestamp"], utc=True)
        metadata = RetrievalMetadata(
            features=feature_refs,
            keys=[name for name in entity_df.columns if name != "event_timestamp"],
            min_event_timestamp=times.min(),
            max_event_timestamp=times.max(),
        )
        on_demand = OnDemandFeatureView.get_requested_odfvs(feature_refs, project, registry)
        return PolarsRetrievalJob(evaluate, metadata, full_feature_names, on_demand)

    @staticmethod
    def pull_latest_from_table_or_query(
        config: RepoConfig,
        data_source: DataSource,
        join_key_columns: list[str],
        feature_name_columns: list[str],
        timestamp_field: str,
        created_timestamp_column: str | None,
        start_date: datetime,
        end_date: datetime,
    ) -> RetrievalJob:
        """The newest row of each entity with `start_date <= event timestamp <= end_date`; what is materialised."""

        def evaluate() -> pa.Table:
            order = [name for name in (timestamp_field, created_timestamp_column) if name]
            rows = _between(
                config,
                data_source,
                [*join_key_columns, *feature_name_columns, *order],
                timestamp_field,
                start_date,
                end_date,
            ).sort(order, maintain_order=True)
            if join_key_columns:
                rows = rows.unique(join_key_columns, keep="last", maintain_order=True)
            else:
                rows = rows.tail(1).with_columns(pl.lit(DUMMY_ENTITY_VAL).alias(DUMMY_ENTITY_ID))
            return _one_chunk(rows)

        return PolarsRetrievalJob(evaluate)

    @staticmethod
    def pull_all_from_table_or_query(
        config: RepoConfig,
        data_source: DataSource,
        join_key_columns: list[str],
        feature_name_columns: list[str],
        timestamp_field: str,
        created_timestamp_column: str | None = None,
        start_date: datetime | None = None,
        end_date: datetime | None = None,
    ) -> RetrievalJob:
        """Every row, superseded ones too, with `start_date <= event timestamp <= end_date`."""

        def evaluate() -> pa.Table:
            columns = [*join_key_columns, *feature_name_columns, timestamp_field]
            if created_timestamp_column:
                columns.append(created_timestamp_column)
            rows = _between(config, data_source, columns, timestamp_field, start_date, end_date)
            if not join_key_columns:
                rows = rows.with_columns(pl.lit(DUMMY_ENTITY_VAL).alias(DUMMY_ENTITY_ID))
            return _one_chunk(rows)

        return PolarsRetrievalJob(evaluate)


def _join(config: RepoConfig, rows: pl.DataFrame, view: FeatureView, features: list[str]) -> pl.DataFrame:
    """One feature view joined to entity rows sorted by time; its features, back in the order of `_ROW`."""
    source = _file_source(view.batch_source)
    in_source = {mapped: column for column, mapped in source.field_mapping.items()}
    keys = {asked: in_source.get(key, key) for asked, key in _join_keys(view).items()}
    time = in_source.get(source.timestamp_field, source.timestamp_field)
    created = in_source.get(source.created_timestamp_column, source.created_timestamp_column)
    # Numbered names: a feature may be called like a column of the entity rows, or like a join key.
    values = {f"__feature_{i}": in_source.get(name, name) for i, name in enumerate(features)}
    by = {f"__key_{i}": pair for i, pair in enumerate(keys.items())}

    def select(stored: pl.LazyFrame) -> pl.LazyFrame:
        schema = stored.collect_schema()
        order = ["__created"] if created else []
        return (
            stored.select(
                _utc(time, schema).alias("__time"),
                *(_utc(created, schema).alias(name) for name in order),
                *(pl.col(column).cast(rows.schema[asked]).alias(key) for key, (asked, column) in by.items()),
                *(pl.col(column).alias(name) for name, column in values.items()),
            )
            .filter(
                pl.col("__time") <= rows[_AS_OF].max(),
                *(pl.col(key).is_in(rows[asked].unique().implode()) for key, (asked, _) in by.items()),
            )
            # Stable: of rows equal in time and creation the one read last wins, and files are read by name.
            .sort("__time", *order, maintain_order=True)
        )

    ttl = view.ttl if isinstance(view.ttl, timedelta) and view.ttl else None
    joined = rows.select(_ROW, _AS_OF, *(pl.col(asked).alias(key) for key, (asked, _) in by.items())).join_asof(
        _read(config, source, select),
        left_on=_AS_OF,
        right_on="__time",
        by=list(by) or None,
        strategy="backward",  # takes the last of equal times
        tolerance=ttl,
        check_sortedness=False,  # polars cannot check it within groups, and would warn
    )
    return joined.sort(_ROW).select(pl.col(name).alias(feature) for name, feature in zip(values, features, strict=True))


def _between(
    config: RepoConfig,
    source: DataSource,
    columns: Sequence[str],
    time: str,
    start: datetime | None,
    end: datetime | None,
) -> pl.DataFrame:
    """Stored rows with `start <= time <= end`, in the order they are stored."""

    def select(stored: pl.LazyFrame) -> pl.LazyFrame:
        at = _utc(time, stored.collect_schema())
        rows = stored.select(columns)
        rows = rows if start is None else rows.filter(at >= start)
        return rows if end is None else rows.filter(at <= end)

    return _read(config, _file_source(source), select)


def _read(config: RepoConfig, source: FileSource, select: Callable[[pl.LazyFrame], pl.LazyFrame]) -> pl.DataFrame:
    """Run a query over a dataset as it is now: its files are opened first, so that none can go away meanwhile."""
    path = Path(FileSource.get_uri_for_file_path(config.repo_path, source.path))
    with ExitStack() as opened:
        files = _open(path, opened)
        return select(pl.scan_parquet(files)).collect()


def _open(path: Path, opened: ExitStack) -> list[IO[bytes]]:
    attempts = 10
    while True:
        paths = sorted(path.rglob("*.parquet")) if path.is_dir() else [path]
        try:
            return [opened.enter_context(each.open("rb")) for each in paths]
        except FileNotFoundError:  # its writer has just merged a file away: look again
            attempts -= 1
            if not attempts:
                raise


def _utc(column: str, schema: pl.Schema) -> pl.Expr:
    """A time column as nanoseconds in UTC, fine enough that no row's time is rounded down past another."""
    dtype = schema[column]
    zone = dtype.time_zone if isinstance(dtype, pl.Datetime) else None
    times = pl.col(column).cast(pl.Datetime("ns", zone))
    return times.dt.convert_time_zone("UTC") if zone else times.dt.replace_time_zone("UTC")


def _file_source(source: DataSource | None) -> FileSource:
    if not isinstance(source, FileSource):
        raise ValueError(f"PolarsOfflineStore reads Parquet files: {source} is no FileSource")
    return source


def _join_keys(view: FeatureView) -> dict[str, str]:
    """The names of each join key: in the entity rows, and in the view."""
    named = view.projection.join_key_map
    return {named.get(key.name, key.name): key.name for key in view.entity_columns if key.name != DUMMY_ENTITY_ID}


def _name(view: FeatureView) -> str:
    name: str = view.projection.name_to_use()  # type: ignore[no-untyped-call]
    return name


def _features_of(view: FeatureView, references: Sequence[str]) -> list[str]:
    """The features that `view:feature` references ask of a view, in their order."""
    split = (reference.replace("@latest:", ":", 1).split(":", 1) for reference in references)
    return [feature for name, feature in split if name == _name(view)]


def _one_chunk(rows: pl.DataFrame) -> pa.Table:
    """The table as Arrow, in one chunk: Feast materialises only the first."""
    return rows.rechunk().to_arrow().combine_chunks()
