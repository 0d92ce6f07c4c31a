"""`Recorder`: trades, order books and news into their store, in a thread of its own, so that no frame waits for it."""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Sequence

import structlog

from tradeloop.common.errors import Unavailable
from tradeloop.common.event_store.port import EventStore, MarketItem

log = structlog.get_logger(__name__)

_MOST_WAITING = 200_000
"""Events that wait while the store is away; what comes beyond is not stored."""
_BATCH = 2_000
_RETRY_S = 5.0
_LAST_S = 10.0
"""How long the end waits for what is not stored yet."""


class Recorder:
    """Events on their way into a store. Writing them again changes nothing."""

    def __init__(self, store: EventStore, *, threaded: bool = True) -> None:
        """One without a thread writes at once, and again when the next ones come."""
        self._store = store
        self._waiting: deque[tuple[str, MarketItem]] = deque()
        self._lost: Counter[str] = Counter()
        self._changed = threading.Condition()
        self._stop, self._is_away = False, False
        self._thread: threading.Thread | None = None
        if threaded:
            self._thread = threading.Thread(target=self._run, name="events into their store", daemon=True)
            self._thread.start()

    def put(self, universe: str, items: Sequence[MarketItem]) -> None:
        """Take events; it does not wait."""
        with self._changed:
            room = max(_MOST_WAITING - len(self._waiting), 0)
            self._waiting.extend((universe, item) for item in items[:room])
            self._lost[universe] += max(len(items) - room, 0)
            self._changed.notify()
        if self._thread is None:
            self._write()

    def lost(self) -> Counter[str]:
        """How many events of each universe were not stored, since the last call."""
        with self._changed:
            lost, self._lost = +self._lost, Counter()
        return lost

    def close(self) -> None:
        """Store what waits, if it can be done soon, and close the store."""
        with self._changed:
            self._stop = True
            self._changed.notify()
        if self._thread is not None:
            self._thread.join(_LAST_S)
        if self._waiting:
            log.warning("events are not stored", events=len(self._waiting))
        self._store.close()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._stop or self._waiting)
                if not self._waiting:
                    return
            if not self._write():
                with self._changed:
                    if self._changed.wait_for(lambda: self._stop, _RETRY_S):
                        return

    def _write(self) -> bool:
        """Store the events that wait; whether the store took them. Only this takes them out."""
        while True:
            with self._changed:
                batch = [self._waiting[n] for n in range(min(len(self._waiting), _BATCH))]
            if not batch:
                return True
            try:
                self._store.write([item for _, item in batch])
            except Unavailable as error:
                if not self._is_away:
                    log.warning("events are not stored yet", error=str(error))
                self._is_away = True
                return False
            except Exception as error:  # whatever a database has against them: others go on
                log.exception("events cannot be stored", error=str(error), events=len(batch))
                with self._changed:
                    self._lost.update(universe for universe, _ in batch)
            else:
                if self._is_away:
                    log.info("events are stored again")
                self._is_away = False
            with self._changed:
                for _ in batch:
                    self._waiting.popleft()
