"""The fake venue as a process: `python -m tradeloop.ingest.contracts.fake_venue --port 8090`.

It prints its address when it can be asked, and serves until it is ended, by a kill if need be: one that is started
with the same options says the same. `/_control` tells what was served, and takes faults.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime

from tradeloop.ingest.contracts.fake_venue.clock import VenueClock
from tradeloop.ingest.contracts.fake_venue.faults import Faults
from tradeloop.ingest.contracts.fake_venue.market import DEFAULT, Listing, Market
from tradeloop.ingest.contracts.fake_venue.recorded import Recording
from tradeloop.ingest.contracts.fake_venue.server import FakeVenue


def _time(text: str) -> datetime:
    time = datetime.fromisoformat(text)
    return time if time.tzinfo else time.replace(tzinfo=UTC)


def _fault(text: str) -> tuple[str, object]:
    name, _, value = text.partition("=")
    return name, json.loads(value)


def _listing(text: str) -> Listing:
    """`BTC/USDT` or `BTC/USDT=60000`."""
    symbol, _, price = text.partition("=")
    known = {one.symbol: one for one in DEFAULT}
    found = known.get(symbol, Listing(symbol))
    return replace(found, price=float(price)) if price else found


def _options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="fake_venue", description="A venue on this machine, for tests")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--symbols", type=_listing, nargs="+", default=DEFAULT, help="such as BTC/USDT AAPL=190")
    parser.add_argument("--begins", type=_time, default=datetime(2024, 1, 1, tzinfo=UTC), help="the first day")
    parser.add_argument("--origin", type=_time, help="the venue's time at the start; this machine's if not given")
    parser.add_argument("--anchor", type=_time, help="this machine's time at --origin; that of the start if not given")
    parser.add_argument("--speed", type=float, default=1.0, help="how many times as fast the venue's time is; 0 stands")
    parser.add_argument("--corrections", type=float, default=0.0, help="the share of minutes that are corrected")
    parser.add_argument("--correction-delay", type=float, default=120.0, help="seconds after their close")
    parser.add_argument("--fault", type=_fault, action="append", default=[], help="NAME=VALUE, such as missing=0.8")
    parser.add_argument("--credentials", help="KEY:SECRET, the only ones that come in")
    parser.add_argument("--recording", help="a file of recorded frames of Binance, which plays from the start")
    parser.add_argument("--recording-speed", type=float, default=1.0)
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Serve until the process ends."""
    parser = _options()
    options = parser.parse_args(arguments)
    faults = Faults(seed=options.seed)
    try:
        faults.change(**dict(options.fault))
        market = Market(
            options.symbols,
            seed=options.seed,
            begins=options.begins,
            clock=VenueClock(options.origin, speed=options.speed, anchor=options.anchor),
            corrections=options.corrections,
            correction_delay_s=options.correction_delay,
        )
        recording = options.recording and Recording(options.recording, speed=options.recording_speed)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    credentials = dict([options.credentials.split(":", 1)]) if options.credentials else None
    venue = FakeVenue(
        market,
        faults=faults,
        credentials=credentials,
        recording=recording or None,
        host=options.host,
        port=options.port,
    )
    with suppress(KeyboardInterrupt):
        asyncio.run(venue.serve(lambda: print(venue.url, flush=True)))


if __name__ == "__main__":
    main()
