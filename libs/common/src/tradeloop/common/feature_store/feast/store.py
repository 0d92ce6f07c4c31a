"""`FeastFeatureStore`: the feature store over Feast.

A feature set is one feature view, and one feature service of all its features, named by the set's id, which changes
with its definition: two versions live side by side. Its entities are the universe and the instrument, its event
timestamp is the bar's close. Without other configuration the registry is a file, the online store SQLite, and history
Parquet under `<root>/offline/<feature set>/<universe>/`, read through Feast by `offline.PolarsOfflineStore`. Whoever
defines feature sets makes the root a Feast repository (`repository`).

One process at a time writes the history of a universe, as one consumer at a time owns its partition. Definitions may
be applied by several at once. What an online store forgets, such as a Redis that was flushed, the next bars bring back.
"""

from __future__ import annotations

import fcntl
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import pandas as pd
import polars as pl
from numpy.typing import NDArray
from redis.exceptions import RedisError
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from tradeloop.common.addresses import address
from tradeloop.common.clock import Clock
from tradeloop.common.feature_store.feast.dataset import CLOSE, COLUMNS, KEYS, append, covered_by, schema_of, write
from tradeloop.common.feature_store.feast.offline import PolarsOfflineStoreConfig
from tradeloop.common.feature_store.feast.repository import PROJECT, describe, redis_section, redis_trouble
from tradeloop.common.feature_store.port import (
    Covered,
    FeatureRows,
    FeatureSetUnknown,
    FeatureStoreUnavailable,
    check_age,
    check_names,
    latest_row,
)
from tradeloop.common.market import from_us, to_us
from tradeloop.common.sql.engine import cause, open_engine

# isort: split
# Feast comes after `offline`, which says why.
from feast import Entity, FeatureService, FeatureStore, FeatureView, Field, FileSource, RepoConfig, ValueType
from feast.errors import FeatureServiceNotFoundException, FeatureViewNotFoundException
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value
from feast.types import Float64, Int64, String


class FeastFeatureStore:
    """Features in Feast. `clock` stamps when history was written.

    `registry` and `online_store` are what the sections of those names are in a `feature_store.yaml`, for a registry
    in SQL and an online store in Redis. Connects on first use.
    """

    def __init__(
        self,
        root: Path,
        clock: Clock,
        *,
        registry: Mapping[str, Any] | None = None,
        online_store: Mapping[str, Any] | None = None,
    ) -> None:
        self._root, self._clock = root.resolve(), clock
        self._registry = dict(registry or {"path": str(self._root / "registry.pb")})
        self._online_store = dict(online_store or {"type": "sqlite", "path": str(self._root / "online.db")})
        if self._registry.get("registry_type") == "sql":
            self._registry = {"sqlalchemy_config_kwargs": {"pool_pre_ping": True}, **self._registry}
        if self._online_store.get("type") == "redis":
            self._online_store = redis_section(self._online_store)
        self._views: dict[str, FeatureView] = {}
        self._described = False

    def define(self, feature_set: str, names: Sequence[str]) -> None:
        if taken := sorted(set(names) & set(COLUMNS)):
            raise ValueError(f"feature set {feature_set}: {', '.join(taken)} is no name for a feature: rename it")
        with self._reaching():
            self._describe()
            try:
                view = self._view(feature_set)
            except FeatureSetUnknown:
                view = self._apply(feature_set, names)
            if _names(view) != tuple(names):
                raise ValueError(f"feature set {feature_set} has other features: give the changed set a new id")
            self._serve(view)

    def write_offline(self, feature_set: str, universe: str, rows: FeatureRows, covers: Covered | None = None) -> None:
        with self._reaching():
            check_names(feature_set, _names(self._view(feature_set)), rows)
            if not len(rows.time_us):
                return
            count = len(rows.instruments)
            time_us = np.repeat(rows.time_us, count)
            frame = pl.DataFrame(
                {
                    "universe": pl.repeat(universe, len(time_us), eager=True),
                    "instrument": np.tile(np.array(rows.instruments), len(rows.time_us)),
                    **{name: np.ravel(rows.values[:, :, f]) for f, name in enumerate(rows.names)},
                    CLOSE: time_us,
                    "event_timestamp": time_us,
                },
                schema=schema_of(rows.names, created=False),
            )
            append(self._dataset(feature_set) / universe, frame, covers, to_us(self._clock.now()))

    def covered(self, feature_set: str, universe: str) -> Sequence[Covered]:
        with self._reaching():
            self._view(feature_set)
            return covered_by(self._dataset(feature_set) / universe)

    def read_offline(
        self, feature_set: str, universe: str, instruments: Sequence[str], time_us: NDArray[np.int64]
    ) -> FeatureRows:
        with self._reaching():
            names = _names(self._view(feature_set))
            values = np.full((len(time_us) * len(instruments), len(names)), np.nan)
            if len(values):
                asked = pd.DataFrame(
                    {
                        "universe": universe,
                        "instrument": np.tile(np.array(instruments, dtype=object), len(time_us)),
                        "event_timestamp": pd.to_datetime(np.repeat(time_us, len(instruments)), unit="us", utc=True),
                    }
                )
                features = [f"{feature_set}:{name}" for name in names]
                joined = self._feast.get_historical_features(asked, features).to_arrow()
                for f, name in enumerate(names):
                    values[:, f] = joined[name].to_numpy()
            shape = (len(time_us), len(instruments), len(names))
            return FeatureRows(tuple(instruments), names, time_us, values.reshape(shape))

    def write_online(self, feature_set: str, universe: str, rows: FeatureRows) -> None:
        with self._reaching():
            view = self._view(feature_set)
            check_names(feature_set, _names(view), rows)
            if not len(rows.time_us):
                return
            close_us = int(rows.time_us[-1])
            keys = _keys(universe, rows.instruments)
            # Feast's Redis refuses a row of the same time too, its SQLite takes an older one: decide here.
            stored = self._online(view, keys, [CLOSE])
            batch: list[tuple[EntityKey, dict[str, Value], datetime, datetime | None]] = [
                (
                    key,
                    {name: Value(double_val=value) for name, value in zip(rows.names, values, strict=True)}
                    | {CLOSE: Value(int64_val=close_us)},
                    from_us(close_us),
                    None,
                )
                for key, values, old in zip(keys, rows.values[-1].tolist(), stored, strict=True)
                if old is None or old[CLOSE].int64_val <= close_us
            ]
            self._feast.provider.online_write_batch(self._feast.config, view, batch, None)

    def read_online(
        self, feature_set: str, universe: str, instruments: Sequence[str], since_us: int | None = None
    ) -> FeatureRows:
        with self._reaching():
            view = self._view(feature_set)
            names = _names(view)
            found = self._online(view, _keys(universe, instruments), [*names, CLOSE])
        rows = [
            None if row is None else (row[CLOSE].int64_val, [_number(row[name]) for name in names]) for row in found
        ]
        # Feast enforces no age: values of last year are as present as those of the last bar.
        return check_age(feature_set, universe, latest_row(instruments, names, rows), since_us)

    def check(self) -> None:
        with self._reaching():
            # Feast has no question but that for values; without any view there is nothing that could be away.
            for view in [*self._views.values(), *([] if self._views else self._feast.list_feature_views())][:1]:
                self._online(view, _keys("", ("",)), [CLOSE])

    def close(self) -> None:
        if "_feast" not in self.__dict__:
            return
        # Feast closes none of these by itself.
        for connection in ("_conn", "_client"):
            if opened := getattr(self._feast.provider.online_store, connection, None):
                opened.close()
        if engine := getattr(self._feast.registry, "write_engine", None):
            engine.dispose()

    @cached_property
    def _feast(self) -> FeatureStore:
        self._root.mkdir(parents=True, exist_ok=True)
        offline_store = PolarsOfflineStoreConfig()
        with self._alone():  # a registry in SQL creates its tables
            store = FeatureStore(
                repo_path=str(self._root),
                config=RepoConfig(
                    project=PROJECT,
                    registry=self._registry,
                    online_store=self._online_store,
                    offline_store=offline_store,
                    repo_path=self._root,
                ),
            )
            store.registry  # noqa: B018  opened now
            return store

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """While no other process changes the registry: Feast reads it, changes it and writes it without a lock."""
        url = str(self._registry["path"])
        if not url.startswith("postgresql"):
            with (self._root / "registry.lock").open("w") as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                yield
            return
        engine = open_engine(url, "feature registry")
        try:
            with engine.begin() as connection:
                lock = crc32(b"tradeloop feature registry")
                connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": lock})
                yield
        finally:
            engine.dispose()

    def _view(self, feature_set: str) -> FeatureView:
        if feature_set not in self._views:
            try:
                view = self._feast.get_feature_view(feature_set)
            except FeatureViewNotFoundException:
                raise FeatureSetUnknown(f"feature set {feature_set} is unknown: define it first") from None
            # Joins read the registry's cache, which may be older than the view.
            self._feast.refresh_registry()  # type: ignore[no-untyped-call]
            self._views[feature_set] = view
        return self._views[feature_set]

    def _apply(self, feature_set: str, names: Sequence[str]) -> FeatureView:
        """The view as it stands afterwards: another process may have been faster."""
        entities = [Entity(name=key, join_keys=[key], value_type=ValueType.STRING) for key in KEYS]
        view = FeatureView(
            name=feature_set,
            entities=entities,
            ttl=timedelta(0),
            schema=[
                *(Field(name=key, dtype=String) for key in KEYS),
                *(Field(name=name, dtype=Float64) for name in names),
                Field(name=CLOSE, dtype=Int64),
            ],
            source=FileSource(
                name=feature_set,
                path=f"offline/{feature_set}",
                timestamp_field="event_timestamp",
                created_timestamp_column="created_timestamp",
            ),
        )
        store = self._feast
        with self._alone():
            store.refresh_registry()  # type: ignore[no-untyped-call]
            with suppress(FeatureSetUnknown):
                return self._view(feature_set)
            # A dataset is never without a file, so that its columns are known before its first row.
            write(self._dataset(feature_set) / "empty.parquet", pl.DataFrame(schema=schema_of(names)))
            store.apply([*entities, view])
            return self._view(feature_set)

    def _describe(self) -> None:
        if not self._described:
            self._feast  # noqa: B018  makes the folder
            kind = self._feast.config.offline_store.type
            with self._alone():
                describe(self._root, self._registry, self._online_store, kind)
            self._described = True

    def _serve(self, view: FeatureView) -> None:
        """Make the feature service of a view, by which Feast's clients ask for all of its features."""
        try:
            self._feast.get_feature_service(view.name)
        except FeatureServiceNotFoundException:
            with self._alone():
                self._feast.refresh_registry()  # type: ignore[no-untyped-call]
                self._feast.apply(FeatureService(name=view.name, features=[view]))

    @contextmanager
    def _reaching(self) -> Iterator[None]:
        """Failures of files, databases and the network, as the port names them."""
        try:
            yield
        except (OSError, sqlite3.Error, RedisError, DBAPIError, PoolTimeout) as error:
            said = redis_trouble(self._online_store) if isinstance(error, RedisError) else ""
            raise FeatureStoreUnavailable(f"feature store {self._root}: {said or address(cause(error))}") from error

    def _dataset(self, feature_set: str) -> Path:
        return self._root / "offline" / feature_set

    def _online(self, view: FeatureView, keys: list[EntityKey], names: list[str]) -> list[dict[str, Value] | None]:
        """The row stored under each key; None for one that was never written. Feast adds to `names`."""
        found = self._feast.provider.online_read(self._feast.config, view, keys, names)
        return [row if row and row[CLOSE].HasField("int64_val") else None for _, row in found]


def _names(view: FeatureView) -> tuple[str, ...]:
    return tuple(feature.name for feature in view.features if feature.name != CLOSE)


def _number(value: Value) -> float:
    """Feast materialises NaN as a value that is not set, which would read as 0."""
    return value.double_val if value.HasField("double_val") else np.nan


def _keys(universe: str, instruments: Sequence[str]) -> list[EntityKey]:
    return [
        EntityKey(join_keys=KEYS, entity_values=[Value(string_val=universe), Value(string_val=instrument)])
        for instrument in instruments
    ]
