"""The panels of the dashboards, and the expressions that Prometheus answers for them.

Every metric here is one that `docs/metrics.md` lists. What exists only when something went wrong ends with
`or vector(0)`: a panel without data looks like one that is broken.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

RATE = "$__rate_interval"
"""Grafana puts a span in its place that holds several scrapes."""
BOOK = 'portfolio=~"$portfolio"'
"""The portfolios that are chosen above the panels."""


@dataclass(frozen=True, slots=True)
class Panel:
    """One panel: `queries` are expressions with what their series are called."""

    title: str
    queries: Sequence[tuple[str, str]]
    unit: str = "short"
    """As Grafana names units."""
    kind: Literal["timeseries", "stat", "table"] = "timeseries"
    text: str = ""


@dataclass(frozen=True, slots=True)
class Dashboard:
    """One page of panels, two side by side."""

    name: str
    title: str
    panels: Sequence[Panel]
    chooses: bool = False
    """Whether portfolios can be chosen."""


def _age(metric: str, labels: str = "") -> str:
    return f"time() - {metric}{labels}"


def _quantile(share: float, metric: str, by: str) -> str:
    return f"histogram_quantile({share}, sum by ({by}, le) (rate({metric}_bucket[{RATE}])))"


def _increase(metric: str, by: str, labels: str = "") -> str:
    return f"sum by ({by}) (increase({metric}{labels}[{RATE}]))"


def _of_books(*metrics: tuple[str, str]) -> list[tuple[str, str]]:
    return [(f"{metric}{{{BOOK}}}", legend) for metric, legend in metrics]


PIPELINE = Dashboard(
    "pipeline",
    "Pipeline",
    [
        Panel("Ready", [("tradeloop_ready", "{{job}} {{instance}}")], kind="stat", text="0: /ready says why."),
        Panel("Builds", [("tradeloop_build_info", "{{service}} {{version}} {{commit}}")], kind="table"),
        Panel(
            "Manifests",
            [("tradeloop_manifest_info", "{{service}} {{manifest}} {{version}} {{packages}} {{settings}}")],
            kind="table",
            text="Of each process: what it was started with, as on control.manifests.v1.",
        ),
        Panel(
            "Traces, and manifests that are not on their topic",
            [
                (f"sum by (job) (rate(tradeloop_spans_sent_total[{RATE}])) or vector(0)", "{{job}} sent"),
                (f"sum by (job, reason) (rate(tradeloop_spans_lost_total[{RATE}])) or vector(0)", "{{job}} {{reason}}"),
                ("(tradeloop_manifest_published == 0) + 1 or vector(0)", "{{job}} {{instance}}"),
            ],
        ),
        Panel("Lag by topic", [("sum by (job, topic) (tradeloop_consumer_lag_messages)", "{{job}} {{topic}}")]),
        Panel(
            "Messages in and out",
            [
                (f"sum by (job) (rate(tradeloop_messages_handled_total[{RATE}]))", "{{job}} in"),
                (f"sum by (job) (rate(tradeloop_messages_published_total[{RATE}]))", "{{job}} out"),
            ],
            "ops",
        ),
        Panel(
            "Time for a message",
            [
                (_quantile(0.5, "tradeloop_handle_seconds", "job"), "{{job}} median"),
                (_quantile(0.99, "tradeloop_handle_seconds", "job"), "{{job}} 99 %"),
            ],
            "s",
        ),
        Panel("Messages that wait for others", [("tradeloop_messages_pending", "{{job}} {{instance}}")]),
        Panel("Age of the last event", [(_age("tradeloop_last_event_timestamp_seconds"), "{{job}} {{instance}}")], "s"),
        Panel(
            "Age of the newest features",
            [(_age("tradeloop_features_timestamp_seconds"), "{{universe}} {{feature_set}}")],
            "s",
        ),
        Panel(
            "What failed",
            [
                (_increase("tradeloop_messages_retried_total", "job"), "{{job}} again"),
                (_increase("tradeloop_messages_dead_lettered_total", "job"), "{{job}} given up"),
                (_increase("tradeloop_messages_dropped_total", "job"), "{{job}} dropped"),
                ("sum by (job) (tradeloop_messages_lost) or vector(0)", "{{job}} lost"),
            ],
        ),
        Panel("Dead letters", [("sum by (job) (tradeloop_dead_letters)", "{{job}}")]),
        Panel(
            "Events",
            [(f"{_increase('tradeloop_events_total', 'event, portfolio')} or vector(0)", "{{event}} {{portfolio}}")],
            text="What went otherwise than it should, by its name.",
        ),
        Panel("Partitions", [("sum by (job) (tradeloop_assigned_partitions)", "{{job}}")]),
        Panel(
            "Live feeds",
            [
                ("tradeloop_feed_connected or vector(0)", "{{universe}} connected"),
                ("tradeloop_feed_stale or vector(0)", "{{universe}} stale"),
                ("tradeloop_feed_failed or vector(0)", "{{universe}} failed"),
            ],
        ),
        Panel(
            "Live feeds: age of the newest bars, and the venue's clock",
            [
                (f"{_age('tradeloop_feed_published_timestamp_seconds')} or vector(0)", "{{universe}} age"),
                ("tradeloop_feed_clock_offset_seconds or vector(0)", "{{universe}} clock"),
            ],
            "s",
        ),
        Panel("Memory", [("process_resident_memory_bytes", "{{job}} {{instance}}")], "bytes"),
        Panel(
            "Processors",
            [(f"rate(process_cpu_seconds_total[{RATE}])", "{{job}} {{instance}}")],
            text="1 is one processor.",
        ),
    ],
)

TRADING = Dashboard(
    "trading",
    "Trading",
    [
        Panel(
            "Equity",
            _of_books(
                ("tradeloop_portfolio_equity_quote", "{{portfolio}}"),
                ("tradeloop_portfolio_peak_equity_quote", "{{portfolio}} peak"),
            ),
        ),
        Panel("Cash", _of_books(("tradeloop_portfolio_cash_quote", "{{portfolio}}"))),
        Panel(
            "Weights",
            _of_books(("tradeloop_position_weight_ratio", "{{portfolio}} {{instrument}}")),
            "percentunit",
            text="Of universes with few instruments.",
        ),
        Panel("Quantities", _of_books(("tradeloop_position_quantity", "{{portfolio}} {{instrument}}"))),
        Panel(
            "Decisions",
            [
                (
                    _increase("tradeloop_decisions_total", "portfolio, outcome", f"{{{BOOK}}}"),
                    "{{portfolio}} {{outcome}}",
                )
            ],
        ),
        Panel(
            "Orders",
            [(_increase("tradeloop_orders_total", "portfolio, outcome", f"{{{BOOK}}}"), "{{portfolio}} {{outcome}}")],
        ),
        Panel(
            "From bar to decision",
            [
                (_quantile(0.5, "tradeloop_bar_to_decision_seconds", "universe"), "{{universe}} median"),
                (_quantile(0.99, "tradeloop_bar_to_decision_seconds", "universe"), "{{universe}} 99 %"),
            ],
            "s",
            text="Of live bars.",
        ),
        Panel(
            "From bar to order",
            [
                (_quantile(0.5, "tradeloop_bar_to_order_seconds", "universe"), "{{universe}} median"),
                (_quantile(0.99, "tradeloop_bar_to_order_seconds", "universe"), "{{universe}} 99 %"),
            ],
            "s",
            text="Of live bars that led to orders.",
        ),
        Panel(
            "Traded, and its fees",
            [
                (_increase("tradeloop_traded_quote_total", "portfolio", f"{{{BOOK}}}"), "{{portfolio}} traded"),
                (_increase("tradeloop_fees_quote_total", "portfolio", f"{{{BOOK}}}"), "{{portfolio}} fees"),
            ],
        ),
        Panel("Reward", _of_books(("tradeloop_portfolio_reward", "{{portfolio}}")), text="Of the last decision."),
        Panel(
            "Signals",
            [
                (
                    _increase("tradeloop_signals_total", "portfolio, reason", f"{{{BOOK}}}"),
                    "{{portfolio}} {{reason}}",
                )
            ],
        ),
        Panel(
            "Age of bars",
            [
                (_age("tradeloop_portfolio_features_timestamp_seconds", f"{{{BOOK}}}"), "{{portfolio}} features"),
                (_age("tradeloop_portfolio_marked_timestamp_seconds", f"{{{BOOK}}}"), "{{portfolio}} marked"),
                (_age("tradeloop_portfolio_decided_timestamp_seconds", f"{{{BOOK}}}"), "{{portfolio}} decided"),
            ],
            "s",
        ),
        Panel(
            "Models that decide",
            [(f"tradeloop_model_info{{{BOOK}}}", "{{portfolio}} {{model}} {{version}}")],
            kind="table",
        ),
        Panel(
            "Predictions over HTTP",
            [
                (f"{_increase('tradeloop_predictions_total', 'outcome')} or vector(0)", "{{outcome}}"),
                (f"{_quantile(0.99, 'tradeloop_prediction_seconds', 'job')} or vector(0)", "99 %, seconds"),
            ],
        ),
    ],
    chooses=True,
)

TRAINING = Dashboard(
    "training",
    "Training",
    [
        Panel("A policy is trained", [("tradeloop_training_running", "{{instance}}")], kind="stat"),
        Panel(
            "Progress",
            [("tradeloop_training_steps / tradeloop_training_planned_steps", "{{strategy}} on {{universe}}")],
            "percentunit",
        ),
        Panel(
            "Reward of a step",
            [("tradeloop_training_reward", "{{strategy}} on {{universe}}, {{part}}")],
            text="On the bars that are learnt from, and on those kept apart.",
        ),
        Panel("Runs", [("sum by (outcome) (tradeloop_training_runs_total)", "{{outcome}}")], kind="stat"),
        Panel(
            "Age of what the models know",
            [(_age("tradeloop_model_trained_timestamp_seconds"), "{{portfolio}}")],
            "s",
            text="Since the last bar that the model has learnt from, or was chosen on.",
        ),
        Panel("Reward in trading", [("avg_over_time(tradeloop_portfolio_reward[1h])", "{{portfolio}}")]),
        Panel(
            "Drift of features",
            [("max by (portfolio, feature) (tradeloop_feature_drift_sigmas)", "{{portfolio}} {{feature}}")],
            text="How far their mean is from that in training, in standard deviations of training.",
        ),
        Panel("Experience", [(_increase("tradeloop_transitions_total", "portfolio"), "{{portfolio}}")]),
        Panel(
            "Experience that is missing",
            [
                (
                    _increase("tradeloop_events_total", "portfolio", '{event="transition_missing"}') + " or vector(0)",
                    "{{portfolio}}",
                )
            ],
        ),
    ],
)

RISK = Dashboard(
    "risk",
    "Risk",
    [
        Panel("Drawdown", _of_books(("tradeloop_portfolio_drawdown_ratio", "{{portfolio}}")), "percentunit"),
        Panel(
            "Exposure",
            _of_books(
                ("tradeloop_portfolio_gross_exposure_ratio", "{{portfolio}} gross"),
                ("tradeloop_portfolio_net_exposure_ratio", "{{portfolio}} net"),
            ),
            "percentunit",
        ),
        Panel("Halted by a limit", _of_books(("tradeloop_portfolio_halted", "{{portfolio}}")), kind="stat"),
        Panel("In quarantine", _of_books(("tradeloop_portfolio_quarantined", "{{portfolio}}")), kind="stat"),
        Panel("Killed by an operator", _of_books(("tradeloop_portfolio_killed", "{{portfolio}}")), kind="stat"),
        Panel(
            "Denied by the risk gate",
            [(_increase("tradeloop_denials_total", "portfolio, code", f"{{{BOOK}}}"), "{{portfolio}} {{code}}")],
        ),
        Panel(
            "Decisions that did not count",
            [
                (
                    _increase(
                        "tradeloop_decisions_total",
                        "portfolio, outcome",
                        f'{{outcome=~"missed|quarantined|killed|no_.*", {BOOK}}}',
                    ),
                    "{{portfolio}} {{outcome}}",
                )
            ],
        ),
        Panel("Positions", _of_books(("tradeloop_portfolio_positions", "{{portfolio}}"))),
        Panel("Working orders", _of_books(("tradeloop_portfolio_working_orders", "{{portfolio}}"))),
        Panel(
            "Waits for its decision",
            [
                (
                    _age("tradeloop_portfolio_awaiting_since_timestamp_seconds", f"{{{BOOK}}}") + " or vector(0)",
                    "{{portfolio}}",
                )
            ],
            "s",
        ),
        Panel(
            "Alerts",
            [('sum by (alertname, severity) (ALERTS{alertstate="firing"}) or vector(0)', "{{severity}} {{alertname}}")],
            text="docs/runbooks.md has a section for each.",
        ),
    ],
    chooses=True,
)

DASHBOARDS = (PIPELINE, TRADING, TRAINING, RISK)
