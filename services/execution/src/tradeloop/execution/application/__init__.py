"""Brings frames, signals and commands to the portfolios that they are about, and what comes of it to the ledger."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import structlog

from tradeloop.common.bus.port import LogPosition, Partition
from tradeloop.common.clock import Clock
from tradeloop.common.errors import Unavailable, UserError
from tradeloop.common.market import check_not_ahead, from_us
from tradeloop.common.messages import BarFrame, Message, PortfolioCommanded, PortfolioEvent, SignalGenerated
from tradeloop.common.messages.topics import topic_of
from tradeloop.common.portfolio import Portfolio
from tradeloop.common.runtime.attempts import Patience, words
from tradeloop.common.runtime.context import working_for
from tradeloop.common.runtime.metrics import Figure
from tradeloop.common.runtime.parts import Traded, parts_of
from tradeloop.common.runtime.pending import Pending
from tradeloop.common.runtime.service import ServiceDefaults
from tradeloop.common.runtime.standing import Standing
from tradeloop.common.strategy import Strategy
from tradeloop.execution.application.measured import Latencies, Measured
from tradeloop.execution.application.traded import Surroundings, TradedPortfolio
from tradeloop.execution.ports import Change, History, Ledger, LedgerConflict, Venue

log = structlog.get_logger(__name__)

_INPUTS = frozenset(topic_of(kind).name for kind in (BarFrame, SignalGenerated, PortfolioCommanded))
_RESTORED_AT_ONCE = 64
"""Portfolios whose books one step reads from the ledger."""


class Execution(ServiceDefaults):
    """The execution service.

    `handle` only takes messages in; `advance` does what can be done with them, all portfolios in one transaction. So
    what fails is the failure of a portfolio, never that of the message that happened to come last.
    """

    name = "execution"
    consumes: tuple[type[Message], ...] = (BarFrame, SignalGenerated, PortfolioCommanded)

    def __init__(
        self,
        portfolios: Sequence[Portfolio],
        strategies: Callable[[str], Strategy],
        venues: Callable[[Portfolio], Venue],
        ledger: Ledger,
        history: History,
        clock: Clock,
        patience: Patience | None = None,
        grace_s: float = 1.0,
    ) -> None:
        """`strategies` gives a strategy by name, `venues` the venue of a portfolio; `grace_s` is how long a decision
        is waited for at least, once its bar is marked."""
        self._venues, self._ledger, self._history, self._clock = venues, ledger, history, clock
        self._patience, self._grace_s = patience or Patience(), grace_s
        self._strategies = {portfolio.strategy: strategies(portfolio.strategy) for portfolio in portfolios}
        self._portfolios = {portfolio.name: portfolio for portfolio in portfolios}
        self._by_universe: dict[str, list[Portfolio]] = {}
        for portfolio in portfolios:
            self._by_universe.setdefault(portfolio.universe.name, []).append(portfolio)
        self._tallies: Counter[tuple[str, str]] = Counter()
        self._measured: dict[str, Measured] = {}
        """The numbers of each portfolio that this process has traded."""
        self._latencies = {universe: Latencies() for universe in self._by_universe}
        self._begin()

    def _begin(self) -> None:
        """Begin with portfolios of which nothing is known yet."""
        self._pending = Pending()
        self._handed_over: list[tuple[str, str]] = []
        self._traded: dict[str, TradedPortfolio] = {}
        self._unrestored: dict[str, None] = {}
        """Portfolios whose books are to be read from the ledger, in that order."""
        self._events: dict[str, Sequence[PortfolioEvent]] = {}
        """The events on record for those, as far as they were read."""
        self._ready: dict[str, None] = {}
        """Portfolios that may have something to do."""
        self._later: dict[str, None] = {}
        """Portfolios of which something failed that is tried again in time."""
        self._deadlines: list[tuple[float, str]] = []
        """A heap of the wall-clock times at which decisions are missed; some are gone by."""
        self._orphans: Sequence[Standing] = ()
        """Books that hold something, and of which there is no portfolio any more."""
        self._refused: dict[str, str] = {}
        """Portfolios whose books cannot be traded as they are configured, and why."""

    def handle(self, message: Message, position: LogPosition) -> Iterable[Message]:
        """Raises `UserError` for what is about a time that has not come yet."""
        if isinstance(message, BarFrame):
            message.check(self._clock)
            if message.revision:
                return ()  # a decision that was made is never re-made
            for portfolio in self._by_universe.get(message.universe, ()):
                if message.timeframe is portfolio.universe.timeframe and (traded := self._of(portfolio.name)):
                    traded.put_frame(message, position)
        elif isinstance(message, SignalGenerated) and message.portfolio in self._portfolios:
            check_not_ahead(message.time, self._clock, f"the signal for {message.portfolio}")
            if traded := self._of(message.portfolio):
                traded.put_signal(message, position)
        elif (
            isinstance(message, PortfolioCommanded)
            and message.portfolio in self._portfolios
            and (traded := self._of(message.portfolio))
        ):
            traded.put_command(message, position)
        return ()

    def answers(self, message: Message) -> bool:
        return False  # whatever comes is taken in, unless it came before

    def advance(self) -> Iterator[Message]:
        """Restore, work, record; raises `Unavailable` when the ledger cannot be reached: the books are then as before.

        An output counts as handed over when the next one is asked for.
        """
        yield from self._restore()
        self._wake()
        while ready := [name for name in self._ready if self._traded[name].restored]:
            changes: list[Change] = []
            for name in ready:
                with working_for(self._traded[name]):
                    change = self._traded[name].work()
                if change is not None:
                    changes.append(change)
            recorded = self._recorded(changes)
            done = {change.portfolio for change in recorded}
            for name in ready:
                self._ready.pop(name, None)
            outputs = [
                (change.portfolio, *each)
                for change in recorded
                for each in self._traded[change.portfolio].recorded(change)
            ]
            self._ready |= {change.portfolio: None for change in changes if change.portfolio not in done}
            for name in ready:
                self._look_again(name)
            for portfolio, input_id, messages in outputs:
                yield from messages
                if messages:
                    self._handed_over.append((portfolio, input_id))
            if len(recorded) < len(changes):
                return  # what the ledger did not take is tried again in the next step

    def waiting(self) -> bool:
        return bool(self._later or self._unrestored)

    def pending(self) -> Pending:
        return self._pending

    def assigned(self, committed: Mapping[Partition, int], owns: Callable[[str], bool]) -> Mapping[Partition, int]:
        """Messages that were committed and whose effects the ledger lacks are read again."""
        for portfolio in self._portfolios.values():
            if owns(portfolio.universe.name):
                self._of(portfolio.name)
        self._orphans = self._found_orphans()
        kept = self._ledger.offsets()
        return {p: kept.get(p, 0) for p, offset in committed.items() if p.topic in _INPUTS and kept.get(p, 0) < offset}

    def revoked(self) -> None:
        self._begin()

    def before_commit(self, offsets: Mapping[Partition, int]) -> None:
        # What was handed over has been flushed by now.
        self._ledger.acknowledge(self._handed_over, {p: offset for p, offset in offsets.items() if p.topic in _INPUTS})
        self._handed_over.clear()

    def not_ready(self) -> Iterable[str]:
        self._ledger.check()
        return ()

    def standings(self) -> Iterable[Standing]:
        yield from self._orphans
        for name, why in self._refused.items():
            yield Standing(self._portfolios[name].universe.name, name, None, None, None, self._clock.now(), why)
        for traded in self._traded.values():
            if traded.restored:
                yield traded.standing

    def parts(self) -> Mapping[str, Sequence[str]]:
        portfolios = self._portfolios.values()
        return {**parts_of(portfolios, self._strategies), "books": [Traded.of(each).line for each in portfolios]}

    def tallies(self) -> Mapping[tuple[str, str], int]:
        return dict(self._tallies)

    def figures(self) -> Iterable[Figure]:
        for traded in self._traded.values():
            yield from traded.figures
        for measured in self._measured.values():
            yield from measured.counts()
        for universe, latencies in self._latencies.items():
            yield Figure("tradeloop_bar_to_decision_seconds", latencies.decision, (universe,))
            yield Figure("tradeloop_bar_to_order_seconds", latencies.order, (universe,))

    def close(self) -> None:
        self._ledger.close()

    def _found_orphans(self) -> Sequence[Standing]:
        names = [name for name in self._ledger.portfolios() if name not in self._portfolios]
        found = []
        for name, record in (self._ledger.load(names) if names else {}).items():
            if any(record.book.get("position", ())) or record.working:
                cause = "its book holds positions, and no portfolio has its name: put its file back, or close them"
                log.error("a book without a portfolio", portfolio=name, cause=cause)
                marked = from_us(record.marked_us)
                found.append(Standing("", name, marked, None, None, marked, cause))
        return found

    def _of(self, name: str) -> TradedPortfolio | None:
        """A portfolio that this process trades now; it has something to do. None for one that cannot be traded."""
        if name in self._refused:
            return None
        traded = self._traded.get(name)
        if traded is None:
            portfolio = self._portfolios[name]
            if name not in self._measured:
                self._measured[name] = Measured(portfolio, self._latencies[portfolio.universe.name])
            measured = self._measured[name]
            around = Surroundings(self._clock, self._patience, self._grace_s, self._pending, self._count, measured)
            try:
                strategy, venue = self._strategies[portfolio.strategy], self._venues(portfolio)
                read_on = self._history.frames(portfolio.universe)
                traded = TradedPortfolio(portfolio, strategy, venue, read_on, around)
            except Unavailable:
                raise
            except Exception as error:  # noqa: BLE001  whatever a venue's or a strategy's code does
                self._refuse(name, error)
                return None
            self._traded[name] = traded
            self._unrestored[name] = None
        self._ready[name] = None
        return traded

    def _refuse(self, name: str, error: Exception) -> None:
        """Trade on without a portfolio that cannot be traded, and say why."""
        self._refused[name] = str(error) if isinstance(error, UserError) else words(error)
        log.error("cannot be traded", portfolio=name, error=self._refused[name], exc_info=error)
        self._unrestored.pop(name, None)
        self._ready.pop(name, None)
        traded = self._traded.pop(name, None)
        if traded is not None:
            traded.refuse()

    def _count(self, event: str, portfolio: str) -> None:
        self._tallies[event, portfolio] += 1

    def _restore(self) -> Iterator[Message]:
        """Read the books of some portfolios from the ledger, and publish again what may not have left."""
        names = list(self._unrestored)[:_RESTORED_AT_ONCE]
        if not names:
            return
        try:
            yield from self._restore_all(names)
        except Unavailable:
            raise
        except Exception as error:  # noqa: BLE001  what is stored of one of them may not be readable
            if len(names) == 1:
                self._refuse(names[0], error)
            else:
                for name in names:
                    try:
                        yield from self._restore_all([name])
                    except Unavailable:
                        raise
                    except Exception as own:  # noqa: BLE001
                        self._refuse(name, own)

    def _restore_all(self, names: Sequence[str]) -> Iterator[Message]:
        """Raises for a book that cannot be read, before anything of the others is done."""
        books, unsent = self._ledger.load(names), self._ledger.unsent(names)
        if any(name not in self._events for name in names):  # of all at once: whole partitions are read for it
            self._events = dict(self._history.events([self._portfolios[name] for name in self._unrestored]))
        for name in names:
            traded, left = self._traded[name], unsent.get(name, ())
            outputs = [output for _, messages in left for output in messages]
            self._unrestored.pop(name, None)
            try:
                again = traded.restore(books[name], self._events.pop(name, ()), outputs)
            except Unavailable:
                raise
            except Exception as error:  # noqa: BLE001  whatever a strategy's code, or a changed portfolio, makes of it
                self._refuse(name, error)
                continue
            yield from again
            self._handed_over += [(name, input_id) for input_id, _ in left]
            self._ready[name] = None
            self._look_again(name, keep=True)

    def _wake(self) -> None:
        """Look again at what time alone has freed: another attempt, or a decision that is not waited for any more."""
        for name in list(self._later):
            if self._traded[name].retry_due:
                del self._later[name]
                self._ready[name] = None
        now_s = self._clock.now().timestamp() if self._deadlines else 0.0
        while self._deadlines and self._deadlines[0][0] <= now_s:
            self._ready[heapq.heappop(self._deadlines)[1]] = None

    def _look_again(self, name: str, keep: bool = False) -> None:
        """Note what a portfolio waits for."""
        traded = self._traded[name]
        if traded.unfinished:
            self._ready[name] = None
        elif traded.retries and not keep:
            self._later[name] = None
        if (due_s := traded.due_s) is not None:
            heapq.heappush(self._deadlines, (due_s, name))

    def _recorded(self, changes: Sequence[Change]) -> list[Change]:
        """Record what was done, all at once; one by one where the ledger refuses that. Gives back what it has now."""
        if not changes:
            return []
        try:
            self._ledger.record(changes)
            return list(changes)
        except LedgerConflict as conflict:
            moved = frozenset(conflict.portfolios)
            for change in changes:
                if change.portfolio in moved:
                    self._give_back(change)
            return self._recorded([change for change in changes if change.portfolio not in moved])
        except Unavailable:
            for change in changes:
                self._traded[change.portfolio].undo()
            raise
        except Exception as error:
            # What the ledger cannot take is the failure of the portfolio whose it is.
            if len(changes) == 1:
                self._traded[changes[0].portfolio].undo(error)
                log.exception("the ledger refuses what a portfolio did", portfolio=changes[0].portfolio)
                return []
        done: list[Change] = []
        for n, change in enumerate(changes):
            try:
                done += self._recorded([change])
            except Unavailable:
                for rest in changes[n + 1 :]:
                    self._traded[rest.portfolio].undo()
                if not done:
                    raise
                break  # it is found again by what comes next
        return done

    def _give_back(self, change: Change) -> None:
        """Ask the ledger anew for a book with which another process has gone on."""
        log.warning("another process has gone on with a book", portfolio=change.portfolio)
        self._traded[change.portfolio].forget()
        self._unrestored[change.portfolio] = None
