"""How a runner batches, commits and retries."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RunPolicy:
    """How a runner batches, commits and retries."""

    max_records: int = 500
    """Records of one poll."""
    max_pending: int = 1000
    """Messages of one partition that may wait, for others or for their next attempt, before it is paused."""
    commit_interval_s: float = 0.5
    attempts: int = 3
    """How often a message is handled before it is dead-lettered."""
    retry_delay_s: float = 1.0
    """Before the second attempt; doubles with each further one."""
    unavailable_delay_s: float = 0.5
    """Pause before a call that found something unavailable is tried again."""
    check_interval_s: float = 5.0
    """How often the service is asked whether it is ready."""
