"""Bars that `tradeloop backfill` fetched into a home, for the commands that take files of bars."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from contextlib import closing
from hashlib import blake2b
from pathlib import Path

from tradeloop.cli.naming import listed
from tradeloop.common.errors import UserError
from tradeloop.common.market import BAR_COLUMNS, Series

_STORE = "store:"


def stored_bars(values: Iterable[str] | None, home: Path) -> list[str]:
    """The values of `--bars`, with ID=FILE for each `store:VENUE:SYMBOL@TIMEFRAME`.

    The file is a copy of the home's stored bars, made anew each time. Raises `UserError` for bars that are not stored.
    """
    return [_written(value, home) if value.startswith(_STORE) else value for value in values or ()]


def _written(value: str, home: Path) -> str:
    from tradeloop.common.bar_store.sql import SqlBarStore
    from tradeloop.common.clock import SystemClock
    from tradeloop.common.market import EVER_US, Timeframe

    instrument, _, frame = value.removeprefix(_STORE).rpartition("@")
    if not re.fullmatch(r"[a-z0-9_\-]{1,32}:[A-Za-z0-9_./\-]{1,64}", instrument):
        raise UserError(f"{value}: give store:VENUE:SYMBOL@TIMEFRAME, such as store:binance:BTC/USDT@1m")
    if frame not in list(Timeframe):
        raise UserError(f"{value}: there is no timeframe {frame!r}: give one of {listed(Timeframe, 20)}")
    database = home / "bars.db"
    if not database.exists():
        raise UserError(f"{value}: {home} holds no bars: fetch them with `tradeloop backfill --home {home}`")
    with closing(SqlBarStore(f"sqlite:///{database}", SystemClock())) as store:
        bars = store.read([instrument], Timeframe(frame), -EVER_US, EVER_US)
    if not len(bars):
        raise UserError(f"{value}: {home} holds no {frame} bars of {instrument}: fetch them with `tradeloop backfill`")
    file = file_of(home / "fetched", instrument, frame)
    write_bars(file, bars.series(0), ("open", "high", "low", "close", "volume"))
    return f"{instrument}={file}"


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
    part = file.with_suffix(f".{os.getpid()}.part")
    table.write_parquet(part)
    part.replace(file)
