"""`Asker`: asks a source for its history and its clock, in a thread of its own, so that nobody waits for it."""

from __future__ import annotations

import itertools
import queue
import threading
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

from tradeloop.common.market import Instrument, Series, Timeframe, joined
from tradeloop.ingest.ports import BatchSource, MarketSource, Page, SourceUnavailable

_MOST_BARS = 2_000
"""Bars of one answer, to the end of a page."""
_BARS_AT_ONCE = 10_000
"""Bars of one answer for many instruments."""
_LONGEST_PAUSE_S = 60.0

Purpose = Literal["settle", "check", "clock", "terms", "backfill"]
_BATCHED: frozenset[Purpose] = frozenset({"settle", "check"})
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
    """Questions to one source, the urgent ones first, one at a time: whoever asks more at once is refused sooner.

    A `BatchSource` is asked all at once what has to wait and can be asked together: the venue's limit of requests a
    minute may be less than the instruments of a universe.
    """

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
            questions = self._next()
            if not questions:
                return
            pause_s = 0.0
            for answer in self._answers(questions):
                answer.question.into.append(answer)
                if isinstance(answer.error, SourceUnavailable):
                    pause_s = max(pause_s, answer.error.retry_after_s or 0.0)
            if pause_s > 0.0:
                self._stop.wait(min(pause_s, _LONGEST_PAUSE_S))

    def _next(self) -> list[Question]:
        """The most urgent question, with those that wait and can be asked together with it; none at the end."""
        first = self._questions.get()[2]
        if first is None:
            return []
        if not isinstance(self._source, BatchSource) or first.purpose not in _BATCHED or first.timeframe is None:
            return [first]
        found, others = [first], []
        start_us, end_us = first.start_us, self._end_us(first)
        while len(found) < self._source.at_once:
            try:
                entry = self._questions.get_nowait()
            except queue.Empty:
                break
            question = entry[2]
            if question is None or question.purpose != first.purpose:
                others.append(entry)
                break
            least_us, most_us = min(start_us, question.start_us), max(end_us, self._end_us(question))
            bars = (len(found) + 1) * ((most_us - least_us) // first.timeframe.us + 1)
            if question.timeframe is first.timeframe and bars <= _BARS_AT_ONCE:
                found.append(question)
                start_us, end_us = least_us, most_us
            else:
                others.append(entry)
        for entry in others:
            self._questions.put(entry)
        return found

    def _end_us(self, question: Question) -> int:
        """Until when a question is asked, now that it is its turn."""
        if question.purpose == "settle" and question.put_us is not None:
            return question.end_us + self._now_us() - question.put_us
        return question.end_us

    def _answers(self, questions: Sequence[Question]) -> Iterable[Answer]:
        """The answers to questions that are asked together; each by itself where that is the fault of one of them."""
        source, first = self._source, questions[0]
        if len(questions) == 1 or not isinstance(source, BatchSource) or first.timeframe is None:
            return map(self._answer, questions)
        ends_us = [self._end_us(one) for one in questions]
        instruments = {one.instrument.id: one.instrument for one in questions if one.instrument is not None}
        try:
            start_us = min(one.start_us for one in questions)
            pages = source.histories(list(instruments.values()), first.timeframe, start_us, max(ends_us))
        except SourceUnavailable as error:
            return [Answer(one, error=error) for one in questions]
        except Exception:  # noqa: BLE001  each of them says it itself, if it is the one
            return map(self._answer, questions)
        return [self._part(one, end_us, pages) for one, end_us in zip(questions, ends_us, strict=True)]

    def _part(self, question: Question, end_us: int, pages: Mapping[str, Page]) -> Answer:
        """The part of all that came that a question asked for."""
        if question.instrument is None or (page := pages.get(question.instrument.id)) is None:
            return self._answer(question)
        until_us = min(page.until_us, end_us)
        open_us = page.bars["open_us"]
        first, last = np.searchsorted(open_us, [question.start_us, until_us])
        bars = {name: column[first:last] for name, column in page.bars.items()}
        return Answer(question, bars if last > first else None, max(until_us, question.start_us))

    def _answer(self, question: Question) -> Answer:
        try:
            if question.purpose == "terms" and question.instrument is not None:
                [terms] = self._source.instruments([question.instrument.id.partition(":")[2]])
                return Answer(question, terms=terms)
            if question.instrument is None or question.timeframe is None:
                return self._clock(question)
            parts, until_us, count = [], question.start_us, 0
            end_us = self._end_us(question)
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
