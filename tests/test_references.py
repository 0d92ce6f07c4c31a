"""The generated references are true: what services say over HTTP and on topics is what the files say that they do.

And whoever renames a variable, a topic, a field or a code on one side alone is told so.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import openapi_spec_validator
import pytest
from jsonschema import Draft202012Validator
from structlog.testing import capture_logs

from libs.common.tests.test_health import Stand, ask
from services.inference.tests.test_predict import TOKEN, Answer, World, given_of
from tests.test_docs import ROOT
from tradeloop.cli import configuration
from tradeloop.cli.client.deployment import SERVICES
from tradeloop.cli.reference import asyncapi, openapi
from tradeloop.cli.reference.denials import page as denials
from tradeloop.cli.reference.settings import page as settings
from tradeloop.common.messages import topics
from tradeloop.common.messages.topics import CATALOGUE, Topic
from tradeloop.common.risk import EXPLANATIONS, REMEDIES
from tradeloop.common.runtime.headers import headers_of
from tradeloop.common.runtime.health import starting
from tradeloop.common.runtime.server import listening
from tradeloop.common.sql.roles import ROLES
from tradeloop.inference.adapters.http_predictions import PATH

ASYNC, OPEN = asyncapi.document(), openapi.document()
GOLDEN = ROOT / "libs/common/tests/golden"


def validator(document: Mapping[str, Any], schema: Mapping[str, Any]) -> Draft202012Validator:
    """One that follows references into the document."""
    return Draft202012Validator({**schema, "components": document["components"]})


def references(value: object) -> Iterator[str]:
    if isinstance(value, dict):
        for name, inner in value.items():
            if name == "$ref":
                yield inner
            else:
                yield from references(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from references(inner)


def at(document: Any, reference: str) -> Any:
    for part in reference.removeprefix("#/").split("/"):
        document = document[part.replace("~1", "/")]
    return document


@pytest.mark.parametrize("document", [ASYNC, OPEN], ids=["asyncapi", "openapi"])
def test_references_lead_somewhere(document: Mapping[str, Any]) -> None:
    found = set(references(document))
    assert len(found) > 5
    for reference in found:
        assert at(document, reference)


def test_asyncapi_has_every_topic_with_who_writes_and_reads_it() -> None:
    assert ASYNC["channels"].keys() == CATALOGUE.keys()
    operations = ASYNC["operations"].items()
    said = {(name.split(".")[0], one["action"], one["channel"]["$ref"][11:]) for name, one in operations}
    declared = {(party, "send", topic.name) for topic in CATALOGUE.values() for party in topic.writers}
    declared |= {(party, "receive", topic.name) for topic in CATALOGUE.values() for party in topic.readers}
    declared |= {(party, "receive", name) for party, names in topics.LOOKED_UP.items() for name in names}
    assert said == declared
    for topic in CATALOGUE.values():
        kafka = ASYNC["channels"][topic.name]["bindings"]["kafka"]
        assert (kafka["topic"], kafka["partitions"]) == (topic.name, topic.partitions)


@pytest.mark.parametrize(
    "topic", [CATALOGUE[path.stem] for path in sorted(GOLDEN.glob("*.v1.json"))], ids=lambda one: one.name
)
def test_messages_are_as_their_schema_says(topic: Topic[Any]) -> None:
    """Golden messages, byte for byte as they are on the wire, and their headers."""
    body = (GOLDEN / f"{topic.name}.json").read_bytes()
    told = ASYNC["components"]["messages"][topic.message.__name__]
    payload = json.loads(body)
    assert list(validator(ASYNC, told["payload"]).iter_errors(payload)) == []
    headers = headers_of(topic.message.model_validate_json(body), topic, "test")
    assert list(validator(ASYNC, told["headers"]).iter_errors(headers)) == []
    for field in at(ASYNC, told["payload"]["$ref"])["required"]:
        lacking = {key: value for key, value in payload.items() if key != field}
        assert list(validator(ASYNC, told["payload"]).iter_errors(lacking)), field


def test_openapi_is_openapi() -> None:
    openapi_spec_validator.validate(OPEN)
    broken = {**OPEN, "paths": {"/live": {"fetch": {}}}, "info": {}}
    with pytest.raises(Exception, match=r"title|version|not valid|required"):
        openapi_spec_validator.validate(broken)


def conforms(path: str, method: str, status: int, content_type: str, body: bytes) -> None:
    """An answer is one that the file knows."""
    told = OPEN["paths"][path][method]["responses"][str(status)]["content"]
    kind = content_type.partition(";")[0]
    assert list(told) == [kind], (path, status, kind)
    if kind != "text/plain":
        assert list(validator(OPEN, told[kind]["schema"]).iter_errors(json.loads(body))) == [], body


def test_the_pages_of_a_service_are_as_openapi_says() -> None:
    """Those of one that runs, of one that stands still, and of one that has not started."""
    stand = Stand()
    assert set(OPEN["paths"]) == {*stand.health.pages, PATH}
    seen = set()
    with listening("127.0.0.1", 0, stand.health.pages) as endpoint:
        stages: list[Callable[[], object]] = [stand.step, partial(stand.clock.advance, 1e6), stand.stop.set]
        for stage in stages:
            stage()
            for path in stand.health.pages:
                seen.add((path, check_page(endpoint.port, path)))
        endpoint.pages = starting("it has not started")
        for path in stand.health.pages:
            seen.add((path, check_page(endpoint.port, path)))
            assert ask(endpoint.port, path, "POST")[0] == 405
    told = {(path, int(status)) for path in stand.health.pages for status in OPEN["paths"][path]["get"]["responses"]}
    assert seen == {(path, status) for path, status in told if status != 405}


def check_page(port: int | None, path: str) -> int:
    status, content_type, body = ask(port, path)
    conforms(path, "get", status, content_type, body)
    return status


@pytest.fixture
def make_world() -> Iterator[Callable[..., World]]:
    with listening("127.0.0.1", 0, starting("it has not started")) as endpoint, capture_logs():
        yield partial(World, endpoint)


def test_predictions_are_as_openapi_says(make_world: Callable[..., World]) -> None:
    """Questions and answers of every kind that can be had without breaking the server."""
    world = make_world()
    early = world.ask()
    world.bars(0, 1, 2, 3)
    world.write(3)
    questions: list[Any] = [
        {"portfolio": "book"},
        {"portfolio": "book", "features": given_of([[3.0], [-3.0]])},
        {"portfolio": "book", "time": "2026-01-05T00:03:00+00:00"},
        {"portfolio": "book", "time": "2026-01-05T00:01:00+00:00"},
        {"portfolio": "nobody"},
        {"portfolio": "book", "strategy": "another"},
    ]
    refused: list[Any] = [{"portfolio": 1}, {"surprise": "x"}, [], {"portfolio": ""}, {"features": {"x:A": {"r": "1"}}}]
    answers = [early, *map(world.ask, questions)]
    asked = OPEN["paths"][PATH]["post"]["requestBody"]["content"]["application/json"]["schema"]
    for question in questions:
        assert list(validator(OPEN, asked).iter_errors(question)) == []
    for question in refused:
        assert list(validator(OPEN, asked).iter_errors(question)), question
        answers.append(answer := world.ask(question))
        assert answer.status == 422
    answers += [
        world.ask(b"{"),
        world.ask(headers={"Authorization": "Bearer wrong"}),
        world.ask(headers={"Content-Type": "text/plain"}),
        world.ask(b"[" * ((1 << 20) + 1)),
        world.send(None, {"Authorization": f"Bearer {TOKEN}"}, method="GET"),
        make_world(token=None).ask(),
    ]
    for each in answers:
        conforms(PATH, "post", each.status, each.headers["Content-Type"], json.dumps(each.content).encode())
    assert {200, 400, 401, 403, 404, 405, 409, 413, 415, 422, 503} == {each.status for each in answers}
    assert all(_kind_is_told(each) for each in answers if each.status != 200)


def _kind_is_told(answer: Answer) -> bool:
    told = OPEN["paths"][PATH]["post"]["responses"][str(answer.status)]["description"]
    return answer.problem in told or answer.status == 503


def test_every_code_has_a_remedy() -> None:
    assert REMEDIES.keys() == EXPLANATIONS.keys()
    assert all(code.name.lower() in denials() for code in EXPLANATIONS)


# What is written by hand, beside what is generated.


def unknown_variables(text: str, known: set[str]) -> set[str]:
    """Variables of services and the command in a text that nobody reads; a name that ends with `_` is a beginning."""
    prefixes = "|".join(configuration.prefix(name) for name in configuration.ALL)
    named = set(re.findall(rf"(?<![A-Z_$.{{])(?:{prefixes})[A-Z][A-Z0-9_]*", text))
    named = {name.removesuffix("_FILE") for name in named - known}  # which any of them may lie in
    return {name for name in named if not any(name == one or f"{one}_".startswith(name) for one in known)}


HARNESS = {
    *(f"TRADELOOP_TEST_{server}" for server in ("KAFKA", "POSTGRES")),
    "TRADELOOP_K8S_LOAD",
    *(f"{service.upper()}_PASSWORD" for service in SERVICES),
}
"""Variables of tests and `make` targets, and entries of Secrets, which no command sees."""


def known_variables() -> set[str]:
    read = {one.variable for name in configuration.ALL for one in configuration.settings(name)}
    outer = {one.rpartition("__")[0] for one in read if "__" in one}
    roles = {f"TRADELOOP_ROLES__{role.upper()}" for role in ROLES}  # names that follow a mapping
    return read | outer | roles | HARNESS | set(configuration.kind(configuration.COMMAND)[1])


def unknown_topics(text: str, catalogue: Mapping[str, object]) -> set[str]:
    """Topics in code style that the catalogue has not; those beside one count as it."""
    named = set(re.findall(r"`([a-z]+\.[a-z_]+\.v\d+)[`.]", text))
    return named - catalogue.keys()


PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md")),
    *(page for page in sorted(ROOT.glob("docs/*.md")) if page.name != "failures.md"),
]


def test_pages_name_variables_and_topics_that_exist() -> None:
    known = known_variables()
    for page in PAGES:
        text = page.read_text()
        assert unknown_variables(text, known) == set(), page.name
        assert unknown_topics(text, CATALOGUE) == set(), page.name


@pytest.mark.parametrize("service", SERVICES)
def test_a_variable_that_is_renamed_on_one_side_is_found(service: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the code alone: in the generated page, in Compose and in what is written by hand. In a page alone: there."""
    kind = configuration.kind(service)[0]
    field = "ledger_url" if service == "execution" else "database_url"
    variable = f"{service.upper()}_{field.upper()}"
    compose = (ROOT / "deploy/docker-compose.yml").read_text()
    assert unknown_variables(compose, known_variables()) == set()
    renamed = {("store_url" if name == field else name): one for name, one in kind.__pydantic_fields__.items()}
    before = settings()
    monkeypatch.setattr(kind, "__pydantic_fields__", renamed)
    assert variable not in settings()
    assert settings() != before == (ROOT / "docs/settings.md").read_text()
    assert unknown_variables(compose, known_variables()) == {variable}
    monkeypatch.undo()
    assert unknown_variables(compose.replace(variable, f"{variable}S"), known_variables()) == {f"{variable}S"}


def test_a_topic_that_is_renamed_on_one_side_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    old, new = "execution.fills.v1", "execution.trades.v1"
    text = "".join(page.read_text() for page in PAGES)
    assert old in text
    renamed = {new if name == old else name: topic for name, topic in CATALOGUE.items()}
    assert unknown_topics(text, renamed) == {old}
    assert unknown_topics(text.replace(f"`{old}`", f"`{new}`"), CATALOGUE) == {new}
    moved = Topic(new, CATALOGUE[old].message, "universe", ("execution",), ("cli",))
    monkeypatch.setattr(asyncapi, "CATALOGUE", {**{k: v for k, v in CATALOGUE.items() if k != old}, new: moved})
    assert asyncapi.file() != (ROOT / "docs/asyncapi.json").read_text()


def test_a_path_or_a_field_that_is_renamed_on_one_side_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(OPEN["components"]["schemas"]["Build"]["properties"], "versions", {"type": "string"})
    monkeypatch.setitem(OPEN["components"]["schemas"]["Build"], "required", ["service", "versions", "commit"])
    with pytest.raises(AssertionError):
        conforms("/build", "get", 200, "application/json", b'{"service": "ingest", "version": "1", "commit": "x"}')
    with pytest.raises(KeyError):
        conforms("/healthz", "get", 200, "application/json", b"{}")
