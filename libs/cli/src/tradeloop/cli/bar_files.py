"""Files of bars that nobody described: the instruments in them, and what was understood of each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

from tradeloop.cli.naming import NamedFile, digest, listed
from tradeloop.common.errors import UserError
from tradeloop.common.market import BarArrays, Calendar, Instrument, Timeframe
from tradeloop.common.market.calendars import gaps
from tradeloop.common.messages.ingest import Reading
from tradeloop.ingest.adapters.files import SeveralInstruments, read_bars
from tradeloop.ingest.ports import FileReport

_UNKNOWN: Mapping[str, Instrument] = MappingProxyType({})
_DAY_US = 86_400_000_000
_SATURDAY = 2
"""The number of a Saturday, in days since the epoch, which was a Thursday, modulo 7."""


@dataclass(frozen=True)
class ReadFile:
    """The bars of one instrument, and the file that they are from."""

    file: NamedFile
    instrument: Instrument
    bars: BarArrays
    report: FileReport


def reading_of(file: NamedFile, reading: Reading) -> Reading:
    """How a file is read, with those that join it."""
    return reading.model_copy(update={"more": tuple(str(one.absolute()) for one in file.more)})


def read_files(
    named: Sequence[NamedFile], name: str | None, reading: Reading, terms: Mapping[str, Instrument] = _UNKNOWN
) -> list[ReadFile]:
    """All instruments of the files. `name` is that of their universe, where it has one. Raises `UserError`.

    `terms` are what is known of instruments, by id; of others they are assumed, with the calendar that the bars show.
    """
    found = [each for one in named for each in _read_one(one, reading)]
    read = []
    for one, part, report in found:
        symbol = one.name or (name if len(found) == 1 else one.symbol if name else None)
        id_ = _id(symbol) if symbol else f"file:{one.called}-{digest(part, report.timeframe)}"
        instrument = terms.get(id_)
        if instrument is None:
            instrument = Instrument(id=id_, lot_size=1e-6, taker_bps=2.0, calendar=_calendar(part, report))
        holes = len(gaps(part.open_us, report.timeframe, instrument.calendar))
        read.append(ReadFile(one, instrument, replace(part, instruments=(id_,)), replace(report, gaps=holes)))
    return read


def _read_one(given: NamedFile, reading: Reading) -> Iterator[tuple[NamedFile, BarArrays, FileReport]]:
    """The bars of a file, or of each instrument in it where it holds several; one name cannot be that of all."""
    try:
        yield given, *read_bars(str(given.path), Instrument(id="file:bars"), reading=reading_of(given, reading))
    except SeveralInstruments as error:
        if given.name is not None:
            raise
        for symbol in error.symbols:
            more = tuple(Path(f"{one}#{symbol}") for one in given.more)
            try:
                yield from _read_one(
                    replace(given, path=Path(f"{given.path}#{symbol}"), symbol=_joined(given, symbol), more=more),
                    reading,
                )
            except SeveralInstruments:
                raise
            except UserError as wrong:
                raise UserError(
                    f"{wrong} ({error.column} names {len(error.symbols)} instruments: {listed(error.symbols)})"
                ) from wrong


def _joined(given: NamedFile, symbol: str) -> str:
    return symbol if given.symbol is None else f"{given.symbol}#{symbol}"


def _id(symbol: str) -> str:
    id_ = symbol if ":" in symbol else f"file:{symbol}"
    try:
        return Instrument(id=id_).id
    except ValueError:
        raise UserError(
            f"--bars {symbol}=...: give SYMBOL=FILE or venue:SYMBOL=FILE, of 64 characters at most"
        ) from None


def _calendar(bars: BarArrays, report: FileReport) -> Calendar:
    if report.timeframe is Timeframe.D1:
        return "sessions"
    if report.timeframe is Timeframe.W1:
        return "continuous"
    return "continuous" if (bars.open_us // _DAY_US % 7 == _SATURDAY).any() else "weekdays"
