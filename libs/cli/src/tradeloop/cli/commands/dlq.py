"""`tradeloop dlq`: what services gave up on. To count it, look at it, and have it handled once more.

Whoever replays a dead letter puts it into the retry topic of the service that failed, under its own key: nobody else
handles it again, and letters of one partition keep their order. A header says which letter it was, and so the retry
topic is also the record of what was replayed: the letter and its record are stored in one write, or neither is.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tradeloop.cli.commands.topics import Servers
from tradeloop.common.errors import UserError

if TYPE_CHECKING:
    from tradeloop.common.bus.port import Bus, Partition, Producer, Record

app = typer.Typer(help="Count, show and replay what services gave up on.", no_args_is_help=True)

REPLAYED = "tl_replayed"
"""Header of what was put into a retry topic again: the dead letter that it was, as `partition/offset`."""
_PREVIEW = 400
_FAULTS = {
    "user": "its sender's, who can mend the input and send it anew",
    "internal": "the service's, or its surroundings'",
}

Topic = Annotated[str, typer.Argument(help="A topic of dead letters, as `tradeloop dlq list` names it.")]
Places = Annotated[list[str] | None, typer.Argument(help="Letters by their place, such as 0/17 (partition/offset).")]
Json = Annotated[bool, typer.Option("--json", help="For machines: one JSON object a line, nothing shortened.")]


@app.command("list")
def list_letters(as_json: Json = False, bootstrap_servers: Servers = None) -> None:
    """Count the dead letters of each topic and service, with the newest error of each."""
    from tradeloop.cli.client.settings import kafka_bus

    with kafka_bus(bootstrap_servers) as bus:
        rows = list(_overview(bus))
    for row in rows:
        if as_json:
            typer.echo(json.dumps(row))
        else:
            typer.echo(f"{row['topic']}  {row['letters']} letters, {row['replayed']} of them replayed")
            typer.echo(f"  newest {row['newest']} at {row['time']}: {_printable(str(row['error']))}")
    if not rows and not as_json:
        typer.echo("no dead letters")


@app.command()
def show(
    topic: Topic,
    places: Places = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="How many, where no place is given: the newest.")] = 10,
    as_json: Json = False,
    bootstrap_servers: Servers = None,
) -> None:
    """Show dead letters, the newest where no place is given: origin, error, headers, body."""
    from tradeloop.cli.client.settings import kafka_bus

    with kafka_bus(bootstrap_servers) as bus:
        dead = DeadLetters(bus, topic)
        letters = list(dead.at(places)) if places else dead.newest(limit)
        replayed = dead.replayed()
        for letter in letters:
            described = _described(letter, dead.body(letter), place_of(letter) in replayed)
            typer.echo(json.dumps(described) if as_json else _line(described))


@app.command()
def replay(
    topic: Topic,
    places: Places = None,
    again: Annotated[bool, typer.Option("--again", help="Also those that were replayed before.")] = False,
    bootstrap_servers: Servers = None,
) -> None:
    """Have dead letters handled again by the service that gave up on them: all new ones, or those at places.

    A letter is tried as often as a new message; one that fails again is a new dead letter. Run one replay at a time:
    two do not know of each other. Exit 1 when a letter could not be replayed.
    """
    from tradeloop.cli.client.settings import kafka_bus

    # The client's limit with room for the headers; the broker's own is that of all topics.
    with kafka_bus(bootstrap_servers, {"message.max.bytes": "1040000"}) as bus:
        result = DeadLetters(bus, topic).replay(places, again)
    typer.echo(f"{result.replayed} letters replayed; {result.before} had been before")
    for place, reason in result.failed.items():
        typer.echo(f"{place} not replayed: {reason}")
    if result.failed:
        raise typer.Exit(1)


@dataclass(slots=True)
class Replayed:
    """The result of a replay."""

    replayed: int
    before: int
    """How many were left out, because they had been replayed before."""
    failed: dict[str, str]
    """The reasons for failures, by place."""


class DeadLetters:
    """One topic of dead letters. Raises `UserError` when it is none, `BusError` when the bus fails."""

    def __init__(self, bus: Bus, topic: str) -> None:
        from tradeloop.common.messages.topics import retry_topic

        origin, dlq, group = topic.rpartition(".dlq.")
        if not dlq or not bus.partitions(topic):
            raise UserError(f"{topic} is no topic of dead letters; see `tradeloop dlq list`")
        self._bus, self._topic, self._retry = bus, topic, retry_topic(origin, group)

    def count(self) -> int:
        """The number of letters in the topic."""
        begins = self._bus.begin_offsets(self._topic)
        return sum(end - begins[partition] for partition, end in self._bus.end_offsets(self._topic).items())

    def newest(self, limit: int) -> list[Record]:
        """The newest letters, oldest of them first."""
        found: list[Record] = []
        begins = self._bus.begin_offsets(self._topic)
        for partition, end in self._bus.end_offsets(self._topic).items():
            if end > begins[partition]:
                found += self._bus.read(partition, end - limit, end)
        return sorted(found, key=lambda letter: (letter.timestamp_ms, letter.partition, letter.offset))[-limit:]

    def at(self, places: Sequence[str]) -> Iterator[Record]:
        """Letters by their place, in the order that they have in their partitions. Raises `UserError`."""
        for partition, offset in sorted({self._parse(place) for place in places}):
            letters = self._bus.read(partition, offset, offset + 1)
            if not letters:
                raise UserError(f"{self._topic} holds no letter {partition.number}/{offset}")
            yield from letters

    def replayed(self) -> set[str]:
        """The places of letters that were replayed before."""
        from tradeloop.common.runtime.readback import all_records

        records = all_records(self._bus, self._retry)
        return {record.headers[REPLAYED] for record in records if REPLAYED in record.headers}

    def body(self, letter: Record) -> bytes | None:
        """The body of a letter, from where it first stood if it was too large; None when that is gone."""
        from tradeloop.common.bus.port import Partition
        from tradeloop.common.runtime.headers import BODY

        if (place := letter.headers.get(BODY)) is None:
            return letter.value
        topic, number, offset = place.rsplit("/", 2)
        originals = self._bus.read(Partition(topic, int(number)), int(offset), int(offset) + 1)
        return originals[0].value if originals else None

    def replay(self, places: Sequence[str] | None, again: bool) -> Replayed:
        """Put letters into the retry topic: those at these places, or all; without `again` none for a second time."""
        from tradeloop.common.runtime.readback import all_records

        known = set() if again else self.replayed()
        result = Replayed(0, 0, {})
        letters = list(self.at(places)) if places else all_records(self._bus, self._topic)
        producer = self._bus.producer()
        try:
            for letter in letters:
                if (place := place_of(letter)) in known:
                    result.before += 1
                elif reason := self._put_back(producer, letter):
                    result.failed[place] = reason
                else:
                    result.replayed += 1
            producer.flush()
        finally:
            producer.close()
        return result

    def _put_back(self, producer: Producer, letter: Record) -> str:
        """Why it was not possible, or nothing."""
        from tradeloop.common.bus.port import MessageTooLarge
        from tradeloop.common.runtime.headers import ATTEMPT, BODY, ERROR, KIND, NOT_BEFORE

        if (body := self.body(letter)) is None:
            return f"its body is gone, which was too large for a dead letter and stood at {letter.headers[BODY]}"
        headers = {n: text for n, text in letter.headers.items() if n not in (ATTEMPT, BODY, ERROR, KIND, NOT_BEFORE)}
        try:
            producer.publish(self._retry, letter.key, body, {**headers, REPLAYED: place_of(letter)})
        except MessageTooLarge as error:
            return str(error)
        return ""

    def _parse(self, place: str) -> tuple[Partition, int]:
        from tradeloop.common.bus.port import Partition

        if (numbers := re.fullmatch(r"(\d{1,9})/(\d{1,18})", place)) is None:
            raise UserError(f"{place!r} is no place of a letter: give partition/offset, such as 0/17")
        if int(numbers[1]) >= self._bus.partitions(self._topic):
            raise UserError(f"{self._topic} has no partition {numbers[1]}")
        return Partition(self._topic, int(numbers[1])), int(numbers[2])


def place_of(letter: Record) -> str:
    """Where a letter stands in its topic."""
    return f"{letter.partition}/{letter.offset}"


def _overview(bus: Bus) -> Iterator[dict[str, Any]]:
    from tradeloop.common.messages.topics import SERVICE_TOPICS, dead_letter_topic
    from tradeloop.common.runtime.headers import ERROR

    for service, topics in SERVICE_TOPICS.items():
        for origin in topics:
            topic = dead_letter_topic(origin, service)
            if not bus.partitions(topic):
                continue
            dead = DeadLetters(bus, topic)
            if newest := dead.newest(1):
                yield {
                    "topic": topic,
                    "service": service,
                    "letters": dead.count(),
                    "replayed": len(dead.replayed()),
                    "newest": place_of(newest[0]),
                    "time": _time(newest[0]),
                    "error": newest[0].headers.get(ERROR, ""),
                }


def _described(letter: Record, body: bytes | None, replayed: bool) -> dict[str, Any]:
    """All that is known of a letter, as JSON can say it: a body that is no text is one of hexadecimal digits."""
    from tradeloop.common.runtime.headers import ATTEMPT, ERROR, KIND, ORIGIN

    described: dict[str, Any] = {
        "topic": letter.topic,
        "place": place_of(letter),
        "time": _time(letter),
        "replayed": replayed,
        "origin": letter.headers.get(ORIGIN, ""),
        "attempts": letter.headers.get(ATTEMPT, ""),
        "error": letter.headers.get(ERROR, ""),
        "fault": letter.headers.get(KIND, ""),
        "key": letter.key,
        "headers": {n: text for n, text in letter.headers.items() if n not in (ORIGIN, ATTEMPT, ERROR, KIND)},
        "size": None if body is None else len(body),
    }
    try:
        described["body"] = None if body is None else body.decode()
    except UnicodeDecodeError:
        described["body_hex"] = (body or b"").hex()
    return described


def _line(letter: Mapping[str, Any]) -> str:
    body = letter.get("body")
    if "body_hex" in letter:
        preview = f"not text: {bytes.fromhex(letter['body_hex'][: 2 * _PREVIEW])!r}"
    elif body is None:
        preview = "too large for a dead letter, and no longer where it first stood"
    else:
        preview = _printable(body[:_PREVIEW])
    more = " ..." if (letter["size"] or 0) > _PREVIEW else ""
    lines = [
        f"{letter['place']}  {letter['time']}{'  (replayed)' if letter['replayed'] else ''}",
        f"  error    {_printable(letter['error'])}",
        f"  fault    {_FAULTS.get(letter['fault'], 'not recorded')}",
        f"  origin   {_printable(letter['origin'])}, {_printable(letter['attempts'])} attempts",
        f"  key      {_printable(letter['key'])}",
        *(f"  header   {_printable(name)}: {_printable(text)}" for name, text in letter["headers"].items()),
        f"  body     {letter['size']} bytes: {preview}{more}",
    ]
    return "\n".join(lines)


def _time(letter: Record) -> str:
    return datetime.fromtimestamp(letter.timestamp_ms / 1000, UTC).isoformat(timespec="milliseconds")


def _printable(text: str) -> str:
    """Text that gives a terminal no orders, whoever wrote it."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
