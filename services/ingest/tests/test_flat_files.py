"""massive's flat files: signed requests, days without files, and files on disk."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from pydantic import SecretStr

from tradeloop.common.bar_store.memory import MemoryBarStore
from tradeloop.common.clock import SystemClock
from tradeloop.common.errors import UserError
from tradeloop.common.market import Timeframe, to_us
from tradeloop.ingest.adapters.files import read_bars
from tradeloop.ingest.adapters.flat_files import FlatFilesSource
from tradeloop.ingest.adapters.s3 import signed
from tradeloop.ingest.adapters.sections import FlatFilesSection
from tradeloop.ingest.adapters.sql_fetched import SqlFetched
from tradeloop.ingest.application.fetch import fetch
from tradeloop.ingest.contracts import MarketOnTrial, check_market_source
from tradeloop.ingest.contracts.fake_venue import FakeVenue, Listing, Market, VenueClock
from tradeloop.ingest.ports import SourceUnavailable

NOW = datetime(2024, 1, 10, 17, tzinfo=UTC)
START, END = datetime(2024, 1, 2, 5, tzinfo=UTC), datetime(2024, 1, 6, 5, tzinfo=UTC)
"""From Tuesday to Friday, in New York."""
FAULTS: dict[str, dict[str, object]] = {
    "none": {},
    "page_limit": {"page_limit": 2},
    "slow_s": {"slow_s": 0.01},
    "rate_limited": {"rate_limited": 0.3, "retry_after_s": 0.0},
    "server_errors": {"server_errors": 0.3},
    "garbled_answers": {"garbled_answers": 0.3},
    "clock_ahead_s": {"clock_ahead_s": 20.0},
}
"""Files have no sockets, and no open bar: the other faults are those of streams."""


@pytest.fixture(autouse=True)
def _credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASSIVE_FILES_KEY", "key")
    monkeypatch.setenv("MASSIVE_FILES_SECRET", "a secret")


@contextmanager
def fake_venue(now: datetime = NOW, **credentials: str) -> Iterator[FakeVenue]:
    listings = [Listing("AAPL", 190.0, 2, 0), Listing("AAP", 60.0, 2, 0), Listing("MSFT", 420.0, 2, 0)]
    secrets = credentials or {"key": "a secret"}
    with FakeVenue(Market(listings, clock=VenueClock(now, speed=0.0)), credentials=secrets) as venue:
        yield venue


def opened(venue: FakeVenue, **more: object) -> FlatFilesSource:
    values = {"url": venue.url, "requests_per_s": 10_000, **more}
    return FlatFilesSource("massive-files", FlatFilesSection.model_validate(values), SystemClock())


@pytest.mark.parametrize(
    ("url", "headers", "signature"),
    [
        (
            "https://examplebucket.s3.amazonaws.com/test.txt",
            {"Range": "bytes=0-9"},
            "f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41",
        ),
        (
            "https://examplebucket.s3.amazonaws.com/?max-keys=2&prefix=J",
            {},
            "34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7",
        ),
        (
            "https://examplebucket.s3.amazonaws.com/?lifecycle=",
            {},
            "fea454ca298b7da1c68078a5d1bdbfbbe0d65c699e0f91ac7a200a0136783543",
        ),
    ],
)
def test_signatures_are_those_of_the_published_examples(url: str, headers: dict[str, str], signature: str) -> None:
    """The examples of https://docs.aws.amazon.com/AmazonS3/latest/API/sig-v4-header-based-auth.html."""
    secret = SecretStr("wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY")
    told = signed(url, "AKIAIOSFODNN7EXAMPLE", secret, datetime(2013, 5, 24, tzinfo=UTC), headers)
    assert told["authorization"].endswith(f"Signature={signature}")
    assert secret.get_secret_value() not in str(told)


@pytest.mark.parametrize("kept", [False, True], ids=["streamed", "kept"])
@pytest.mark.parametrize("fault", FAULTS)
def test_flat_files_keep_the_contract_whatever_the_store_does(fault: str, kept: bool, tmp_path: Path) -> None:
    with fake_venue() as venue:
        venue.faults.change(**FAULTS[fault])
        check_market_source(
            MarketOnTrial(
                open=lambda: opened(venue, folder=tmp_path if kept else None),
                symbol="AAPL",
                timeframe=Timeframe.M1,
                start_us=to_us(START),
                end_us=to_us(END),
                truth=lambda start_us, end_us: venue.market.bars("AAPL", "1m", start_us, end_us).series(),
                now_us=venue.market.now_us,
                advance=venue.advance,
                streams=False,
                lag_us=13 * Timeframe.H1.us,
            )
        )


def test_a_backfill_is_day_by_day_goes_on_and_fetches_nothing_twice(tmp_path: Path) -> None:
    with fake_venue() as venue, closing(opened(venue)) as source:
        store, fetched = MemoryBarStore(SystemClock()), SqlFetched(f"sqlite:///{tmp_path / 'f.db'}", SystemClock())
        [instrument] = source.instruments(["AAPL"])
        pauses = threading.Event()
        span = to_us(START), to_us(NOW)

        def run() -> Iterator[object]:
            return fetch(source, "f", store, fetched, instrument, Timeframe.M1, *span, pauses.wait)

        before, first = venue.served["files"], run()
        for _ in range(3):
            next(first)
        del first  # as if it were killed
        venue.faults.storm(3, 429)
        venue.faults.retry_after_s = 0.0
        assert len(list(run())) >= 6
        assert venue.served["status 503"] == 3
        days = [datetime(2024, 1, day, 5, tzinfo=UTC) for day in (2, 3, 4, 5, 8, 9)]
        assert venue.served["files"] - before <= len(days) + 2
        truth = np.concatenate(
            [venue.market.bars("AAPL", "1m", to_us(day), to_us(day + timedelta(days=1))).close for day in days]
        )
        stored = store.read([instrument.id], Timeframe.M1, *span)
        assert np.array_equal(stored.close[:, 0], truth), "all of the days that have a file, and no weekend"
        asked = venue.served["files"]
        list(run())
        assert venue.served["files"] == asked
        venue.market.clock.advance(24 * 3600)
        list(fetch(source, "f", store, fetched, instrument, Timeframe.M1, *span, pauses.wait))
        assert venue.served["files"] == asked + 1, "a day later, one more day is there"


def test_days_are_midnights_in_new_york_and_the_summer_is_no_hole() -> None:
    """A month with the change to daylight saving."""
    with fake_venue(datetime(2024, 4, 2, tzinfo=UTC)) as venue, closing(opened(venue)) as source:
        [instrument] = source.instruments(["MSFT"])
        start, end = datetime(2024, 3, 8, tzinfo=UTC), datetime(2024, 3, 13, tzinfo=UTC)
        opens = np.concatenate(
            [page.bars["open_us"] for page in source.history(instrument, Timeframe.M1, to_us(start), to_us(end))]
        )
        friday = np.arange(
            to_us(datetime(2024, 3, 8, 5, tzinfo=UTC)), to_us(datetime(2024, 3, 9, 5, tzinfo=UTC)), 60_000_000
        )
        summer = np.arange(to_us(datetime(2024, 3, 11, 4, tzinfo=UTC)), to_us(end), 60_000_000)
        night = np.arange(to_us(start), to_us(datetime(2024, 3, 8, 5, tzinfo=UTC)), 60_000_000)
        assert np.array_equal(opens, np.concatenate([night, friday, summer]))
        pages = list(source.history(instrument, Timeframe.D1, to_us(start), to_us(end)))
        times = [int(one) for page in pages for one in page.bars["open_us"]]
        assert times == [to_us(datetime(2024, 3, day, hour, tzinfo=UTC)) for day, hour in ((8, 5), (11, 4), (12, 4))]


def test_a_file_is_fetched_once_for_all_instruments_where_they_are_kept(tmp_path: Path) -> None:
    with fake_venue() as venue, closing(opened(venue, folder=tmp_path)) as source:
        for symbol in ("AAPL", "AAP", "MSFT"):
            [instrument] = source.instruments([symbol])
            pages = list(source.history(instrument, Timeframe.M1, to_us(START), to_us(END)))
            truth = venue.market.bars(symbol, "1m", to_us(START), to_us(END))
            assert np.array_equal(np.concatenate([page.bars["volume"] for page in pages]), truth.volume)
        assert venue.served["files"] == 4 + 1
        assert len(list(tmp_path.rglob("*"))) - sum(one.is_dir() for one in tmp_path.rglob("*")) == 5
        kept = tmp_path / "us_stocks_sip/minute_aggs_v1/2024/01/2024-01-03.csv.gz"
        kept.write_bytes(kept.read_bytes()[:5000])
        with pytest.raises(UserError, match=r"2024-01-03.csv.gz breaks off: .* delete it"):
            list(source.history(instrument, Timeframe.M1, to_us(START), to_us(END)))


def test_what_is_refused_is_one_line() -> None:
    with fake_venue() as venue:
        with closing(opened(venue)) as source:
            with pytest.raises(UserError, match=r"has no APPL: did you mean AAPL.*check_symbols: false"):
                source.instruments(["APPL"])
            [instrument] = source.instruments(["AAPL"])
            with pytest.raises(UserError, match="has no bars of 5m: it has 1m and 1d"):
                source.history(instrument, Timeframe.M5, 0, 1)
            venue.faults.change(denied=True)
            with pytest.raises(UserError, match=r"denies permission: 403 .*AccessDenied"):
                list(source.history(instrument, Timeframe.M1, to_us(START), to_us(END)))
            venue.faults.change(denied=False)
        with closing(opened(venue, check_symbols=False)) as source:
            [delisted] = source.instruments(["GONE"])
            pages = list(source.history(delisted, Timeframe.M1, to_us(START), to_us(END)))
            assert [len(page.bars["open_us"]) for page in pages] == [0] * 4
        with (
            closing(opened(venue, prefix="us_options_opra")) as source,
            pytest.raises(UserError, match="see its bucket"),
        ):
            source.instruments(["AAPL"])
    with (
        fake_venue(key="another secret") as venue,
        closing(opened(venue)) as source,
        pytest.raises(UserError, match="massive-files refuses the credentials") as raised,
    ):
        source.instruments(["AAPL"])
    assert "a secret" not in str(raised.value)


def test_a_store_that_is_away_is_unavailable() -> None:
    section = FlatFilesSection(url="http://127.0.0.1:9")
    with pytest.raises(SourceUnavailable, match="massive-files does not answer"):
        FlatFilesSource("massive-files", section, SystemClock()).time_us()


def test_a_flat_file_on_disk_is_a_file_of_bars(tmp_path: Path) -> None:
    with fake_venue() as venue, closing(opened(venue, folder=tmp_path)) as source:
        [instrument] = source.instruments(["AAPL"])
        [page] = source.history(instrument, Timeframe.M1, to_us(START), to_us(START + timedelta(days=1)))
        bars, report = read_bars(
            f"{tmp_path / 'us_stocks_sip/minute_aggs_v1/2024/01/2024-01-02.csv.gz'}#AAPL", instrument
        )
        assert np.array_equal(bars.open_us, page.bars["open_us"])
        for name in ("open", "high", "low", "close", "volume"):
            assert np.array_equal(getattr(bars, name)[:, 0], page.bars[name])
        assert (report.time_format, report.timeframe, report.ignored) == ("epoch ns", Timeframe.M1, ("transactions",))
