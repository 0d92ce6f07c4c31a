"""The contract of the messaging port: `check_bus`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from functools import partial
from typing import TypeVar

from tradeloop.common.bus.port import Bus, Partition
from tradeloop.common.contracts.bus import delivery, groups, members, reading, retention, topics
from tradeloop.common.contracts.bus.retention import Expire

B = TypeVar("B", bound=Bus)


def check_bus(make_bus: Callable[[], B], expire: Callable[[B, Partition, int], None] | None = None) -> None:
    """Run all of `BUS_CHECKS`, and of `RETENTION_CHECKS` where there is `expire`, each on a bus of its own.

    The buses may well be one server: topics and groups get new names at every run. `expire` lets the records of a
    partition before an offset expire at once, as a server's retention does in time.
    """
    for check in BUS_CHECKS:
        with closing(make_bus()) as bus:
            check(bus)
    if expire is None:
        return
    for retention_check in RETENTION_CHECKS:
        with closing(make_bus()) as bus:
            retention_check(bus, partial(expire, bus))


BUS_CHECKS: Sequence[Callable[[Bus], None]] = (
    delivery.keys_choose_their_partition,
    delivery.a_partition_keeps_its_order,
    delivery.headers_and_values_arrive_as_sent,
    groups.groups_are_independent,
    groups.a_group_goes_on_after_its_commit,
    groups.a_note_stays_until_the_next_commit,
    groups.what_was_not_committed_comes_again,
    groups.a_seek_replays,
    groups.a_seek_during_assignment_sets_the_start,
    groups.a_paused_partition_delivers_nothing,
    members.members_share_partitions_by_number,
    members.a_member_that_gets_nothing_is_told_so,
    members.members_with_other_topics_take_no_part,
    members.revocation_lets_a_member_commit,
    members.a_pause_ends_with_the_assignment,
    groups.a_failed_assignment_is_tried_again,
    topics.a_missing_topic_is_an_error,
    topics.topics_are_created_once,
    topics.a_topic_has_an_identity_of_its_own,
    delivery.a_message_too_large_spares_the_others,
    delivery.what_is_hastened_needs_no_flush,
    topics.the_end_is_the_next_offset,
    reading.a_partition_is_read_back_without_a_group,
    reading.partitions_are_followed_without_a_group,
    delivery.a_flush_stores_everything,
)
"""The contract of a bus, promise by promise: for test runners that want to name each one."""

RETENTION_CHECKS: Sequence[Callable[[Bus, Expire], None]] = (
    retention.what_has_expired_is_gone,
    retention.what_has_expired_is_passed_over,
)
"""The promises about what has expired, for tests that can hasten it."""
