"""Ingest: market data in, closed bars out.

Reads `ingest.backfill_requested.v1`, `ingest.replay_requested.v1` and `ingest.live_requested.v1`; writes
`ingest.backfill_completed.v1`, `ingest.live_reported.v1`, `market.bars.v1`, `market.events.v1`, `market.trades.v1`,
`market.books.v1`, `market.news.v1` and `control.manifests.v1`.

It promises that a file is stored whole or refused whole, by one line that names the row; that stored higher
timeframes are what a stream of their base bars gives, to the bit; and that frames go out in the order of time, a
frame of a higher timeframe just before the base frame at whose close it is known. A replay that was interrupted
starts again with the same messages. A live bar goes out when it is closed beyond doubt, stored first, each once; what
turns out to be otherwise goes out as a revision. A halt, its end, a delisting and a new symbol go out before the
first frame that knows them.
"""
