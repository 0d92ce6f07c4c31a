"""Instruments that are renamed: their venues call them by the symbol of the time, and the universe by one id."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

from tradeloop.common.market import EVER_US, Instrument, Timeframe, Universe, to_us
from tradeloop.common.messages import Channel
from tradeloop.ingest.application.live.history import Answer, Asks, Question
from tradeloop.ingest.ports import (
    Disconnected,
    MarketEvent,
    MarketSource,
    MarketStream,
    Page,
    StreamedBar,
    StreamedBook,
    StreamedNews,
    StreamedTrade,
)


class Symbols:
    """The symbols of a universe's instruments, and when they change."""

    def __init__(self, universe: Universe) -> None:
        self._force = universe.in_force
        self._renames_us = {
            name: [to_us(one.time) for one in events if one.kind == "rename"]
            for name, events in universe.events.items()
            if any(one.kind == "rename" for one in events)
        }

    def __bool__(self) -> bool:
        """Whether any is renamed."""
        return bool(self._renames_us)

    def at(self, instrument: Instrument, time_us: int) -> Instrument:
        """The instrument as its venue calls it at a time."""
        if instrument.id not in self._renames_us:
            return instrument
        venue, symbol = instrument.id.partition(":")[0], self._force.symbol(instrument.id, time_us)
        return instrument.model_copy(update={"id": f"{venue}:{symbol}"})

    def until_us(self, instrument: Instrument, time_us: int) -> int:
        """When it is renamed next after a time."""
        return min((at_us for at_us in self._renames_us.get(instrument.id, ()) if at_us > time_us), default=EVER_US)


class RenamedAsker:
    """Questions about renamed instruments: a range ends where the symbol does, and whoever asked goes on from there."""

    def __init__(self, asker: Asks, symbols: Symbols, now_us: Callable[[], int]) -> None:
        self._asker, self._symbols, self._now_us = asker, symbols, now_us

    def close(self) -> None:
        self._asker.close()

    def ask(self, question: Question) -> None:
        instrument = question.instrument
        if instrument is None:
            self._asker.ask(question)
            return
        start_us = self._now_us() if question.purpose == "terms" else question.start_us
        called, end_us = self._symbols.at(instrument, start_us), self._symbols.until_us(instrument, start_us)
        into = _Translated(question)
        if end_us < question.end_us:  # no more than that is asked, however long the question waits
            self._asker.ask(replace(question, into=into, instrument=called, end_us=end_us, put_us=None))
        else:
            self._asker.ask(replace(question, into=into, instrument=called))


class _Translated(deque[Answer]):
    """Takes an answer to the question as it was asked of the venue, and gives it to who asked here."""

    def __init__(self, question: Question) -> None:
        super().__init__()
        self._question = question

    def append(self, answer: Answer) -> None:
        question, terms = self._question, answer.terms
        asked = answer.question.instrument
        if terms is not None and question.instrument is not None and asked is not None and terms.id == asked.id:
            terms = terms.model_copy(update={"id": question.instrument.id})
        question.into.append(replace(answer, question=question, terms=terms))


class RenamedSource:
    """A source whose streams go by the symbols of the time: one that changes begins a new stream."""

    def __init__(self, source: MarketSource, symbols: Symbols, now_us: Callable[[], int]) -> None:
        self._source, self._symbols, self._now_us = source, symbols, now_us
        self.venue = source.venue

    def instruments(self, symbols: Sequence[str]) -> Sequence[Instrument]:
        return self._source.instruments(symbols)

    def history(self, instrument: Instrument, timeframe: Timeframe, start_us: int, end_us: int) -> Iterator[Page]:
        return self._source.history(instrument, timeframe, start_us, end_us)

    def time_us(self) -> int:
        return self._source.time_us()

    def close(self) -> None:
        self._source.close()

    def stream(
        self, instruments: Sequence[Instrument], timeframe: Timeframe, channels: frozenset[Channel]
    ) -> MarketStream:
        def begin(at_us: int) -> MarketStream:
            called = [self._symbols.at(one, at_us) for one in instruments]
            return self._source.stream(called, timeframe, channels)

        return _RenamedStream(begin, instruments, self._symbols, self._now_us)


class _RenamedStream:
    """A stream that begins anew when a symbol changes, as if it had been interrupted."""

    def __init__(
        self,
        begin: Callable[[int], MarketStream],
        instruments: Sequence[Instrument],
        symbols: Symbols,
        now_us: Callable[[], int],
    ) -> None:
        self._begin, self._instruments, self._symbols, self._now_us = begin, instruments, symbols, now_us
        self._ids: dict[str, str] = {}
        """The ids of the universe by those of the venue, old ones too: the last bar of a symbol may come late."""
        self._open(now_us())

    def poll(self, timeout_s: float) -> Sequence[MarketEvent]:
        events = [_here(event, self._ids) for event in self._stream.poll(timeout_s)]
        now_us = self._now_us()
        if now_us >= self._until_us:
            self._stream.close()
            self._open(now_us)
            events.append(Disconnected(now_us, "an instrument has another symbol from now on"))
        return events

    def close(self) -> None:
        self._stream.close()

    def _open(self, now_us: int) -> None:
        self._stream = self._begin(now_us)
        self._ids |= {self._symbols.at(one, now_us).id: one.id for one in self._instruments}
        self._until_us = min(self._symbols.until_us(one, now_us) for one in self._instruments)


def _here(event: MarketEvent, ids: Mapping[str, str]) -> MarketEvent:
    """An event of a venue under the ids of the universe."""
    if isinstance(event, StreamedBar | StreamedTrade | StreamedBook):
        return replace(event, instrument=ids.get(event.instrument, event.instrument))
    if isinstance(event, StreamedNews):
        return replace(event, instruments=tuple(ids.get(one, one) for one in event.instruments))
    return event
