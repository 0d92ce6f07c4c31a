"""Figures as Prometheus reads them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from operator import attrgetter

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from tradeloop.common.runtime.counters import LATENCIES_S, Durations
from tradeloop.common.runtime.metrics import CATALOGUE, Family, Figure
from tradeloop.common.runtime.runner import Runner
from tradeloop.common.runtime.standing import FeedStanding, Standing

_BOUNDS = (*map(str, LATENCIES_S), "+Inf")


def exposed(service: str, figures: Iterable[Figure]) -> Iterator[Metric]:
    """All families of a service in the order of the catalogue, those without a sample too."""
    samples: dict[str, list[Figure]] = {}
    for figure in figures:
        samples.setdefault(figure.family, []).append(figure)
    for family in CATALOGUE.values():
        if family.of(service) or family.name in samples:
            yield _metric(family, samples.pop(family.name, ()))
    if samples:
        raise AssertionError(f"{service} measures what is not in the catalogue: {', '.join(samples)}")


def of_runner(runner: Runner) -> Iterator[Figure]:
    """The figures that every service has; the run loop only counts."""
    counters = runner.counters
    yield Figure("tradeloop_messages_handled_total", counters.handled)
    yield Figure("tradeloop_messages_published_total", counters.published)
    yield Figure("tradeloop_messages_retried_total", counters.retried)
    yield Figure("tradeloop_messages_dead_lettered_total", counters.dead_letters)
    yield Figure("tradeloop_messages_dropped_total", counters.dropped)
    yield Figure("tradeloop_handle_seconds", counters.durations)
    yield Figure("tradeloop_messages_pending", runner.pending)
    partitions = runner.assigned or frozenset()
    for topic in runner.topics:
        yield Figure("tradeloop_assigned_partitions", sum(each.topic == topic for each in partitions), (topic,))
    for partition, count in runner.lost.items():
        yield Figure("tradeloop_messages_lost", count, (partition.topic, str(partition.number)))
    if (message := runner.last_message) is not None and (occurred := message.occurred) is not None:
        yield Figure("tradeloop_last_event_timestamp_seconds", occurred.timestamp())
    yield from _portfolios(runner.standings)
    yield from _feeds(runner.feeds)
    for labels, tally in runner.tallies.items():
        yield Figure("tradeloop_events_total", tally, labels)
    yield from runner.figures


def _metric(family: Family, samples: Sequence[Figure]) -> Metric:
    if family.kind == "histogram":
        histogram = HistogramMetricFamily(family.name, family.text, labels=family.labels)
        for _, value, labels in samples:
            if isinstance(value, Durations):
                within = list(value.within)
                buckets = [(bound, float(sum(within[: n + 1]))) for n, bound in enumerate(_BOUNDS)]
                histogram.add_metric(labels, buckets, value.total_s)
        return histogram
    made = CounterMetricFamily if family.kind == "counter" else GaugeMetricFamily
    metric = made(family.name, family.text, labels=family.labels)
    for _, value, labels in samples:
        if not isinstance(value, Durations):
            metric.add_metric(labels, value)
    return metric


def _portfolios(standings: Sequence[Standing]) -> Iterator[Figure]:
    for name in ("marked", "decided", "awaiting_since"):
        time = attrgetter(name)
        for each in standings:
            if (at := time(each)) is not None:
                family = f"tradeloop_portfolio_{name}_timestamp_seconds"
                yield Figure(family, at.timestamp(), (each.universe, each.portfolio))
    for each in standings:
        set_aside = float(each.quarantined_since is not None)
        yield Figure("tradeloop_portfolio_quarantined", set_aside, (each.universe, each.portfolio))
    for each in standings:
        killed = float(each.killed_since is not None)
        yield Figure("tradeloop_portfolio_killed", killed, (each.universe, each.portfolio))


def _feeds(standings: Sequence[FeedStanding]) -> Iterator[Figure]:
    for each in standings:
        labels = (each.universe,)
        yield Figure("tradeloop_feed_connected", float(each.connected), labels)
        yield Figure("tradeloop_feed_failed", float(each.failed), labels)
        yield Figure("tradeloop_feed_stale", float(each.stale_since is not None), labels)
        yield Figure("tradeloop_feed_clock_offset_seconds", each.clock_offset_s, labels)
        if each.published is not None:
            yield Figure("tradeloop_feed_published_timestamp_seconds", each.published.timestamp(), labels)
