"""Live feeds against a plain truth, over random streams: whatever comes in whatever order, nothing untrue goes out."""

from __future__ import annotations

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from services.ingest.tests.scripted import START_US, Stand, universe
from tradeloop.common.market import to_us
from tradeloop.common.messages import BarFrame
from tradeloop.ingest.ports import Malformed, StreamedBar

MINUTES = 8
OPS = ("update", "lie", "repeat", "reorder", "malformed", "break", "away", "back", "stall", "lag", "restart", "quiet")


def do(stand: Stand, op: str, minute: int, second: int, name: str, stalled: dict[str, int]) -> None:
    """One thing that goes wrong, or right."""
    source = stand.source
    if op == "update" and name not in stalled:
        source.put(minute, name, closed=False, part=(second + 1) / 60)
    elif op == "lie" and name not in stalled:
        source.put(minute, name, closed=True, part=(second + 1) / 60)
    elif op == "repeat" and minute:
        source.put(minute - 1, name)
    elif op == "reorder":
        source.events.reverse()
    elif op == "malformed":
        source.events.append(Malformed(to_us(stand.clock.now()), "not JSON"))
        source.events.append(
            StreamedBar(name, stand.universe.timeframe, START_US + 7, -1.0, 0.0, 2.0, 1.0, None, True, 0)
        )
    elif op == "break":
        source.disconnect()
        source.connect()
    elif op == "away":
        source.down = True
    elif op == "back":
        source.down = False
    elif op == "lag":
        source.lags_s = 3.0 - source.lags_s
    elif op == "stall":
        stalled[name] = second
    elif op == "restart":
        stand.start()


steps = st.lists(
    st.tuples(st.sampled_from(OPS), st.sampled_from(("x:A", "x:B")), st.booleans()), min_size=6, max_size=6
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(steps, min_size=MINUTES, max_size=MINUTES), st.lists(st.booleans(), min_size=MINUTES, max_size=MINUTES))
def test_nothing_untrue_goes_out(script: list[list[tuple[str, str, bool]]], closes: list[bool]) -> None:
    with capture_logs():
        stand = Stand(universe(2))
        stand.ask()
        for minute, ops in enumerate(script):
            stalled: dict[str, int] = {}
            for part, (op, name, settle) in enumerate(ops):
                second = 8 * (part + 1)
                stand.until(minute + second / 60, step_s=8.0)
                do(stand, op, minute, second, name, stalled)
                if settle:
                    stand.settle()
            stand.until(minute + 1, step_s=12.0)
            stand.clock.advance(0.1)
            for name in stand.universe.ids if closes[minute] else ():
                # A socket that stalled resumes with the close, and without what was traded meanwhile.
                part_of = (stalled[name] + 1) / 60 if name in stalled and stalled[name] <= 40 else 1.0
                if name in stalled and part_of == 1.0:
                    continue
                source_put = stand.source.put
                source_put(minute, name, closed=True, part=part_of)
            stand.settle()
        stand.source.down, stand.source.lags_s = False, 0.0
        stand.source.connect()
        stand.until(MINUTES + 4)
    last: dict[object, BarFrame] = {}
    for one in stand.published():
        minute = (to_us(one.open_time) - START_US) // stand.universe.timeframe.us
        for bar in one.bars:
            assert bar == stand.source.bar(bar.instrument, minute), "no unfinished bar ever goes out"
        last[one.open_time] = one
    times = [one.open_time for one in stand.frames()]
    assert times == sorted(set(times))
    whole = [replace_frame(last[stand.expected(minute).open_time]) for minute in range(MINUTES + 2)]
    assert whole == [stand.expected(minute) for minute in range(MINUTES + 2)]
    assert stand.stored(0, MINUTES + 2) == [bar for minute in range(MINUTES + 2) for bar in stand.expected(minute).bars]


def replace_frame(frame: BarFrame) -> BarFrame:
    """A frame without how and when it went out."""
    return frame.model_copy(update={"revision": 0, "catches_up": False, "begins": False})
