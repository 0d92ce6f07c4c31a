"""Settings from the environment: each variable is understood or refused, in one line that never has a value."""

from __future__ import annotations

import json
import logging
import re
import subprocess
import sys
import traceback
from pathlib import Path

import pytest
from pydantic import BaseModel, ConfigDict, SecretStr
from pydantic_settings import SettingsConfigDict

from tradeloop.common.addresses import address
from tradeloop.common.bus.kafka import KafkaSettings
from tradeloop.common.errors import UserError
from tradeloop.common.settings import EnvironmentSettings, faults, in_one_line, load_settings
from tradeloop.common.sql.engine import open_engine

SECRET = "hunter2"


class Nested(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    port: int | None = None


class Settings(EnvironmentSettings):
    model_config = SettingsConfigDict(env_prefix="THING_")

    kafka: KafkaSettings = KafkaSettings()
    nested: Nested = Nested()
    store_url: SecretStr
    """Address of the store. More is said here."""
    section: dict[str, str] | None = None


def refusal(monkeypatch: pytest.MonkeyPatch, **given: str) -> str:
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError) as caught:
        load_settings(Settings, ("THING_HOME", "THING_TEST_"))
    text = str(caught.value)
    assert "\n" not in text
    assert SECRET not in text
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
    return text


@pytest.fixture(autouse=True)
def _store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THING_STORE_URL", f"postgresql+psycopg://me:{SECRET}@here/x")


def test_what_is_understood_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    given = {
        "THING_KAFKA__SASL_PASSWORD": SECRET,
        "THING_KAFKA__EXTRA__fetch.wait.max.ms": "50",
        "THING_SECTION__path": "somewhere",
        "THING_NESTED": '{"port": 1}',
        "thing_nested__port": "2",
        "THING_HOME": "read elsewhere",
        "THING_TEST_X": "read elsewhere",
        "SOMETHING_ELSE": "of no concern",
        # What Kubernetes tells a pod about a Service that is named thing.
        "THING_SERVICE_HOST": "10.0.0.1",
        "THING_SERVICE_PORT_HTTP": "8080",
        "THING_PORT": "tcp://10.0.0.1:8080",
        "THING_PORT_8080_TCP_ADDR": "10.0.0.1",
    }
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    settings = load_settings(Settings, ("THING_HOME", "THING_TEST_"))
    assert settings.nested.port == 2
    assert settings.section == {"path": "somewhere"}
    assert settings.kafka.client()["fetch.wait.max.ms"] == "50"
    assert settings.kafka.client()["sasl.password"] == SECRET
    assert SECRET not in repr(settings)


def test_a_value_may_lie_in_a_file_as_orchestrators_mount_secrets(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    files = {
        "THING_STORE_URL": f"postgresql+psycopg://me:{SECRET}@here/x\n",
        "THING_KAFKA__SASL_PASSWORD": f"{SECRET} ",
        "THING_KAFKA__EXTRA__ssl.key.password": f"{SECRET}\r\n",
        "thing_section": '{"path": "somewhere"}',
    }
    monkeypatch.delenv("THING_STORE_URL")
    for name, text in files.items():
        (tmp_path / name).write_text(text)
        monkeypatch.setenv(f"{name}_file" if name.islower() else f"{name}_FILE", str(tmp_path / name))
    monkeypatch.setenv("THING_NESTED__PORT_FILE", "")  # as Compose passes on what is not set
    settings = load_settings(Settings)
    assert settings.store_url.get_secret_value() == f"postgresql+psycopg://me:{SECRET}@here/x"
    assert settings.kafka.client()["sasl.password"] == f"{SECRET} ", "one line end is no part of it, all else is"
    assert settings.kafka.client()["ssl.key.password"] == SECRET
    assert settings.section == {"path": "somewhere"}
    assert settings.nested.port is None


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (None, "THING_KAFKA__SASL_PASSWORD_FILE: the file cannot be read: No such file or directory"),
        (b"", "THING_KAFKA__SASL_PASSWORD_FILE: the file is empty"),
        (b"\n", "THING_KAFKA__SASL_PASSWORD_FILE: the file is empty"),
        (b"\xff\xfe", "THING_KAFKA__SASL_PASSWORD_FILE: the file is no text in UTF-8"),
    ],
)
def test_a_file_that_has_no_value_is_told_without_its_place(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: bytes | None, told: str
) -> None:
    file = tmp_path / SECRET  # a password where a path belongs
    if text is not None:
        file.write_bytes(text)
    assert refusal(monkeypatch, THING_KAFKA__SASL_PASSWORD_FILE=str(file)) == f"environment variable {told}"


def test_a_value_and_a_file_for_it_are_one_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    told = "environment variables THING_STORE_URL and THING_STORE_URL_FILE are both set: leave one out"
    assert refusal(monkeypatch, THING_STORE_URL_FILE=SECRET) == told
    monkeypatch.delenv("THING_STORE_URL_FILE")
    nearest = "environment variable THING_STORE_ULR_FILE is unknown: the nearest known one is THING_STORE_URL"
    assert refusal(monkeypatch, THING_STORE_ULR_FILE=SECRET) == nearest


def test_json_in_a_file_that_is_none_is_told_by_the_variable(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "extra").write_text(SECRET)
    told = refusal(monkeypatch, THING_KAFKA__EXTRA_FILE=str(tmp_path / "extra"))
    assert told == "environment variable THING_KAFKA__EXTRA: this is no valid JSON"


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("THING_STORE_ULR", "THING_STORE_URL"),
        ("thing_store_ulr", "THING_STORE_URL"),
        ("THING_KAFKA__SASL_PASSWRD", "THING_KAFKA__SASL_PASSWORD"),
        ("THING_KAFKA_SASL_PASSWORD", "THING_KAFKA__SASL_PASSWORD"),
        ("THING_NESTED__PROT", "THING_NESTED__PORT"),
        ("THING_PORT", "THING_NESTED__PORT"),
        ("THING_HOMES", "THING_HOME"),
    ],
)
def test_H1_an_unknown_variable_is_refused_beside_the_nearest_known_one(
    monkeypatch: pytest.MonkeyPatch, name: str, nearest: str
) -> None:
    told = f"environment variable {name} is unknown: the nearest known one is {nearest}"
    assert refusal(monkeypatch, **{name: SECRET}) == told


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("THING_SECTION", f'["{SECRET}"]', "environment variable THING_SECTION: Input should be a valid dictionary"),
        ("THING_SECTION", f"{{{SECRET}", "environment variable THING_SECTION: Input should be a valid dictionary"),
        ("THING_KAFKA", SECRET, "environment variable THING_KAFKA: this is no valid JSON"),
        ("THING_KAFKA__EXTRA", SECRET, "environment variable THING_KAFKA__EXTRA: this is no valid JSON"),
        ("THING_KAFKA__SASL_MECHANISM", SECRET, "environment variable THING_KAFKA__SASL_MECHANISM: "),
        ("THING_KAFKA", f'{{"sasl_passwrd": "{SECRET}"}}', "environment variable THING_KAFKA.sasl_passwrd: "),
        ("THING_NESTED__PORT", SECRET, "environment variable THING_NESTED__PORT: "),
    ],
)
def test_M10_a_value_that_is_wrong_is_not_shown(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, told: str
) -> None:
    assert refusal(monkeypatch, **{name: value}).startswith(told)


def test_every_fault_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("THING_STORE_URL")
    given = {"THING_STORE_ULR": SECRET, "THING_NESTED__PORT": SECRET, "THING_KAFKA__SASL_MECHANISM": SECRET}
    for name, value in {**given, "THING_NESTED__PROT": SECRET, "THING_HOME": "read elsewhere"}.items():
        monkeypatch.setenv(name, value)
    found = faults(Settings, ("THING_HOME",))
    assert [line.removeprefix("environment variable ").partition(":")[0].partition(" ")[0] for line in found] == [
        *("THING_NESTED__PROT", "THING_STORE_ULR", "THING_STORE_URL"),
        *("THING_KAFKA__SASL_MECHANISM", "THING_NESTED__PORT"),
    ]
    assert SECRET not in "".join(found)


def test_no_fault_where_all_is_understood() -> None:
    assert faults(Settings) == []


def test_H1_a_store_has_no_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("THING_STORE_URL")
    assert refusal(monkeypatch) == "THING_STORE_URL (Address of the store. More is said here) must be set"


def test_no_value_is_shown_where_settings_are_made_in_code() -> None:
    with pytest.raises(ValueError, match="sasl_passwrd") as caught:
        Settings(kafka={"sasl_passwrd": SECRET})  # type: ignore[arg-type]
    assert SECRET not in str(caught.value)


def test_a_user_error_ends_a_process_in_one_line(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.CRITICAL), pytest.raises(SystemExit) as caught, in_one_line():
        raise UserError("THING_STORE_URL must be set")
    assert caught.value.code == 2
    assert [record.getMessage() for record in caplog.records] == ["ends: THING_STORE_URL must be set"]
    assert not any(record.exc_info for record in caplog.records)


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("http://user:pa:ss@host:5000/api", "http://user:***@host:5000/api"),
        ("http://user:sec/ret@5@host/a", "http://user:***@host/a"),
        ("http://token@host", "http://***@host"),
        ("http://:secret@host", "http://:***@host"),
        ("http://host:5000/api", "http://host:5000/api"),
        ("postgresql+psycopg://u:p%40@h/d?password=x&sslmode=require", "postgresql+psycopg://u:***@h/d"),
        ("redis:6379,password=secret,db=1", "redis:6379,password=***,db=1"),
        ("sqlite:////tmp/a@b/x.db", "sqlite:////tmp/a@b/x.db"),
        (
            "request to http://u:p@h/api?key=1 failed, and https://t@g too",
            "request to http://u:***@h/api failed, and https://***@g too",
        ),
        ("host:9092", "host:9092"),
        ("a mail to a@b.c, or 5 > 3?", "a mail to a@b.c, or 5 > 3?"),
    ],
)
def test_M10_an_address_is_shown_without_credentials(given: str, shown: str) -> None:
    assert address(given) == shown
    assert address(shown) == shown
    assert re.search(r"secret|pa:ss", shown) is None


def test_M10_no_line_of_a_log_has_credentials() -> None:
    code = (
        "import logging, structlog\n"
        "from tradeloop.common.runtime.logs import configure_logging\n"
        "configure_logging()\n"
        f"structlog.get_logger().warning('away', error='GET http://me:{SECRET}@here/x', tries=3)\n"
        f"logging.getLogger('urllib3').warning('retrying http://me:%s@here', '{SECRET}')\n"
        f"raise ValueError('redis:6379,password={SECRET}')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    assert [line["event"] for line in lines] == ["away", "retrying http://me:***@here", "failed"]
    assert (lines[0]["error"], lines[0]["tries"]) == ("GET http://me:***@here/x", 3)
    assert "redis:6379,password=***" in lines[2]["exception"]
    assert SECRET not in done.stderr


@pytest.mark.parametrize("url", [f"postgresql+psycopg://me@here:{SECRET}/d", SECRET, f"mysql://me:{SECRET}@h/d"])
def test_M10_a_url_of_no_database_is_not_shown(url: str) -> None:
    with pytest.raises(UserError, match=r"^ledger: ") as caught:
        open_engine(url, "ledger")
    assert SECRET not in "".join(traceback.format_exception(caught.value))
