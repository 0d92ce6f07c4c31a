"""The gate between a candidate and a champion: the rules, without the learning."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from tradeloop.common.arrays import Floats

CHANCE = 0.05
"""The probability with which luck alone may pass the gate."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a policy may trade, and why."""

    passed: bool
    reason: str
    """One sentence."""
    errors: Mapping[str, float]
    """How far it was above each rival, in standard errors of the mean difference; by the rival's name."""


def required_errors(checkpoints: int) -> float:
    """The standard errors that the best of so many checkpoints must be above a rival.

    The best of many is above it by luck: as if they were independent, which asks for more than is needed (Sidak,
    Rectangular Confidence Regions, 1967).
    """
    return NormalDist().inv_cdf((1.0 - CHANCE) ** (1.0 / max(1, checkpoints)))


def judge(policy: Sequence[Floats], rivals: Mapping[str, Sequence[Floats]], checkpoints: int) -> Verdict:
    """Hold a policy against its rivals on the bars that were kept apart.

    Equity curves (T,), one for each market; all start when the first decision is taken. `checkpoints` were compared
    on these bars. The errors are those of independent returns: a policy that holds for long is judged too mildly, by
    as much as its returns depend on each other.
    """
    if not policy:
        return Verdict(False, "no bars were kept apart to judge it on: too few were given", {})
    ours = np.concatenate([_log_returns(curve) for curve in policy])
    bars, needed = len(ours), required_errors(checkpoints)
    errors, below = dict[str, float](), list[str]()
    for name, curves in rivals.items():
        difference = ours - np.concatenate([_log_returns(curve) for curve in curves])
        deviation = float(difference.std(ddof=1)) if bars > 1 and np.isfinite(difference).all() else 0.0
        errors[name] = float(difference.mean()) / deviation * bars**0.5 if deviation > 0.0 else 0.0
        if errors[name] <= needed:
            below.append(name)
    measured = " and ".join(_measured(value, name) for name, value in errors.items())
    reason = (
        f"on the {bars:,} bars kept apart it was {measured}; {needed:.1f} are needed of the best of {checkpoints} "
        f"checkpoint{'s' * (checkpoints != 1)}"
    )
    return Verdict(not below, reason, errors)


def _measured(errors: float, rival: str) -> str:
    return f"{abs(errors):.1f} standard errors {'below' if errors < 0.0 else 'above'} {rival.replace('_', ' ')}"


def _log_returns(equity: Floats) -> Floats:
    """The log returns of an equity curve; not finite from where it went broke."""
    with np.errstate(all="ignore"):
        return np.asarray(np.diff(np.log(equity)))
