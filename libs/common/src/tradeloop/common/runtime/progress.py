"""How far a runner is in each partition, and what it leaves beside its commits for whoever goes on there.

A process that is killed says nothing. So a member that takes messages of a partition notes beside the committed
offset that it is at work, and takes the note away when it leaves. Whoever finds one knows that the work ended in the
middle, handles what may have been in hand then one by one, and notes before each which one it is. A message that is
noted when the process dies, again and again, is what it dies of.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

from tradeloop.common.bus.port import LogPosition, Partition, Record

_MOST_DEATHS = 8
"""Positions of a partition whose deaths are counted at once, the last ones: a note is short."""


@dataclass(frozen=True, slots=True)
class Note:
    """The words that a member at work leaves beside an offset."""

    ahead: int = 0
    """How many records behind the offset it had handled by then, and lived."""
    at: int | None = None
    """The offset of the record that it handles alone."""
    deaths: Mapping[int, int] = field(default_factory=dict)
    """How often a process died at such a record, by its offset."""

    def encode(self) -> str:
        deaths = dict(list(self.deaths.items())[-_MOST_DEATHS:])
        return json.dumps({"ahead": self.ahead, "at": self.at, "deaths": deaths}, separators=(",", ":"))

    @classmethod
    def decode(cls, text: str) -> Note:
        """The note of a text; an empty one where other programs wrote it."""
        try:
            found = json.loads(text)
            at = found["at"]
            deaths = {int(offset): int(count) for offset, count in found["deaths"].items()}
            return cls(int(found["ahead"]), None if at is None else int(at), deaths)
        except (ValueError, TypeError, KeyError, AttributeError):
            return cls()


EMPTY_NOTE = Note().encode()


class Progress:
    """Offsets and notes of the partitions that a runner reads."""

    def __init__(self, in_doubt: int) -> None:
        """`in_doubt` is how many records a member may have handled since its last commit."""
        self.committed: Mapping[Partition, int] = {}
        """The offset at which each partition would be read again; one never committed is left out. Replaced, never
        changed in place."""
        self.uncommitted = 0
        """Records taken since the last commit."""
        self.stain: Partition | None = None
        """Where a note names a record that was handled alone since."""
        self._in_doubt = in_doubt
        self._next: dict[Partition, int] = {}
        """The offset behind the last record that was taken."""
        self._notes: dict[Partition, str] = {}
        """The notes that stand now."""
        self._doubtful: dict[Partition, range] = {}
        self._left_in_doubt = 0
        self._began: dict[Partition, int] = {}
        self._deaths: dict[Partition, dict[int, int]] = {}
        self._at: LogPosition | None = None
        self._alone: dict[Partition, int] = {}
        """The offsets before which each record's outputs go out alone."""

    def begin(
        self,
        committed: Mapping[Partition, int],
        notes: Mapping[Partition, str],
        ends: Mapping[Partition, int],
        whole: Collection[Partition],
    ) -> Collection[Partition]:
        """Take over partitions. Gives back those whose last owner did not leave, where it left something.

        In doubt is what lies behind where that one was known to be, up to `ends`; of those in `whole`, all that is
        not committed.
        """
        self.committed, self._notes = committed, dict(notes)
        self._deaths, self._doubtful = {}, {}
        for partition, text in notes.items():
            note = Note.decode(text)
            deaths = dict(note.deaths)
            start = committed.get(partition, 0) + (0 if partition in whole else note.ahead)
            if note.at is not None:
                deaths[note.at] = deaths.get(note.at, 0) + 1
                start = min(start, note.at)
            if deaths:
                self._deaths[partition] = deaths
            if doubtful := range(start, min(start + self._in_doubt, ends[partition])):
                self._doubtful[partition] = doubtful
        self._left_in_doubt = self._in_doubt if notes else 0
        return self._doubtful

    def unmarked(self, records: Collection[Record]) -> Mapping[Partition, int]:
        """The partitions of these records that nobody noted yet to be worked on, with the first offset of each."""
        if all((record.topic, record.partition) in self._notes for record in records):
            return {}
        firsts: dict[Partition, int] = {}
        for record in records:
            partition, offset = record.position
            if partition not in self._notes:
                firsts.setdefault(partition, offset)
        return firsts

    @property
    def cautious(self) -> bool:
        """Whether any record needs care: most of the time none does."""
        return bool(self._doubtful or self._deaths or self._alone)

    def is_doubtful(self, position: LogPosition) -> bool:
        """Whether the process before may have died at a record."""
        doubtful = self._doubtful.get(position.partition)
        return doubtful is not None and position.offset in doubtful

    def is_alone(self, position: LogPosition) -> bool:
        """Whether a record is among those of which some output was refused."""
        return position.offset < self._alone.get(position.partition, 0)

    def deaths_at(self, position: LogPosition) -> int:
        """How often a process died at a record that it handled alone."""
        deaths = self._deaths.get(position.partition)
        return deaths.get(position.offset, 0) if deaths else 0

    def at(self, position: LogPosition) -> None:
        """A record is handled alone next; what is committed before it starts says so."""
        self._at = position

    def lived(self) -> None:
        """The record that was handled alone did no harm, whatever else came of it."""
        if self._at is None:
            return
        partition, offset = self._at
        if deaths := self._deaths.get(partition):
            deaths.pop(offset, None)
            if not deaths:
                del self._deaths[partition]
        self._at, self.stain = None, partition
        self._left_in_doubt -= 1
        if self._left_in_doubt <= 0:
            self._doubtful = {}

    def take(self, position: LogPosition) -> None:
        """A record is taken."""
        partition, offset = position
        if offset >= self._next.get(partition, 0):
            self._next[partition] = offset + 1
        self.uncommitted += 1

    def reached(self, partition: Partition) -> int:
        """The offset behind the last record that was taken, or else the committed one."""
        return self._next.get(partition, self.committed.get(partition, 0))

    def news(
        self, unfinished: Iterable[LogPosition], leaving: bool
    ) -> tuple[dict[Partition, int], dict[Partition, str]]:
        """The offsets before which everything is finished, and their notes, of partitions where either changed."""
        offsets = dict(self._next)
        if self._at is not None:
            offsets.setdefault(self._at.partition, self._at.offset)
        for partition, offset in unfinished:
            if offset < offsets.get(partition, 0):
                offsets[partition] = offset
        if leaving:
            stand = {**self._began, **self.committed}
            offsets |= {each: stand[each] for each in self._notes.keys() - offsets.keys() if each in stand}
        notes = {partition: "" if leaving else self._note(partition, offset) for partition, offset in offsets.items()}
        changed = {
            partition: offset
            for partition, offset in offsets.items()
            if self.committed.get(partition) != offset or self._notes.get(partition, "") != notes[partition]
        }
        return changed, {partition: notes[partition] for partition in changed if notes[partition]}

    def stored(self, offsets: Mapping[Partition, int], notes: Mapping[Partition, str]) -> None:
        """These are committed."""
        self.committed = {**self.committed, **offsets}
        for partition in offsets:
            if partition in notes:
                self._notes[partition] = notes[partition]
            else:
                self._notes.pop(partition, None)
        self.uncommitted, self.stain = 0, None

    def without_stain(self, partition: Partition) -> tuple[Mapping[Partition, int], Mapping[Partition, str]]:
        """The offset and note of a partition, but for the record that the note names."""
        offset = self.committed.get(partition, 0)
        return {partition: offset}, {partition: self._note(partition, offset)}

    def marked(self, firsts: Mapping[Partition, int]) -> None:
        """Empty notes stand beside the offsets at which these partitions go on."""
        self._began.update(firsts)
        self._notes.update(dict.fromkeys(firsts, EMPTY_NOTE))

    def go_out_alone(self) -> None:
        """Let the outputs of all that was taken go out one by one when it is handled again."""
        self._alone.update(self._next)

    def forget(self, everything: bool) -> None:
        """Begin anew; unless `everything` is forgotten, in the same partitions."""
        self._next.clear()
        self._at = self.stain = None
        self.uncommitted = 0
        if everything:
            self.committed, self._notes, self._began, self._deaths, self._doubtful, self._alone = {}, {}, {}, {}, {}, {}

    def _note(self, partition: Partition, offset: int) -> str:
        at = self._at.offset if self._at is not None and self._at.partition == partition else None
        deaths = {where: count for where, count in self._deaths.get(partition, {}).items() if where >= offset}
        return Note(max(self._next.get(partition, offset) - offset, 0), at, deaths).encode()
