"""The pictures of the pages, by their file: `python -m docs.site.pictures` draws them anew into docs/pictures."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from docs.site.drawing import Drawing
from tradeloop.common.messages.topics import CATALOGUE
from tradeloop.common.risk import DENIED, Halt, wire_code

FOLDER = Path(__file__).resolve().parents[1] / "pictures"
FLOW = [
    ("ingest", "market.bars.v1", "preprocess"),
    ("ingest", "market.bars.v1", "execution"),
    ("preprocess", "preprocess.features.v1", "inference"),
    ("training", "training.model_ready.v1", "inference"),
    ("inference", "inference.signals.v1", "execution"),
    ("execution", "execution.portfolio.v1", "inference"),
    ("execution", "experience.transitions.v1", ""),
]
"""The arrows between services that are drawn: who writes, on which topic, who reads."""


def flow() -> str:
    """Five services, and the topics between them."""
    for writer, topic, reader in FLOW:
        known = CATALOGUE[topic]
        if writer not in known.writers or (reader and reader not in known.readers):
            raise ValueError(f"{topic} does not go from {writer} to {reader or 'nobody'}: draw it as it is")
    d = Drawing(860, 360, "Five services that talk through topics")
    d.text(62, 82, "bars", "name")
    d.text(62, 99, "files, venues", "small")
    d.arrow([(108, 84), (150, 84)])
    d.box(150, 56, 130, 56, "INGEST", "one frame a bar")
    d.box(390, 56, 130, 56, "PREPROCESS", "features")
    d.box(390, 196, 130, 56, "TRAINING", "policies")
    d.box(640, 56, 150, 56, "INFERENCE", "one decision a bar")
    d.box(640, 196, 150, 56, "EXECUTION", "gate, orders, books")
    d.arrow([(280, 84), (390, 84)])
    d.text(335, 76, "market.bars.v1", "code")
    d.arrow([(520, 84), (640, 84)])
    d.text(580, 46, "preprocess.features.v1", "code")
    d.arrow([(215, 112), (215, 290), (690, 290), (690, 252)])
    d.text(452, 283, "market.bars.v1", "code")
    d.arrow([(455, 112), (455, 196)])
    d.text(462, 158, "Feast", "small", "start")
    d.arrow([(520, 224), (552, 224), (552, 98), (640, 98)])
    d.text(559, 150, "training.", "code", "start")
    d.text(559, 165, "model_ready.v1", "code", "start")
    d.text(448, 158, "features of a range", "small", "end")
    d.arrow([(670, 112), (670, 196)])
    d.text(677, 150, "inference.", "code", "start")
    d.text(677, 165, "signals.v1", "code", "start")
    d.arrow([(760, 196), (760, 112)])
    d.text(767, 150, "execution.", "code", "start")
    d.text(767, 165, "portfolio.v1", "code", "start")
    d.arrow([(760, 252), (760, 330), (190, 330)], dashed=True)
    d.text(452, 323, "experience.transitions.v1", "code")
    d.text(120, 327, "experience: what each", "small")
    d.text(120, 342, "decision was worth", "small")
    d.arrow([(790, 224), (806, 224)])
    d.text(830, 221, "paper", "small")
    d.text(830, 236, "venue", "small")
    return d.svg()


def bars() -> str:
    """Bars of an hour, and the longer bar that is made of them."""
    d = Drawing(720, 300, "Four bars of an hour and the bar of four hours that closes with the last")
    prices = [(3.0, 4.2, 2.4, 3.8), (3.8, 4.4, 3.0, 3.2), (3.2, 5.2, 3.1, 5.0), (5.0, 5.6, 4.2, 4.6)]
    for number, bar in enumerate(prices):
        x = 60.0 + 95 * number
        d.candle(x + 25, 40, bar, (250, 34))
        d.line([(x, 244), (x, 254)])
        d.text(x, 270, f"{9 + number:02d}:00", "small")
    d.line([(440, 244), (440, 254)])
    d.text(440, 270, "13:00", "small")
    d.line([(50, 249), (450, 249)])
    d.text(245, 290, "a bar holds its open, not its close: [09:00, 10:00)", "small")
    d.rect(60, 26, 380, 214, "miss", 4)
    d.text(250, 20, "1h", "name")
    d.arrow([(450, 130), (520, 130)])
    d.text(485, 120, "higher", "small")
    d.text(485, 150, "timeframe", "small")
    d.candle(560, 60, (3.0, 5.6, 2.4, 4.6), (250, 34))
    d.text(590, 20, "4h", "name")
    d.text(590, 270, "09:00 to 13:00", "small")
    d.text(640, 66, "high", "small", "start")
    d.text(640, 98, "close", "small", "start")
    d.text(640, 152, "open", "small", "start")
    d.text(640, 172, "low", "small", "start")
    return d.svg()


def decision() -> str:
    """One bar, from its close to the reward of its decision."""
    d = Drawing(860, 250, "The bar t closes, is decided on, and is filled and rewarded within bar t + 1")
    for x, label in ((60, "open of t"), (430, "close of t"), (800, "close of t + 1")):
        d.line([(x, 70), (x, 170)])
        d.text(x, 62, label, "small")
    d.text(430, 46, "= open of t + 1", "small")
    d.arrow([(40, 120), (838, 120)])
    d.text(245, 112, "bar t", "name")
    d.text(615, 112, "bar t + 1", "name")
    d.box(264, 136, 154, 34, "features(t), mark(t)", kind="soft")
    d.text(341, 190, "everything up to the close,", "small")
    d.text(341, 206, "nothing after it", "small")
    d.box(446, 136, 92, 34, "signal(t)", kind="hit")
    d.text(492, 190, "one decision", "small")
    d.box(556, 136, 122, 34, "order, fill", kind="soft")
    d.text(617, 190, "at the open of t + 1,", "small")
    d.text(617, 206, "with slippage and fee", "small")
    d.box(706, 136, 88, 34, "reward(t)", kind="soft")
    d.text(750, 190, "one bar later", "small")
    d.text(430, 234, "Before its close nobody knows the bar; after its close nobody changes the decision.", "small")
    return d.svg()


def orders() -> str:
    """The way of a target through the gate to a fill."""
    d = Drawing(860, 290, "From a target weight through the risk gate to an order and its fill")
    d.box(24, 96, 120, 54, "target weight", "of the signal")
    d.arrow([(144, 123), (190, 123)])
    d.box(190, 96, 120, 54, "sizing", "lots, at the close")
    d.arrow([(310, 123), (356, 123)])
    d.box(356, 96, 120, 54, "risk gate", "limits", kind="hit")
    d.arrow([(476, 123), (540, 123)])
    d.text(507, 115, "ordered", "small")
    d.box(540, 96, 110, 54, "order", "working")
    d.arrow([(650, 123), (706, 123)])
    d.text(678, 115, "next", "small")
    d.text(678, 141, "open", "small")
    d.box(706, 96, 130, 54, "fill", "price, fee, slippage")
    d.arrow([(416, 96), (416, 56)])
    d.text(416, 46, "unchanged: within the no-trade band, or less than a lot", "small")
    d.arrow([(416, 150), (416, 186)])
    d.text(416, 202, "denied, with a code:", "small")
    codes = [wire_code(code) for code in sorted(DENIED)]
    for row in range(0, len(codes), 3):
        d.text(416, 221 + 6 * row, "  ".join(codes[row : row + 3]), "code")
    d.arrow([(595, 150), (595, 186)])
    d.text(600, 202, "expires where the bar", "small", "start")
    d.text(600, 218, "does not come", "small", "start")
    d.text(770, 170, "partial where a bar's", "small")
    d.text(770, 186, "volume is capped", "small")
    return d.svg()


def book() -> str:
    """The book of a portfolio, and what may happen to it."""
    d = Drawing(860, 260, "A portfolio book: active, halted, or in quarantine")
    d.box(40, 84, 180, 92, "active", "decisions are taken,", "orders pass the gate", kind="hit")
    d.box(340, 24, 210, 84, "halted", "positions are closed,", "nothing is opened")
    d.box(340, 152, 210, 84, "in quarantine", "marked, limits hold,", "decisions are not taken")
    d.arrow([(220, 104), (280, 104), (280, 66), (340, 66)])
    halts = [one.name.lower() for one in Halt if one]
    for number, name in enumerate(halts):
        d.text(274, 56 + 16 * (number - 1), name, "code", "end")
    d.arrow([(220, 150), (280, 150), (280, 194), (340, 194)])
    d.text(274, 204, "it fails for good", "small", "end")
    d.arrow([(445, 236), (445, 248), (130, 248), (130, 176)], dashed=True)
    d.text(150, 236, "tradeloop book release", "code", "start")
    d.box(640, 84, 180, 92, "ledger", "books, orders, fills,", "outbox, offsets", kind="soft")
    d.line([(550, 66), (590, 66), (590, 130)])
    d.line([(550, 194), (590, 194), (590, 130)])
    d.arrow([(590, 130), (640, 130)])
    d.text(600, 66, "one transaction", "small", "start")
    return d.svg()


def universe() -> str:
    """A frame: the bars of all instruments at one open time."""
    d = Drawing(720, 250, "Frames of a universe of three instruments, one of which lacks a bar and one of which joins")
    for row, name in enumerate(("BTC/USDT", "ETH/USDT", "NEW/USDT")):
        y = 60.0 + 52 * row
        d.text(118, y + 24, name, "name", "end")
        for column in range(5):
            kind = "box"
            if (row, column) == (1, 2):
                kind = "miss"
            if row == 2 and column < 3:
                kind = "soft"
            d.rect(140 + 96 * column, y, 84, 38, kind)
            words = {"box": "bar", "miss": "missing", "soft": "outside"}[kind]
            d.text(182 + 96 * column, y + 24, words, "small")
    d.rect(328, 48, 92, 170, "miss", 8)
    d.text(374, 40, "a frame", "name")
    d.arrow([(132, 232), (640, 232)])
    d.text(660, 236, "time", "small", "start")
    return d.svg()


def model() -> str:
    """From a training to the policy that trades."""
    d = Drawing(860, 210, "A trained policy is a candidate, passes the gate, and is activated")
    d.box(24, 60, 130, 58, "training", "85 % of the range")
    d.arrow([(154, 89), (204, 89)])
    d.box(204, 60, 140, 58, "best checkpoint", "on the last 15 %")
    d.arrow([(344, 89), (394, 89)])
    d.box(394, 60, 140, 58, "promotion gate", "above cash and", "buy and hold", kind="hit")
    d.arrow([(534, 76), (590, 76)])
    d.text(560, 66, "passes", "small")
    d.box(590, 40, 110, 44, "champion")
    d.arrow([(464, 118), (464, 156), (590, 156)])
    d.text(527, 148, "does not", "small")
    d.box(590, 134, 110, 44, "candidate", kind="soft")
    d.arrow([(700, 62), (740, 62)])
    d.box(740, 34, 100, 56, "activation", "from a bar on")
    d.line([(700, 156), (790, 156)], dashed=True)
    d.arrow([(790, 156), (790, 90)], dashed=True)
    d.text(846, 198, "model_alias: candidate", "code", "end")
    return d.svg()


def features() -> str:
    """The window of an observation, and the warm-up before it."""
    d = Drawing(720, 220, "Bars that warm a feature up, and the window that a policy sees")
    for number in range(14):
        kind = "soft" if number < 6 else "box" if number < 10 else "hit"
        d.rect(40 + 44 * number, 70, 36, 44, kind, 4)
    d.text(168, 138, "warm-up: the history of the longest feature", "small")
    d.line([(40, 124), (300, 124)])
    d.text(566, 138, "window", "name")
    d.line([(480, 124), (652, 124)])
    d.text(566, 156, "features of the last bars, then the account", "small")
    d.text(646, 60, "t", "name")
    d.arrow([(40, 190), (680, 190)])
    d.text(360, 208, "a value at t is made of bars up to t, in batch and in stream, with the same bits", "small")
    return d.svg()


def replay() -> str:
    """Live, and the same bars once more beside it."""
    d = Drawing(860, 220, "A range is traded once more beside the running stack, and compared")
    d.box(30, 40, 150, 50, "live frames", "as they went out")
    d.box(260, 30, 240, 70, "five services", "their topics and ledger")
    d.box(260, 130, 240, 70, "once more, with --prefix", "topics and a ledger of its own", kind="soft")
    d.arrow([(180, 65), (260, 65)])
    d.arrow([(105, 90), (105, 165), (260, 165)])
    d.arrow([(500, 65), (560, 65), (560, 96), (620, 96)])
    d.arrow([(500, 165), (560, 165), (560, 134), (620, 134)])
    d.box(620, 80, 210, 70, "equal?", "signals, orders, fills, equity", kind="hit")
    d.text(725, 172, "exit 1 at the first difference, in words", "small")
    return d.svg()


PICTURES: Mapping[str, Callable[[], str]] = {
    "bars": bars,
    "book": book,
    "decision": decision,
    "features": features,
    "flow": flow,
    "model": model,
    "orders": orders,
    "replay": replay,
    "universe": universe,
}


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    for name, draw in PICTURES.items():
        (FOLDER / f"{name}.svg").write_text(draw())


if __name__ == "__main__":
    main()
