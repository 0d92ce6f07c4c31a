"""Whether a policy was trained for a strategy: the one check for every place that lets a policy decide."""

from __future__ import annotations

from tradeloop.common.market import Universe
from tradeloop.common.model_store.port import ModelUnfit, PolicyManifest
from tradeloop.common.strategy.definition import Strategy


def check_fit(
    manifest: PolicyManifest,
    strategy: Strategy,
    instruments: int,
    model: str,
    place: str,
    universe: Universe | None = None,
) -> None:
    """Raise `ModelUnfit` unless a policy sees and acts as a strategy does for so many instruments.

    `model` and `place` are what the message calls the policy and whatever it shall decide for. Another reward is no
    hindrance: it changes what a decision is said to be worth, and no decision. Whoever trades names the `universe`
    too: then the policy must be of this strategy and universe, with the same instruments in the same order, as far as
    its manifest says.
    """
    here: dict[str, object] = {
        "feature_set": strategy.feature_set.id,
        "window": strategy.window,
        "instruments": instruments,
        "action_scheme": strategy.actions.name,
        "observation_size": strategy.observation_size(instruments),
        "action_size": strategy.actions.size(instruments),
    }
    if universe is not None:
        here |= {"strategy": strategy.name, "universe": universe.name}
        known = {"timeframe": str(universe.timeframe), "instrument_ids": universe.ids}
        here |= {field: expected for field, expected in known.items() if getattr(manifest, field)}
    for field, expected in here.items():
        if (trained := getattr(manifest, field)) != expected:
            raise ModelUnfit(
                f"{model} was trained with {field} {trained}, {place} has {expected}: train it again, or install the "
                "strategy it was made by"
            )
