"""`tradeloop topics`: the catalogue, for the terminal, as docs/topics.md, and on a Kafka."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tradeloop.common.errors import UserError
from tradeloop.common.risk import EXPLANATIONS, wire_code

if TYPE_CHECKING:
    from tradeloop.common.bus.kafka import Difference
    from tradeloop.common.bus.port import TopicSpec

app = typer.Typer(help="List the topics; create them on a Kafka, compare them with it, and say who may use them.")

Servers = Annotated[
    str | None,
    typer.Option(
        "--bootstrap-servers",
        help="Where Kafka is, `host:port`; else the environment says it: TRADELOOP_KAFKA__BOOTSTRAP_SERVERS.",
    ),
]


@app.callback(invoke_without_command=True)
def catalogue(
    context: typer.Context,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print docs/topics.md.")] = False,
) -> None:
    """List the topics: what they carry, who writes and reads them."""
    if context.invoked_subcommand is None:
        print_topics(markdown)


@app.command("diff")
def diff(bootstrap_servers: Servers = None) -> None:
    """Compare the topics of a Kafka with the catalogue: exit 1 where they differ."""
    from tradeloop.cli.client.settings import kafka_bus
    from tradeloop.common.messages.topics import SERVICE_TOPICS, specs

    with kafka_bus(bootstrap_servers) as bus:
        differences = bus.differences(specs(SERVICE_TOPICS))
    for line in dict.fromkeys(map(_described, differences)):
        typer.echo(line)
    if differences:
        raise typer.Exit(1)


@app.command("apply")
def apply(bootstrap_servers: Servers = None) -> None:
    """Create what is missing on a Kafka and set what is configured otherwise. Never touches a message or a partition.

    May run again, and twice at the same time.
    """
    from tradeloop.cli.client.settings import kafka_bus
    from tradeloop.common.messages.topics import SERVICE_TOPICS, specs

    wanted = specs(SERVICE_TOPICS)
    with kafka_bus(bootstrap_servers) as bus:
        differences = bus.differences(wanted)
        existing = [each for each in differences if each.found is not None]
        if partitions := [each for each in existing if each.setting == "partitions"]:
            raise UserError(
                f"{'; '.join(map(_described, partitions))}: another number would move keys to other partitions and end "
                "their order, so nothing was changed; delete the topic when its messages are no longer needed, then "
                "apply again"
            )
        bus.create_topics(wanted)
        bus.configure(existing)
    for line in dict.fromkeys(map(_described, differences)):
        typer.echo(line)
    typer.echo(f"{len(wanted)} topics are as the catalogue says")


@app.command("permit")
def permit(
    bootstrap_servers: Servers = None,
    administrator: Annotated[
        str, typer.Option(metavar="USER", help="Who may do all, where the cluster knows no superuser, as that of AWS.")
    ] = "",
) -> None:
    """Give each service, as the Kafka user of its name, what the catalogue says that it does, and nothing else.

    What was said otherwise of these users is taken away; other users stay as they are. May run again.
    """
    from tradeloop.cli.client.settings import kafka_bus
    from tradeloop.common.messages.topics import accesses

    wanted = accesses()
    with kafka_bus(bootstrap_servers) as bus:
        granted = bus.permit(wanted, administrator)
    for what, permissions in (("given", granted.given), ("taken away", granted.taken)):
        for each in permissions:
            typer.echo(f"{what}: {each.user} {each.operation} {each.kind} {each.name}")
    users = ", ".join([*(access.user for access in wanted), *([administrator] if administrator else [])])
    typer.echo(f"{granted.total} permissions of {users} are as the catalogue says")


def print_topics(markdown: bool) -> None:
    """Print the catalogue."""
    if markdown:
        print(as_markdown(), end="")
        return
    from rich.console import Console
    from rich.table import Column, Table

    from tradeloop.common.messages.topics import CATALOGUE

    # Names are there to be copied: they fit 80 columns in full.
    headers = ("topic", "carries", "key", "written by", "read by")
    table = Table(*(Column(header, no_wrap=True) for header in headers), box=None, padding=(0, 1, 0, 0))
    for topic in CATALOGUE.values():
        readers, writers = "\n".join(topic.readers), "\n".join(topic.writers)
        table.add_row(topic.name, topic.message.__name__, topic.key, writers, readers)
    Console().print(table)


def as_markdown() -> str:
    """The text of docs/topics.md."""
    from tradeloop.common.bus.port import TopicSpec
    from tradeloop.common.messages import RiskVerdict
    from tradeloop.common.messages.topics import CATALOGUE, LOOKED_UP, side_topics

    retry, dead = side_topics(TopicSpec("<topic>"), "<service>")
    lines = [
        "# Topics",
        "",
        "Generated by `tradeloop topics --markdown`; declared in `tradeloop.common.messages.topics`. Values are JSON;",
        "headers carry CloudEvents attributes in binary mode and a W3C `traceparent`. Each service that reads a topic",
        f"also has `{retry.name}` and `{dead.name}`,",
        f"each kept {_kept(dead)}. A size is that of one partition on disk; the oldest messages go when either is",
        "exceeded. [asyncapi.json](asyncapi.json) has the same for programs, with the schema of each message.",
        "",
        "| topic | carries | key | written by | read by | partitions | kept |",
        "|---|---|---|---|---|---|---|",
    ]
    for topic in CATALOGUE.values():
        looked_up = (f"{service} (outside its group)" for service, theirs in LOOKED_UP.items() if topic.name in theirs)
        readers, writers = ", ".join((*topic.readers, *looked_up)), ", ".join(topic.writers)
        cells = [
            f"`{topic.name}`",
            f"`{topic.message.__name__}`",
            topic.key,
            writers,
            readers,
            topic.partitions,
            _kept(topic.spec),
        ]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    for topic in CATALOGUE.values():
        summary = (topic.message.__doc__ or "").strip().splitlines()[0]
        lines += ["", f"## {topic.name}", "", summary, "", "| field | type |", "|---|---|"]
        for name, field in topic.message.model_fields.items():
            lines.append(f"| `{name}` | `{_type_name(field.annotation)}` |")
        if topic.message is RiskVerdict:
            lines += ["", *_risk_codes()]
    return "\n".join(lines) + "\n"


def _risk_codes() -> Iterator[str]:
    """A table of what `code` can be."""
    yield from ("| code | when | measured | limit |", "|---|---|---|---|")
    for code, words in EXPLANATIONS.items():
        limit = f"`limits.{words.limit}`" if words.limit else "none"
        yield f"| `{wire_code(code)}` | {words.happens} | {words.measured} | {limit} |"


def _described(difference: Difference) -> str:
    if difference.found is None:
        return f"{difference.topic} was missing"
    return f"{difference.topic}: {difference.setting} was {difference.found or 'not set'}, is to be {difference.wanted}"


def _kept(topic: TopicSpec) -> str:
    time = "for ever" if topic.retention_days is None else f"{topic.retention_days} days"
    return time if topic.retention_bytes is None else f"{time}, {topic.retention_bytes >> 30} GiB"


def _type_name(annotation: Any) -> str:
    text = (
        annotation.__name__ if isinstance(annotation, type) and not hasattr(annotation, "__args__") else str(annotation)
    )
    text = re.sub(r"\b(?:tradeloop\.common\.(?:messages|market)\.\w+|typing|datetime)\.", "", text)
    return text.replace("|", "\\|")
