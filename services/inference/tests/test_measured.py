"""The metrics of inference; the drift of features, against a mean that is written out."""

from __future__ import annotations

import numpy as np
import pytest

from services.inference.tests.pair import MODEL, SET, WINDOW, Shelf, bars, give, make, policy, time, values
from tradeloop.common.runtime.metrics import check
from tradeloop.inference.application import Inference
from tradeloop.inference.application.drift import LEAST, SPAN, Drift


def test_it_is_the_distance_of_the_fading_mean_in_deviations() -> None:
    generator, drift = np.random.default_rng(3), Drift(2)
    usual = policy(1.0, feature_means=(1.0, -2.0), feature_deviations=(2.0, 0.0)).manifest
    bars = generator.normal((1.0, -2.0), (2.0, 0.5), (3 * SPAN, 4, 2))
    bars[SPAN:, :, 0] += 6.0  # three deviations, from some bar on
    expected = [0.0, 0.0]
    for n, bar in enumerate(bars.tolist(), 1):
        drift.see(np.array(bar))
        for f in range(2):
            mean = sum(row[f] for row in bar) / 4
            expected[f] += (mean - expected[f]) / min(n, SPAN)
        found = drift.sigmas(usual)
        assert (found is None) == (n < LEAST)
        if n == SPAN and found is not None:
            assert found[0] < 0.2
    assert found is not None
    assert found.tolist() == pytest.approx([abs(expected[0] - 1.0) / 2.0, abs(expected[1] + 2.0)], rel=1e-12)
    assert found[0] > 2.0, "after twice the span"


def test_a_model_that_does_not_say_what_was_usual_has_none() -> None:
    drift = Drift(2)
    for _ in range(LEAST):
        drift.see(np.ones((1, 2)))
    assert drift.sigmas(policy(1.0).manifest) is None
    assert drift.sigmas(policy(1.0, feature_means=(1.0,), feature_deviations=(1.0,)).manifest) is None
    found = drift.sigmas(policy(1.0, feature_means=(1.0, 0.0), feature_deviations=(1.0, 0.5)).manifest)
    assert found is not None
    assert found.tolist() == [0.0, 2.0]


def measured(inference: Inference) -> dict[tuple[str, ...], float]:
    figures = list(inference.figures())
    check(figures, "inference")
    return {(one.family.removeprefix("tradeloop_"), *one.labels): float(one.value) for one in figures}  # type: ignore[arg-type]


def test_desks_show_their_model_their_features_and_their_signals() -> None:
    known = policy(1.5, trained_to=time(0).isoformat(), feature_means=(0.0,), feature_deviations=(0.5,))
    shelf, book = Shelf(known), ("pair", "book")
    inference = make(shelf)
    give(inference, *bars(0))
    model = ("model_info", *book, MODEL, "1", known.model_id[:12])
    shown = measured(inference)
    assert shown[model] == 1
    assert shown["model_trained_timestamp_seconds", *book] == time(0).timestamp()
    assert shown["portfolio_features_timestamp_seconds", *book] == time(0).timestamp()
    assert not [name for name in shown if name[0] == "feature_drift_sigmas"], "one bar says nothing"
    give(inference, *bars(*range(1, LEAST)))
    shown = measured(inference)
    rows = [value for t in range(LEAST) for row in values(t) for value in row]
    drifted = abs(sum(rows) / len(rows)) / 0.5
    assert shown["feature_drift_sigmas", *book, SET.names[0]] == pytest.approx(drifted)
    assert {name[-1]: count for name, count in shown.items() if name[0] == "signals_total"} == {
        "warming_up": WINDOW - 1,
        "policy": LEAST - WINDOW + 1,
    }
    inference.revoked()
    gone = measured(inference)
    assert {name[0] for name in gone} == {"signals_total"}, "another process decides now, and counts never go back"
    inference.assigned({}, lambda key: True)
    list(inference.advance())
    assert model in measured(inference), "it is prepared before the first bar"


def test_no_model_is_absent() -> None:
    inference = make(Shelf())
    give(inference, *bars(0))
    assert {name[0] for name in measured(inference)} == {"portfolio_features_timestamp_seconds", "signals_total"}
