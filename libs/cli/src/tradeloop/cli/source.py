"""The bars that a command works on: files of the user's, or the one that is installed with Tradeloop."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import files
from pathlib import Path

import numpy as np

from tradeloop.cli.naming import NamedFile, check_name, digest, digest_of_all, listed, name_of, named_files, symbol_of
from tradeloop.cli.span import Span, span_us
from tradeloop.common.arrays import Bools, Floats
from tradeloop.common.errors import UserError
from tradeloop.common.market import (
    BarArrays,
    Calendar,
    Instrument,
    Timeframe,
    TimeRange,
    Universe,
    from_us,
    overlaps,
    resample,
)
from tradeloop.common.market.calendars import gaps
from tradeloop.common.portfolio import Portfolio
from tradeloop.common.strategy import Strategy
from tradeloop.ingest.adapters.files import SeveralInstruments, read_bars
from tradeloop.ingest.domain import together
from tradeloop.ingest.ports import FileReport

_PACKAGE, _FILE = "gym-anytrading", "FOREX_EURUSD_1H_ASK.csv"
_DAY_US = 86_400_000_000
_SATURDAY = 2
"""The number of a Saturday, in days since the epoch, which was a Thursday, modulo 7."""
EVERYTHING: Span = (None, None)


@dataclass(frozen=True)
class Source:
    """Bars of a universe, checked, and what they are called."""

    files: Mapping[str, Path]
    """The file of each instrument, by its id."""
    name: str
    """The name that people know the bars by."""
    history: BarArrays
    """All bars of the files."""
    first: int
    stop: int
    """The chosen ones among them: rows `first` to `stop` (exclusive)."""
    reports: Mapping[str, FileReport]
    """The findings in each file, by the instrument's id."""
    universe: Universe
    notes: tuple[str, ...] = ()
    """Lines for people about what was left out of a folder."""
    given: Portfolio | None = None
    """The portfolio that the bars were opened for."""
    also: tuple[Source, ...] = ()
    """More markets that a training learns from, and nothing else looks at."""

    @property
    def path(self) -> Path:
        """The first file."""
        return next(iter(self.files.values()))

    @property
    def markets(self) -> tuple[Source, ...]:
        """All markets, its own first."""
        return (self, *self.also)

    @property
    def bars(self) -> BarArrays:
        """The chosen bars."""
        return self.history.slice(self.first, self.stop)

    def portfolio(self, strategy: Strategy) -> Portfolio:
        """The given portfolio, or a paper one of the platform's default capital, costs and limits."""
        return self.given or Portfolio(name=self.universe.name, universe=self.universe, strategy=strategy.name)

    def features(self, strategy: Strategy) -> Floats:
        """The strategy's features (T, A, F) over the chosen bars, computed in one go; earlier bars warm them up."""
        base = self.universe.timeframe
        bars = {base: self.history}
        for timeframe in strategy.feature_set.timeframes:
            bars[timeframe] = resample(self.history, base, timeframe)
        return strategy.feature_set.compute(bars, base).values[self.first : self.stop]

    def range(self, start: int, stop: int) -> TimeRange:
        """The open times of the chosen bars `start` to `stop` (exclusive)."""
        return TimeRange(
            start=from_us(self.history.open_us[self.first + start]),
            end=from_us(self.history.close_us[self.first + stop - 1]),
        )


def open_source(
    bars: Sequence[str],
    strategy: Strategy,
    portfolio: Portfolio | None = None,
    *,
    name: str | None = None,
    span: Span = EVERYTHING,
    option: str = "--bars",
) -> Source:
    """Read and check files of bars; the installed one where none is named. `bars` are the values of `option`.

    A portfolio says which instruments the bars are of. Without one, what has a name gets it as its id, and what has
    none an id that another content changes; `name` names the universe. Raises `UserError`, one line that names the
    file, the row and the remedy.
    """
    start_us, end_us = span_us(span)
    named, notes = named_files(bars, option)
    label = listed((one.path.name for one in named), 3)
    if not named:
        named = [NamedFile(_installed(), "EUR/USD")]
        label = f"EUR/USD hourly, from the package {_PACKAGE} (MIT)"
    if portfolio is None:
        paths, read, universe = _read(named, name and check_name(name), strategy)
    else:
        if name not in (None, portfolio.universe.name):
            raise UserError(
                f"portfolio {portfolio.name} trades universe {portfolio.universe.name}, --name says {name}: leave it "
                "out"
            )
        universe = portfolio.universe
        paths = _assigned(named, universe)
        read = [read_bars(str(paths[one.id]), one, universe.timeframe) for one in universe.instruments]
    _check(strategy, universe, label)
    for part, report in read:
        if strategy.feature_set.requires_volume and np.isnan(part.volume).any():
            raise UserError(
                f"{report.path}: strategy {strategy.name} has a feature that needs volumes and the file lacks them: "
                "choose another strategy, or a file with a volume column"
            )
    history = together(universe.timeframe, [part for part, _ in read])
    if early := np.flatnonzero(overlaps(np.diff(history.open_us), universe.timeframe)).tolist():
        row = early[0] + 1
        one, two = (history.instruments[int(history.present[at].argmax())] for at in (row - 1, row))
        raise UserError(
            f"{label}: the {universe.timeframe} bar of {two} that opens {from_us(history.open_us[row]).isoformat()} "
            f"overlaps that of {one} that opens {from_us(history.open_us[row - 1]).isoformat()}: bars that are traded "
            "together open at the same times"
        )
    first, stop = (int(row) for row in np.searchsorted(history.open_us, (start_us, end_us)))
    if first == stop:
        raise UserError(
            f"{label}: no bar opens in the range of --from and --to: the first opens at "
            f"{from_us(history.open_us[0]).isoformat()}, the last at {from_us(history.open_us[-1]).isoformat()}"
        )
    if len(read) > 1 and not history.present[first:stop].all(axis=1).any():
        raise UserError(
            f"{label}: there is no bar at which all {len(read)} instruments have one: give files that overlap"
        )
    return Source(
        files={one.id: paths[one.id].absolute() for one in universe.instruments},
        name=label,
        history=history,
        first=first,
        stop=stop,
        reports={one.id: report for one, (_, report) in zip(universe.instruments, read, strict=True)},
        universe=universe,
        notes=tuple(notes),
        given=portfolio,
    )


_Read = list[tuple[BarArrays, FileReport]]


def _read(named: Sequence[NamedFile], name: str | None, strategy: Strategy) -> tuple[dict[str, Path], _Read, Universe]:
    """Files whose instruments nobody described: ids, timeframe and calendars as names and rows show them."""
    parts: _Read = []
    instruments: list[Instrument] = []
    found = [each for one in named for each in _read_one(one)]
    named = [one for one, _, _ in found]
    for one, part, report in found:
        if parts and report.timeframe is not (known := parts[0][1]).timeframe:
            raise UserError(
                f"{known.path} has bars of {known.timeframe} and {one.path} of {report.timeframe}: "
                "give files of one timeframe"
            )
        symbol = one.name or (name if len(named) == 1 else one.symbol if name else None)
        id_ = _id(symbol) if symbol else f"file:{one.called}-{digest(part, report.timeframe)}"
        instrument = Instrument(id=id_, lot_size=1e-6, taker_bps=2.0, calendar=_calendar(part, report))
        holes = len(gaps(part.open_us, report.timeframe, instrument.calendar))
        instruments.append(instrument)
        parts.append((replace(part, instruments=(id_,)), replace(report, gaps=holes)))
    paths = {instrument.id: one.path for instrument, one in zip(instruments, named, strict=True)}
    if len(paths) < len(named):
        raise UserError(f"{listed(str(one.path) for one in named)}: two of them hold the same bars: give each once")
    universe = Universe(
        name=name or _universe_name(named, parts),
        instruments=tuple(instruments),
        timeframe=parts[0][1].timeframe,
        higher_timeframes=(),
    )
    _check_timeframes(strategy, universe.timeframe, listed((one.path.name for one in named), 3))
    higher = strategy.feature_set.timeframes
    return paths, parts, universe.model_copy(update={"higher_timeframes": higher})


def _read_one(given: NamedFile) -> Iterator[tuple[NamedFile, BarArrays, FileReport]]:
    """The bars of a file, or of each instrument in it where it holds several; one name cannot be that of all."""
    try:
        yield given, *read_bars(str(given.path), Instrument(id="file:bars"))
    except SeveralInstruments as error:
        if given.name is not None:
            raise
        for symbol in error.symbols:
            try:
                yield from _read_one(replace(given, path=Path(f"{given.path}#{symbol}"), symbol=symbol))
            except UserError as wrong:
                raise UserError(
                    f"{wrong} (column {error.column} names {len(error.symbols)} instruments: {listed(error.symbols)})"
                ) from wrong


def _id(symbol: str) -> str:
    id_ = symbol if ":" in symbol else f"file:{symbol}"
    try:
        return Instrument(id=id_).id
    except ValueError:
        raise UserError(
            f"--bars {symbol}=...: give SYMBOL=FILE or venue:SYMBOL=FILE, of 64 characters at most"
        ) from None


def _universe_name(named: Sequence[NamedFile], parts: _Read) -> str:
    """The names that were given, or those of the files and a digest of what is in them."""
    base = name_of("-".join(dict.fromkeys(one.name or symbol_of(one.file) for one in named)))
    if all(one.name for one in named):
        return base
    contents = [digest(part, report.timeframe) for part, report in parts]
    return f"{base}-{contents[0] if len(contents) == 1 else digest_of_all(contents)}"


def _calendar(bars: BarArrays, report: FileReport) -> Calendar:
    if report.timeframe is Timeframe.D1:
        return "sessions"
    if report.timeframe is Timeframe.W1:
        return "continuous"
    return "continuous" if (bars.open_us // _DAY_US % 7 == _SATURDAY).any() else "weekdays"


def _assigned(named: Sequence[NamedFile], universe: Universe) -> dict[str, Path]:
    """The file of each instrument of a portfolio: the only one, or the one that has its name."""
    if len(named) == len(universe.ids) == 1 and named[0].name is None:
        return {universe.ids[0]: named[0].path}
    found: dict[str, Path] = {}
    for one in named:
        called = one.name or one.called
        matches = [id_ for id_ in universe.ids if called == id_ or _alike(called, id_.partition(":")[2])]
        if len(matches) != 1 or matches[0] in found:
            raise UserError(
                f"--bars {one.path}: universe {universe.name} has {listed(universe.ids)}, and which of them "
                f"{called} is cannot be told: give ID={one.path}"
            )
        found[matches[0]] = one.path
    if missing := [id_ for id_ in universe.ids if id_ not in found]:
        raise UserError(
            f"universe {universe.name} has {len(universe.ids)} instruments and --bars {len(found)} of them: "
            f"add {listed(f'--bars {id_}=FILE' for id_ in missing)}"
        )
    return found


def _alike(one: str, other: str) -> bool:
    """Whether two symbols differ at most in case and signs, as a file's name must: BTC-USDT and BTC/USDT."""
    return name_of(one, len(one)) == name_of(other, len(other))


def _check(strategy: Strategy, universe: Universe, label: str) -> None:
    """Raise `UserError` where a strategy cannot work on a universe."""
    _check_timeframes(strategy, universe.timeframe, label)
    if missing := [t for t in strategy.feature_set.timeframes if t not in universe.higher_timeframes]:
        raise UserError(
            f"strategy {strategy.name} needs {', '.join(missing)} bars, which universe {universe.name} does not have: "
            "add them to its higher_timeframes"
        )


def _check_timeframes(strategy: Strategy, base: Timeframe, label: str) -> None:
    """Raise `UserError` where a feature's timeframe cannot be made of the bars."""
    if wrong := [t for t in strategy.feature_set.timeframes if t.us <= base.us or t.us % base.us]:
        raise UserError(
            f"strategy {strategy.name} has features on {', '.join(wrong)}, and {label} has bars of {base}: they must "
            "be longer than the bars, and a multiple of them; choose another strategy, or shorter bars"
        )


def split(source: Source, strategy: Strategy, train_share: float = 0.7) -> int:
    """How many of the bars are for training; the rest is traded. Raises `UserError` for too few."""
    total = len(source.bars)
    train = int(total * train_share)
    needed = strategy.window + 2
    if total - train < needed:
        raise UserError(
            f"{listed(map(str, source.files.values()), 3)}: {total} bars leave {total - train} to trade after training "
            f"on {train}, strategy {strategy.name} needs {needed} for its window of {strategy.window}: give more bars"
        )
    if source.bars.open_us[train] < 0:
        raise UserError(
            f"{listed(map(str, source.files.values()), 3)}: trading would begin at "
            f"{from_us(source.bars.open_us[train]):%Y-%m-%d %H:%M} UTC, and the services keep books from 1970 on: "
            "choose later bars with --from, or use `tradeloop train` and `backtest`, which take any time"
        )
    return train


def check_length(source: Source, strategy: Strategy, train: int) -> None:
    """Raise `UserError` where the features of the first `train` bars have too few values for a single episode."""
    base, needed = source.universe.timeframe, strategy.window + 2
    longest = max((one.history + 1) * (one.timeframe or base).us // base.us for one in strategy.features)
    if train + source.first >= longest + needed:
        return  # no feature looks back that far
    known: Bools = np.asarray(np.isfinite(source.features(strategy)[:train]).all(axis=1))  # (train, F)
    if known.all(axis=1).sum() < needed:
        slowest = strategy.feature_set.names[int(known.sum(axis=0).argmin())]
        raise UserError(
            f"{listed(map(str, source.files.values()), 3)}: {train:,} bars to train on, and the slowest feature of "
            f"strategy {strategy.name}, {slowest}, has values at {int(known.sum(axis=0).min()):,} of them; at least "
            f"{needed} are needed: give more bars, or choose a strategy with a shorter memory"
        )


def understood(source: Source) -> list[str]:
    """The findings in the files, and how much of them is used, for people: a few lines."""
    lines = list(source.notes)
    columns: dict[str, list[str]] = {}
    for instrument in source.universe.instruments:
        report = source.reports[instrument.id]
        holes = f"{report.gaps:,} gap{'s' * (report.gaps != 1)}" if report.gaps else "no gaps"
        file = report.path.removeprefix(f"{Path(report.path.partition('#')[0]).parent}/")
        lines.append(
            f"{file} is {instrument.id}: {report.rows:,} bars of {report.timeframe}, {report.first:%Y-%m-%d %H:%M} to "
            f"{report.last:%Y-%m-%d %H:%M} UTC; times: {report.time_format}, zone {report.zone}; "
            f"calendar {instrument.calendar}, {holes}"
        )
        used = [field if name.lower() == field else f"{name} as {field}" for field, name in report.columns.items()]
        ignored = [name.strip() or "one without a name" for name in report.ignored]
        without = [] if "volume" in report.columns else ["no volume"]
        said = ", ".join([*used, *without]) + (f"; ignored: {', '.join(ignored)}" if ignored else "")
        columns.setdefault(said, []).append(file)
    lines += [f"Columns of {listed(names, 3)}: {said}" for said, names in columns.items()]
    bars = source.bars
    if len(bars) < len(source.history):
        lines.append(
            f"Of these {len(bars):,} bars are used, {from_us(bars.open_us[0]):%Y-%m-%d %H:%M} to "
            f"{from_us(bars.open_us[-1]):%Y-%m-%d %H:%M} UTC; earlier ones only warm the features up"
        )
    if len(source.universe.ids) > 1:
        whole = int(bars.present.all(axis=1).sum())
        lines.append(
            f"Universe {source.universe.name}: {len(source.universe.ids)} instruments; all of them have a bar at "
            f"{whole:,} of {len(bars):,} times"
        )
    return lines


def _installed() -> Path:
    """The file inside the installed package, found without importing it."""
    for file in files(_PACKAGE) or ():
        if file.name == _FILE:
            return Path(str(file.locate()))
    raise UserError(f"the package {_PACKAGE} lacks {_FILE}: install it again, or name a file with --bars")
