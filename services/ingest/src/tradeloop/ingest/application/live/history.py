"""`Asker`: asks a source for its history and its clock, in a thread of its own, so that nobody waits for it."""

from __future__ import annotations

import itertools
import queue
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

from tradeloop.common.market import Instrument, Series, Timeframe, joined
from tradeloop.ingest.ports import MarketSource, SourceUnavailable

_MOST_BARS = 2_000
"""Bars of one answer, to the end of a page."""
_LONGEST_PAUSE_S = 60.0

Purpose = Literal["settle", "check", "clock", "terms", "backfill"]
_URGENCY: dict[Purpose, int] = {"clock": 0, "settle": 1, "check": 2, "terms": 3, "backfill": 3}


@dataclass(frozen=True, slots=True)
class Question:
    """A question to a source; its answer is appended to `into`."""

    purpose: Purpose
    into: deque[Answer]
    venue: str
    instrument: Instrument | None = None
    timeframe: Timeframe | None = None
    start_us: int = 0
    end_us: int = 0
    put_us: int | None = None
    """When it was put, by this machine's clock: one for the newest bars that had to wait is asked up to those of then.
    """


@dataclass(frozen=True, slots=True)
class Answer:
    """The outcome of a question."""

    question: Question
    bars: Series | None = None
    until_us: int = 0
    """As in `Page`."""
    offset_us: int = 0
    """How far the venue's clock is ahead of this machine's."""
    terms: Instrument | None = None
    """The instrument as the venue has it now."""
    error: Exception | None = None


class Asks(Protocol):
    """The side of a source that takes questions."""

    def ask(self, question: Question) -> None:
        """Put a question; it does not wait."""
        ...

    def close(self) -> None:
        """Ask no more."""
        ...


class Asker:
    """Questions to one source, the urgent ones first, one at a time: whoever asks more at once is refused sooner."""

    def __init__(self, source: MarketSource, now_us: Callable[[], int], *, threaded: bool = True) -> None:
        """One without a thread answers at once, which is for sources that need no network."""
        self._source, self._now_us = source, now_us
        self._questions: queue.PriorityQueue[tuple[int, int, Question | None]] = queue.PriorityQueue()
        self._numbers = itertools.count()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        if threaded:
            self._thread = threading.Thread(target=self._run, name=f"history of {source.venue}", daemon=True)
            self._thread.start()

    def ask(self, question: Question) -> None:
        """Put a question; it does not wait."""
        if self._thread is None:
            question.into.append(self._answer(question))
        else:
            self._questions.put((_URGENCY[question.purpose], next(self._numbers), question))

    def close(self) -> None:
        """End the thread, when it has its answer."""
        self._stop.set()
        self._questions.put((-1, next(self._numbers), None))

    def _run(self) -> None:
        while not self._stop.is_set():
            question = self._questions.get()[2]
            if question is None:
                return
            answer = self._answer(question)
            question.into.append(answer)
            if isinstance(answer.error, SourceUnavailable) and answer.error.retry_after_s is not None:
                self._stop.wait(min(answer.error.retry_after_s, _LONGEST_PAUSE_S))

    def _answer(self, question: Question) -> Answer:
        try:
            if question.purpose == "terms" and question.instrument is not None:
                [terms] = self._source.instruments([question.instrument.id.partition(":")[2]])
                return Answer(question, terms=terms)
            if question.instrument is None or question.timeframe is None:
                return self._clock(question)
            parts, until_us, count = [], question.start_us, 0
            end_us = question.end_us
            if question.purpose == "settle" and question.put_us is not None:
                end_us += self._now_us() - question.put_us
            for page in self._source.history(question.instrument, question.timeframe, question.start_us, end_us):
                if len(page.bars["open_us"]):
                    parts.append(page.bars)
                until_us = max(until_us, page.until_us)
                count += len(page.bars["open_us"])
                if count >= _MOST_BARS or self._stop.is_set():
                    break
            return Answer(question, joined(parts) if parts else None, until_us)
        except Exception as error:  # noqa: BLE001  whoever asked says what becomes of it
            return Answer(question, error=error)

    def _clock(self, question: Question) -> Answer:
        before_us = self._now_us()
        venue_us = self._source.time_us()
        after_us = self._now_us()
        return Answer(question, offset_us=venue_us - (before_us + after_us) // 2)
