"""The figures of the desks."""

from __future__ import annotations

from collections.abc import Iterator

from tradeloop.common.runtime.metrics import Figure
from tradeloop.inference.application.desk import Desk
from tradeloop.inference.domain import ActiveModel


def of_desk(desk: Desk, loaded: ActiveModel | None) -> Iterator[Figure]:
    """The figures of a desk; `loaded` is the model that is prepared for its first decision."""
    labels = desk.portfolio.universe.name, desk.portfolio.name
    if desk.seen_us >= 0:
        yield Figure("tradeloop_portfolio_features_timestamp_seconds", desk.seen_us / 1e6, labels)
    model = desk.model or loaded
    if isinstance(model, ActiveModel):
        yield Figure("tradeloop_model_info", 1, (*labels, model.name, model.version, model.model_id[:12]))
        manifest = model.manifest
        if manifest.known_to is not None:
            yield Figure("tradeloop_model_trained_timestamp_seconds", manifest.known_to.timestamp(), labels)
        if (sigmas := desk.drift.sigmas(manifest)) is not None:
            for name, sigma in zip(manifest.feature_names, sigmas.tolist(), strict=True):
                yield Figure("tradeloop_feature_drift_sigmas", sigma, (*labels, name))
