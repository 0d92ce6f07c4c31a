"""How a runner batches, commits and retries."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RunPolicy:
    """How a runner batches, commits and retries."""

    max_records: int = 500
    """Records of one poll. Their bytes are bounded by what the bus fetches ahead."""
    max_pending: int = 1000
    """Messages of one partition that may wait, for others or for their next attempt, before it is paused."""
    max_pending_bytes: int = 16_000_000
    """Bytes of such messages, as they came, likewise."""
    max_uncommitted: int = 1000
    """Messages after which a commit does not wait for its time. So many may be in doubt after a crash."""
    commit_interval_s: float = 0.5
    attempts: int = 3
    """How often a message is handled before it is dead-lettered."""
    retry_delay_s: float = 1.0
    """Before the second attempt; doubles with each further one."""
    deaths: int = 3
    """How often the process may die at a message that it handles alone, before the message is dead-lettered."""
    systemic_failures: int = 5
    """How many different messages in a row must fail with errors of one unknown type to be nobody's fault."""
    systemic_patience_s: float = 60.0
    """How long the first of them waits for that to end before it is put aside."""
    unavailable_delay_s: float = 0.5
    """Pause before a call that found something unavailable is tried again."""
    reminder_s: float = 60.0
    """How often a log says again that something is still unavailable."""
    check_interval_s: float = 5.0
    """How often the service is asked whether it is ready."""
    flush_s: float = 30.0
    """How long the bus may take to store what was published, before it is published again."""
    closing_s: float = 5.0
    """Likewise, when the process ends: what is not stored then is published by the next one."""
