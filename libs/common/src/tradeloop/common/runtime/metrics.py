"""The metrics of all services: declared here and nowhere else, and listed in docs/metrics.md.

A name ends with its unit; a count of things has them for its unit. A gauge of something that is not known has no
sample, never one of 0. Counters begin anew with their process, as Prometheus expects.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from tradeloop.common.runtime.counters import Durations

MOST_INSTRUMENTS = 50
"""Universes with more instruments have no metrics of single positions: a Prometheus is no ledger."""

_PORTFOLIO = ("universe", "portfolio")
_POSITION = (*_PORTFOLIO, "instrument")
_SHOWN = f"Only of universes of at most {MOST_INSTRUMENTS} instruments."


@dataclass(frozen=True, slots=True)
class Family:
    """A metric, whatever its labels."""

    name: str
    """As samples have it: a counter ends with `_total`."""
    kind: Literal["counter", "gauge", "histogram"]
    text: str
    labels: tuple[str, ...] = ()
    services: tuple[str, ...] = ()
    """The services that have it; empty for all."""
    absent: str = ""
    """When it has no sample, where that says something."""

    def of(self, service: str) -> bool:
        """Whether a service has it."""
        return not self.services or service in self.services


class Figure(NamedTuple):
    """One sample of a family: what a service measures now."""

    family: str
    value: float | Durations
    labels: tuple[str, ...] = ()
    """The values of the family's labels, in their order."""


def _family(
    kind: Literal["counter", "gauge", "histogram"],
    services: str,
    name: str,
    text: str,
    labels: tuple[str, ...] = (),
    absent: str = "",
) -> Family:
    return Family(f"tradeloop_{name}", kind, text, labels, tuple(services.split()), absent)


_DECLARED: Sequence[Family] = (
    # The run loop of every service.
    _family("counter", "", "messages_handled_total", "Messages handled, those included that failed."),
    _family("counter", "", "messages_published_total", "Messages published."),
    _family("counter", "", "messages_retried_total", "Messages put aside, to be tried again."),
    _family("counter", "", "messages_dead_lettered_total", "Messages given up on."),
    _family(
        "counter", "", "messages_dropped_total", "Outputs refused for their size that no message was given up on for."
    ),
    _family("histogram", "", "handle_seconds", "Seconds to handle a message and publish what comes of it."),
    _family(
        "gauge",
        "",
        "manifest_info",
        "The manifest of what runs here, as on `control.manifests.v1`.",
        ("service", "manifest", "version", "commit", "packages", "settings"),
    ),
    _family("gauge", "", "manifest_published", "1 when that message is on its topic."),
    _family(
        "counter", "", "spans_sent_total", "Spans that the collector of traces took.", (), "no traces are recorded"
    ),
    _family(
        "counter",
        "",
        "spans_lost_total",
        "Spans lost: too many waited (`full`), or the collector of traces did not take them (`refused`).",
        ("reason",),
        "no traces are recorded",
    ),
    _family("gauge", "", "messages_pending", "Messages that wait for others."),
    _family("gauge", "", "ready", "1 when messages are handled now."),
    _family("gauge", "", "assigned_partitions", "Partitions that it reads.", ("topic",)),
    _family(
        "gauge",
        "",
        "consumer_lag_messages",
        "Messages not yet finished.",
        ("topic", "partition"),
        "the bus was not asked yet, or another replica has the partition",
    ),
    _family(
        "gauge",
        "",
        "dead_letters",
        "Messages that the dead-letter topics hold, whoever put them there, replayed ones included.",
        ("topic",),
        "the bus was not asked yet",
    ),
    _family(
        "gauge",
        "",
        "messages_lost",
        "Messages that retention deleted before they were finished, since this process started.",
        ("topic", "partition"),
        "nothing was lost",
    ),
    _family(
        "gauge",
        "",
        "last_event_timestamp_seconds",
        "Event time of the last message handled.",
        (),
        "no message with a time came since the process started",
    ),
    _family(
        "counter",
        "",
        "events_total",
        "What went otherwise than it should, by its name; `portfolio` is the universe where the event is about one.",
        ("event", "portfolio"),
        "it has not happened since the process started",
    ),
    _family("gauge", "", "build_info", "What runs here.", ("service", "version", "commit")),
    # Live feeds.
    _family(
        "gauge",
        "ingest",
        "feed_connected",
        "1 when all streams of the universe's live feed are connected.",
        ("universe",),
        "no live feed runs",
    ),
    _family("gauge", "ingest", "feed_failed", "1 when it is given up until somebody starts it again.", ("universe",)),
    _family("gauge", "ingest", "feed_stale", "1 when a bar is overdue that the calendar expects.", ("universe",)),
    _family(
        "gauge",
        "ingest",
        "feed_clock_offset_seconds",
        "How far the venue's clock is ahead of this machine's.",
        ("universe",),
    ),
    _family(
        "gauge",
        "ingest",
        "feed_published_timestamp_seconds",
        "Close of the newest bars that its live feed published.",
        ("universe",),
        "none went out yet",
    ),
    # Features, models, decisions.
    _family(
        "gauge",
        "preprocess",
        "features_timestamp_seconds",
        "Close of the newest bar whose features were published.",
        ("universe", "feature_set"),
        "no bar came since the process got its partitions",
    ),
    _family(
        "gauge",
        "inference",
        "portfolio_features_timestamp_seconds",
        "Close of the newest bar whose features the portfolio's window has.",
        _PORTFOLIO,
        "the window was not read back yet",
    ),
    _family(
        "gauge",
        "inference",
        "model_info",
        "The model that decides.",
        (*_PORTFOLIO, "model", "version", "model_id"),
        "none decides: none is registered, or it does not fit",
    ),
    _family(
        "gauge",
        "inference",
        "model_trained_timestamp_seconds",
        "Close of the last bar that the model that decides has learnt from, or was chosen on.",
        _PORTFOLIO,
        "none decides",
    ),
    _family(
        "gauge",
        "inference",
        "feature_drift_sigmas",
        "How far a feature's mean of some 500 bars is from that in training, in standard deviations of training.",
        (*_PORTFOLIO, "feature"),
        "the process has not seen 100 bars yet, or the model is from before this was written down",
    ),
    _family(
        "counter",
        "inference",
        "signals_total",
        "Decisions published, repeated ones included, by `reason`: `policy`, or why to hold.",
        (*_PORTFOLIO, "reason"),
        "there was none since the process started",
    ),
    _family("counter", "inference", "predictions_total", "Predictions asked for over HTTP, by outcome.", ("outcome",)),
    _family(
        "histogram",
        "inference",
        "prediction_seconds",
        "Seconds to answer a prediction asked for over HTTP, refused ones included.",
    ),
    # Books.
    _family(
        "gauge",
        "execution",
        "portfolio_marked_timestamp_seconds",
        "Event time of the last bar that the book was valued at.",
        _PORTFOLIO,
        "it was never valued, or its book was not read from the ledger yet",
    ),
    _family(
        "gauge",
        "execution",
        "portfolio_decided_timestamp_seconds",
        "Event time of the last bar decided on.",
        _PORTFOLIO,
        "nothing was decided yet",
    ),
    _family(
        "gauge",
        "execution",
        "portfolio_awaiting_since_timestamp_seconds",
        "Since when it waits for its decision.",
        _PORTFOLIO,
        "it waits for none",
    ),
    _family("gauge", "execution", "portfolio_quarantined", "1 when it is in quarantine.", _PORTFOLIO),
    _family("gauge", "execution", "portfolio_killed", "1 when an operator's kill is in force.", _PORTFOLIO),
    _family(
        "gauge",
        "execution",
        "portfolio_equity_quote",
        "Equity at the last mark, in quote currency.",
        _PORTFOLIO,
        "never marked, or not read from the ledger yet; so are the next ones",
    ),
    _family("gauge", "execution", "portfolio_peak_equity_quote", "Highest equity at a mark so far.", _PORTFOLIO),
    _family("gauge", "execution", "portfolio_cash_quote", "Cash, in quote currency.", _PORTFOLIO),
    _family("gauge", "execution", "portfolio_drawdown_ratio", "Fall from the peak as a share of it.", _PORTFOLIO),
    _family("gauge", "execution", "portfolio_halted", "1 when a limit of its risk has halted it.", _PORTFOLIO),
    _family(
        "gauge",
        "execution",
        "portfolio_gross_exposure_ratio",
        "Value of all positions, short ones too, as a multiple of equity.",
        _PORTFOLIO,
    ),
    _family(
        "gauge",
        "execution",
        "portfolio_net_exposure_ratio",
        "Value of long positions less that of short ones, as a multiple of equity.",
        _PORTFOLIO,
    ),
    _family("gauge", "execution", "portfolio_positions", "Instruments that it holds, long or short.", _PORTFOLIO),
    _family("gauge", "execution", "portfolio_working_orders", "Orders that are meant for the next open.", _PORTFOLIO),
    _family("gauge", "execution", "position_quantity", f"Signed quantity. {_SHOWN}", _POSITION),
    _family(
        "gauge",
        "execution",
        "position_weight_ratio",
        f"Value as a share of equity, negative for short. {_SHOWN}",
        _POSITION,
    ),
    _family(
        "gauge",
        "execution",
        "portfolio_reward",
        "Reward of the last decision that earned one, in the strategy's own unit.",
        _PORTFOLIO,
        "none was earned since the process started: the ledger does not keep it",
    ),
    _family("counter", "execution", "transitions_total", "Rewards recorded.", _PORTFOLIO),
    _family(
        "counter",
        "execution",
        "decisions_total",
        "Decisions settled and recorded, by `outcome`: `policy`, why to hold, `missed`, `quarantined` or `killed`.",
        (*_PORTFOLIO, "outcome"),
    ),
    _family(
        "counter",
        "execution",
        "orders_total",
        "Orders recorded, by what became of them; `working` counts those that were sent.",
        (*_PORTFOLIO, "outcome"),
    ),
    _family("counter", "execution", "traded_quote_total", "Value of all fills, in quote currency.", _PORTFOLIO),
    _family("counter", "execution", "fees_quote_total", "Fees of all fills, in quote currency.", _PORTFOLIO),
    _family(
        "counter",
        "execution",
        "denials_total",
        "Verdicts of the risk gate, by `code`: orders that it denied, and halts. docs/topics.md lists the codes.",
        (*_PORTFOLIO, "code"),
    ),
    _family(
        "histogram",
        "execution",
        "bar_to_decision_seconds",
        "Seconds from the close of a live bar until its decision is recorded. A replay has none.",
        ("universe",),
    ),
    _family(
        "histogram",
        "execution",
        "bar_to_order_seconds",
        "Seconds from the close of a live bar until its orders are recorded, of bars that have any.",
        ("universe",),
    ),
    # Training.
    _family("gauge", "training", "training_running", "1 while a policy is trained."),
    _family(
        "gauge",
        "training",
        "training_steps",
        "Environment steps of the run that goes on, or of the last one.",
        ("strategy", "universe"),
        "none was trained since the process started; so are the next ones",
    ),
    _family("gauge", "training", "training_planned_steps", "Steps that it is to take.", ("strategy", "universe")),
    _family(
        "gauge",
        "training",
        "training_reward",
        "Mean reward of a step, on the bars that are learnt from and on those kept apart (`part`).",
        ("strategy", "universe", "part"),
        "the trainer did not say",
    ),
    _family("counter", "training", "training_runs_total", "Trainings that ended, by `outcome`.", ("outcome",)),
)

CATALOGUE: Mapping[str, Family] = {family.name: family for family in _DECLARED}
"""All families by name, in the order in which they are told."""


def counted(family: str, counts: Mapping[tuple[str, ...], float], *before: str) -> Iterator[Figure]:
    """A figure for each count, whose labels come after some that all of them have."""
    return (Figure(family, count, (*before, *labels)) for labels, count in counts.items())


def check(figures: Iterable[Figure], service: str) -> None:
    """Raises `AssertionError` for a figure that the catalogue does not know, or that a service says twice."""
    seen = set()
    for figure in figures:
        family = CATALOGUE.get(figure.family)
        if family is None or not family.of(service):
            raise AssertionError(f"{service} measures {figure.family}, which the catalogue does not give it")
        if len(figure.labels) != len(family.labels) or (figure.family, figure.labels) in seen:
            raise AssertionError(f"{service}: {figure} has other labels than {family.labels}, or was there before")
        if isinstance(figure.value, Durations) != (family.kind == "histogram"):
            raise AssertionError(f"{service}: {figure} is no {family.kind}")
        seen.add((figure.family, figure.labels))
