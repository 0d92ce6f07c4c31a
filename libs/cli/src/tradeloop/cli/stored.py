"""Stored bars, of a home or of a running stack: for `tradeloop bars`, and as files for commands that take files."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import typer

from tradeloop.cli.naming import listed
from tradeloop.common.errors import UserError
from tradeloop.common.market import BAR_COLUMNS, Series

if TYPE_CHECKING:
    import polars as pl

    from tradeloop.common.bar_store.sql import SqlBarStore
    from tradeloop.common.market import BarArrays, Days, Instrument, Timeframe, Universe
    from tradeloop.ingest.adapters.sql_fetched import SqlFetched

_STORE = "store:"
ASSUMED = "continuous"
"""The calendar of an instrument whose terms nobody recorded."""


class Chosen(NamedTuple):
    """The bars that a command was given, as files."""

    values: tuple[str, ...]
    """The values of `--bars`, with ID=FILE for each `store:VENUE:SYMBOL@TIMEFRAME`."""
    terms: Mapping[str, Instrument]
    """The terms of those instruments as their venues told them last, by id, where they did."""


def stored_bars(values: Iterable[str] | None, home: Path, *, of_home: bool = False) -> Chosen:
    """The bars that were given, stored ones as a copy in the home that is made anew each time.

    They are the running stack's where the settings name its database, as for `tradeloop bars`, unless `of_home`; else
    the home's. Says on standard error which they are. Raises `UserError` for bars that are not stored.
    """
    files: list[str] = []
    terms: dict[str, Instrument] = {}
    for value in values or ():
        if value.startswith(_STORE):
            id_, file, told = _written(value, home, None if of_home else _database_of_stack())
            files.append(f"{id_}={file}")
            terms |= {} if told is None else {id_: told}
        else:
            files.append(value)
    return Chosen(tuple(files), terms)


@dataclass
class StoredBars:
    """An open store of bars, and what is known of its instruments."""

    place: str
    """Where it is, for people; without a password."""
    store: SqlBarStore
    _fetched: SqlFetched
    _home: Path | None
    _calendars: dict[str, str] | None = field(default=None, init=False)

    def calendar(self, instrument: str) -> str | None:
        """The calendar of an instrument as a venue told it last, or else as a universe of the home has it.

        None where neither knows it. Raises `Unavailable`.
        """
        if (terms := self.terms(instrument)) is not None:
            return terms.calendar
        if self._calendars is None:
            self._calendars = {} if self._home is None else _of_universes(self._home)
        return self._calendars.get(instrument)

    def terms(self, instrument: str) -> Instrument | None:
        """The terms of an instrument as a venue told them last, if one did. Raises `Unavailable`."""
        told = self._fetched.terms(instrument)
        return told[-1][1] if told else None

    @property
    def may_change(self) -> bool:
        """Whether it is a home, whose bars a command may change."""
        return self._home is not None

    def longer(self, instrument: str, base: Timeframe) -> dict[Timeframe, Days]:
        """The timeframes that universes of the home make of an instrument's bars, and where days begin there."""
        universes = [] if self._home is None else _universes(self._home)
        of_it = [one for one in universes if instrument in one.ids and one.timeframe is base]
        return {longer: one.days for one in of_it for longer in one.higher_timeframes}

    def read(self, instrument: str, timeframe: Timeframe, start_us: int, end_us: int) -> BarArrays:
        """The bars of one instrument. Raises `UserError`, with what there is, where there are none."""
        bars = self.store.read([instrument], timeframe, start_us, end_us)
        if not len(bars):
            there = [f"{one.instrument}@{one.timeframe}" for one in self.store.series()]
            known = f"it holds {listed(there)}" if there else "it holds no bars at all"
            within = " in this range" if f"{instrument}@{timeframe}" in there else ""
            raise UserError(f"{self.place} holds no {timeframe} bars of {instrument}{within}: {known}")
        return bars


@contextmanager
def opened(home: Path, database_url: str | None) -> Iterator[StoredBars]:
    """The bars of a database, or else of a home. Raises `UserError` where there are none."""
    from tradeloop.common.bar_store.sql import SqlBarStore
    from tradeloop.common.clock import SystemClock
    from tradeloop.ingest.adapters.sql_fetched import SqlFetched

    url = database_url or f"sqlite:///{home / 'bars.db'}"
    file = url.removeprefix("sqlite:///").partition("?")[0]
    if url.startswith("sqlite:///") and not Path(file).exists():  # it would be made
        place = f"there is no file {file}" if database_url else f"{home} holds no bars"
        raise UserError(
            f"{place}: fetch them with `tradeloop backfill`, or name another --home, or the "
            "database of a running stack in TRADELOOP_DATABASE_URL"
        )
    with ExitStack() as stack:
        store = stack.enter_context(closing(SqlBarStore(url, SystemClock())))
        fetched = stack.enter_context(closing(SqlFetched(url, SystemClock())))
        yield StoredBars(fetched.address, store, fetched, None if database_url else home)


def table_of(bars: BarArrays) -> pl.DataFrame:
    """The bars of one instrument as a table: `time` (the open, UTC), the prices, and what else is known of them."""
    import polars as pl

    columns = {name: column[:, 0] for name, column in bars.columns().items()}
    table = pl.DataFrame({"time": bars.open_us, **columns}).with_columns(
        pl.col("time").cast(pl.Datetime("us", "UTC")), pl.col(list(columns)).fill_nan(None)
    )
    told_nothing = [name for name in ("volume", *bars.extra) if table[name].null_count() == len(table)]
    if not (table["funding_rate"].fill_null(0.0) != 0.0).any():
        told_nothing.append("funding_rate")
    return table.drop(told_nothing)


def new_file(file: Path) -> None:
    """Raise `UserError` for a file that cannot be written anew as a table."""
    if file.suffix not in (".csv", ".parquet"):
        raise UserError(f"--out {file}: give a file whose name ends in .csv or .parquet")
    if file.exists():
        raise UserError(f"--out {file}: it exists already: give another name, or remove it")
    if not file.parent.is_dir():
        raise UserError(f"--out {file}: there is no folder {file.parent}")


def write_table(table: pl.DataFrame, file: Path) -> None:
    """Write a file, `.parquet` or `.csv`, as a whole or not at all. A CSV's times are ISO 8601 with their zone."""
    part = file.with_name(f"{file.name}.{os.getpid()}.part")
    try:
        if file.suffix == ".parquet":
            table.write_parquet(part)
        else:
            table.write_csv(part, datetime_format="%Y-%m-%dT%H:%M:%S%.fZ")
        part.replace(file)
    finally:
        part.unlink(missing_ok=True)


def _universes(home: Path) -> list[Universe]:
    from tradeloop.cli.homes import known_universe

    names = sorted(path.stem for path in (home / "universes").glob("*.json"))
    return [universe for name in names if (universe := known_universe(home, name)) is not None]


def _of_universes(home: Path) -> dict[str, str]:
    return {instrument.id: instrument.calendar for one in _universes(home) for instrument in one.instruments}


def _database_of_stack() -> str | None:
    """The database of the running stack's bars; None where the settings do not say."""
    from tradeloop.cli.client.settings import load_settings

    settings = load_settings()
    return settings.database_url.get_secret_value() if "database_url" in settings.model_fields_set else None


def _written(value: str, home: Path, database_url: str | None) -> tuple[str, Path, Instrument | None]:
    from tradeloop.common.market import EVER_US, Timeframe

    instrument, _, frame = value.removeprefix(_STORE).rpartition("@")
    if not re.fullmatch(r"[a-z0-9_\-]{1,32}:[A-Za-z0-9_./\-]{1,64}", instrument):
        raise UserError(f"{value}: give store:VENUE:SYMBOL@TIMEFRAME, such as store:binance:BTC/USDT@1m")
    if frame not in list(Timeframe):
        raise UserError(f"{value}: there is no timeframe {frame!r}: give one of {listed(Timeframe, 20)}")
    with opened(home, database_url) as bars:
        table = table_of(bars.read(instrument, Timeframe(frame), -EVER_US, EVER_US))
        terms, place = bars.terms(instrument), bars.place
    file = file_of(home / "fetched", instrument, frame)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_table(table, file)
    typer.echo(f"{value.removeprefix(_STORE)}: {len(table):,} bars, out of {place}", err=True)
    return instrument, file, terms


def file_of(folder: Path, instrument: str, timeframe: str) -> Path:
    """The file of an instrument's bars; its letters keep ids apart that differ in signs alone."""
    letters = blake2b(instrument.encode(), digest_size=3).hexdigest()
    return folder / f"{re.sub('[^A-Za-z0-9]+', '-', instrument)}-{letters}-{timeframe}.parquet"


def write_bars(file: Path, bars: Series, columns: Iterable[str] = BAR_COLUMNS) -> None:
    """Write bars of one instrument as a Parquet file that ingest reads, in the place of an earlier one."""
    import polars as pl

    table = pl.DataFrame({"time": bars["open_us"], **{name: bars[name] for name in columns}}).with_columns(
        pl.col("time").cast(pl.Datetime("us", "UTC")), pl.col("volume").fill_nan(None)
    )
    if table["volume"].null_count() == len(table):
        table = table.drop("volume")
    file.parent.mkdir(parents=True, exist_ok=True)
    write_table(table, file)
