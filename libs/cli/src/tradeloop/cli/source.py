"""The bars that a command works on: files of the user's, or the one that is installed with Tradeloop."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import files
from pathlib import Path

import numpy as np

from tradeloop.cli.bar_files import read_files, reading_of
from tradeloop.cli.naming import NamedFile, check_name, digest, digest_of_all, listed, name_of, named_files, symbol_of
from tradeloop.cli.span import Span, span_us
from tradeloop.common.arrays import Bools, Floats
from tradeloop.common.errors import UserError
from tradeloop.common.features import shown
from tradeloop.common.market import (
    BarArrays,
    Instrument,
    Timeframe,
    TimeRange,
    Universe,
    from_us,
    overlaps,
    resample,
)
from tradeloop.common.messages.ingest import Reading
from tradeloop.common.portfolio import Portfolio
from tradeloop.common.strategy import Strategy
from tradeloop.ingest.adapters.files import read_bars
from tradeloop.ingest.domain import together
from tradeloop.ingest.ports import FileReport

_PACKAGE, _FILE = "gym-anytrading", "FOREX_EURUSD_1H_ASK.csv"
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
    readings: Mapping[str, Reading] = field(default_factory=dict)
    """How the files of each instrument are read, by its id."""
    is_view: bool = False
    """Whether the bars are an adjusted view of those in the files."""

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
            bars[timeframe] = resample(self.history, base, timeframe, days=self.universe.days)
        roster = self.universe.roster if self.universe.changes else None
        return strategy.feature_set.compute(bars, base, roster).values[self.first : self.stop]

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
    reading: Reading | None = None,
    members_change: bool = False,
    terms: Mapping[str, Instrument] | None = None,
    joins: Callable[[Sequence[NamedFile], Sequence[str]], Sequence[NamedFile]] | None = None,
) -> Source:
    """Read and check files of bars; the installed one where none is named. `bars` are the values of `option`.

    A portfolio says which instruments the bars are of. Without one, what has a name gets it as its id, and what has
    none an id that another content changes; `name` names the universe, and `terms` has what venues told of
    instruments, by id. Where its members change, the instruments need not have a bar at one time. `joins` makes one of
    files of one instrument. Raises `UserError`, one line that names the file, the row and the remedy.
    """
    start_us, end_us = span_us(span)
    reading = reading or Reading()
    named, notes = named_files(bars, option)
    named = list(joins(named, () if portfolio is None else portfolio.universe.ids)) if joins else named
    label = listed((one.path.name for one in named), 3)
    if not named:
        named = [NamedFile(_installed(), "EUR/USD")]
        label = f"EUR/USD hourly, from the package {_PACKAGE} (MIT)"
    if portfolio is None:
        paths, read, universe = _read(named, name and check_name(name), strategy, reading, terms or {})
    else:
        if name not in (None, portfolio.universe.name):
            raise UserError(
                f"portfolio {portfolio.name} trades universe {portfolio.universe.name}, --name says {name}: leave it "
                "out"
            )
        universe = portfolio.universe
        paths = _assigned(named, universe)
        read = [
            read_bars(str(paths[one.id].path), one, universe.timeframe, reading=reading_of(paths[one.id], reading))
            for one in universe.instruments
        ]
    _check(strategy, universe, label)
    for part, report in read:
        if strategy.feature_set.requires_volume and np.isnan(part.volume).any():
            raise UserError(
                f"{report.path}: strategy {strategy.name} has a feature that needs volumes and the file lacks them: "
                "choose another strategy, or a file with a volume column"
            )
        if lacking := [one for one in strategy.feature_set.extras if one not in part.extra]:
            raise UserError(
                f"{report.path}: strategy {strategy.name} has a feature that reads {listed(lacking)}, and the bars "
                f"lack that: name the column of the file by --keep {lacking[0]}=COLUMN, or choose another strategy"
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
    members_change = members_change or universe.changes
    if not members_change and len(read) > 1 and not history.present[first:stop].all(axis=1).any():
        raise UserError(
            f"{label}: there is no bar at which all {len(read)} instruments have one: give files that overlap, or "
            "where they are one instrument, NAME=FILE with one NAME for each of them"
        )
    return Source(
        files={one.id: paths[one.id].path.absolute() for one in universe.instruments},
        name=label,
        history=history,
        first=first,
        stop=stop,
        reports={one.id: report for one, (_, report) in zip(universe.instruments, read, strict=True)},
        universe=universe,
        notes=tuple(notes),
        given=portfolio,
        readings={one.id: reading_of(paths[one.id], reading) for one in universe.instruments},
    )


_Read = list[tuple[BarArrays, FileReport]]


def _read(
    named: Sequence[NamedFile], name: str | None, strategy: Strategy, reading: Reading, terms: Mapping[str, Instrument]
) -> tuple[dict[str, NamedFile], _Read, Universe]:
    """Files whose instruments no portfolio describes: what venues did not tell of them is what names and rows show."""
    found = read_files(named, name, reading, terms)
    for one in found[1:]:
        if one.report.timeframe is not (known := found[0].report).timeframe:
            raise UserError(
                f"{known.path} has bars of {known.timeframe} and {one.report.path} of {one.report.timeframe}: "
                "give files of one timeframe"
            )
    parts = [(one.bars, one.report) for one in found]
    files = {one.instrument.id: one.file for one in found}
    if len(files) < len(found):
        raise UserError(
            f"{listed(str(one.file.path) for one in found)}: two of them hold the same bars: give each once"
        )
    universe = Universe(
        name=name or _universe_name([one.file for one in found], parts),
        instruments=tuple(one.instrument for one in found),
        timeframe=parts[0][1].timeframe,
        higher_timeframes=(),
    )
    _check_timeframes(strategy, universe.timeframe, listed((one.file.path.name for one in found), 3))
    higher = strategy.feature_set.timeframes
    return files, parts, universe.model_copy(update={"higher_timeframes": higher})


def _universe_name(named: Sequence[NamedFile], parts: _Read) -> str:
    """The names that were given, or those of the files and a digest of what is in them."""
    base = name_of("-".join(dict.fromkeys(one.name or symbol_of(one.file) for one in named)))
    if all(one.name for one in named):
        return base
    contents = [digest(part, report.timeframe) for part, report in parts]
    return f"{base}-{contents[0] if len(contents) == 1 else digest_of_all(contents)}"


def _assigned(named: Sequence[NamedFile], universe: Universe) -> dict[str, NamedFile]:
    """The file of each instrument of a portfolio: the only one, or the one that has its name."""
    if len(named) == len(universe.ids) == 1 and named[0].name is None:
        return {universe.ids[0]: named[0]}
    found: dict[str, NamedFile] = {}
    for one in named:
        called = one.name or one.called
        matches = [id_ for id_ in universe.ids if called == id_ or _alike(called, id_.partition(":")[2])]
        if len(matches) != 1 or matches[0] in found:
            raise UserError(
                f"--bars {one.path}: universe {universe.name} has {listed(universe.ids)}, and which of them "
                f"{called} is cannot be told: give ID={one.path}"
            )
        found[matches[0]] = one
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
    longest = max((one.history + 1) * (one.timeframe or base).us // base.us for one in strategy.feature_set.features)
    if train + source.first >= longest + needed:
        return  # no feature looks back that far
    seen, _ = shown(source.features(strategy)[:train], source.universe)
    known: Bools = np.asarray(np.isfinite(seen).all(axis=1))  # (train, F)
    if known.all(axis=1).sum() < needed:
        slowest = strategy.feature_set.names[int(known.sum(axis=0).argmin())]
        raise UserError(
            f"{listed(map(str, source.files.values()), 3)}: {train:,} bars to train on, and the slowest feature of "
            f"strategy {strategy.name}, {slowest}, has values at {int(known.sum(axis=0).min()):,} of them; at least "
            f"{needed} are needed: give more bars, or choose a strategy with a shorter memory"
        )


def _installed() -> Path:
    """The file inside the installed package, found without importing it."""
    for file in files(_PACKAGE) or ():
        if file.name == _FILE:
            return Path(str(file.locate()))
    raise UserError(f"the package {_PACKAGE} lacks {_FILE}: install it again, or name a file with --bars")
