"""`tradeloop config`: what holds in an environment, where it comes from, and every fault at once, without secrets."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from pydantic import SecretStr

from tradeloop.cli import configuration
from tradeloop.cli.main import main
from tradeloop.common.settings import variables

SECRET = "hunter2"


@pytest.fixture(autouse=True)
def _nothing_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    prefixes = tuple(configuration.prefix(name) for name in configuration.ALL)
    for name in [name for name in os.environ if name.startswith(prefixes)]:
        monkeypatch.delenv(name)


def set_all(monkeypatch: pytest.MonkeyPatch, **given: str) -> None:
    for name, value in given.items():
        monkeypatch.setenv(name, value)


PREPROCESS = {
    "PREPROCESS_DATABASE_URL": f"postgresql+psycopg://preprocess:{SECRET}@db/bars",
    "PREPROCESS_FEATURE_ROOT": "/features",
    "PREPROCESS_PORTFOLIOS": "[]",
    "PREPROCESS_KAFKA": json.dumps({"sasl_username": "preprocess", "sasl_password": SECRET}),
    "PREPROCESS_KAFKA__BOOTSTRAP_SERVERS": "kafka:9092",
    "PREPROCESS_KAFKA__EXTRA__ssl.key.password": SECRET,
    "PREPROCESS_FEATURE_REGISTRY": json.dumps({"path": f"postgresql+psycopg://preprocess:{SECRET}@db/features"}),
    "PREPROCESS_FEATURE_ONLINE_STORE": json.dumps({"connection_string": f"redis:6379,password={SECRET}"}),
}


def test_values_have_an_origin_and_secrets_are_hidden(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    set_all(monkeypatch, **PREPROCESS)
    assert main(["config", "show", "preprocess", "--json"]) == 0
    said = capsys.readouterr().out
    assert SECRET not in said
    lines = {line["variable"]: line for line in map(json.loads, said.splitlines())}
    shown = {name: (line["value"], line["origin"]) for name, line in lines.items()}
    assert shown["PREPROCESS_DATABASE_URL"] == ("postgresql+psycopg://preprocess:***@db/bars", "environment")
    assert shown["PREPROCESS_KAFKA__SASL_PASSWORD"] == ("***", "environment")
    assert shown["PREPROCESS_KAFKA__EXTRA"] == ("ssl.key.password=***", "environment")
    assert shown["PREPROCESS_FEATURE_REGISTRY"] == ("path=***", "environment")
    assert shown["PREPROCESS_KAFKA__BOOTSTRAP_SERVERS"] == ("kafka:9092", "environment")
    assert shown["PREPROCESS_FEATURES"] == ("topic", "default")
    assert shown["PREPROCESS_HTTP__PORT"] == (None, "default")
    read = {name for name, _ in variables(configuration.kind("preprocess")[0], "PREPROCESS_")}
    assert set(lines) == {name for name in read if not any(other.startswith(f"{name}__") for other in read)}


def test_only_what_is_given(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    set_all(monkeypatch, TRADELOOP_KAFKA__PREFIX="mine.", TRADELOOP_ROLES__INGEST=SECRET)
    assert main(["config", "show", "--given"]) == 0
    assert capsys.readouterr().out == (
        "TRADELOOP_KAFKA__PREFIX=mine.  (environment)\nTRADELOOP_ROLES=ingest=***  (environment)\n"
    )


@pytest.mark.parametrize("name", configuration.ALL)
def test_every_secret_is_hidden_by_its_type(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each setting that may hold one is given one, whatever it is called."""
    for setting in configuration.settings(name):
        if setting.is_needed:
            monkeypatch.setenv(setting.variable, "somewhere")
    for setting in configuration.settings(name):
        if SecretStr in (setting.field.annotation, *getattr(setting.field.annotation, "__args__", ())):
            value = f"name={SECRET}-and-more-of-it"
            monkeypatch.setenv(f"{setting.variable}__X" if "by name" in setting.kind else setting.variable, value)
    shown = list(configuration.shown(name))
    assert SECRET not in "".join(value for _, value, _ in shown)
    assert [value for setting, value, _ in shown if "secret" in setting.kind and value not in ("***", "x=***")] == []


def test_every_fault_is_a_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    set_all(
        monkeypatch,
        EXECUTION_LEDGER_ULR=f"postgresql+psycopg://execution:{SECRET}@db/ledger",
        EXECUTION_KAFKA__SASL_PASSWRD=SECRET,
        EXECUTION_HTTP__PORT=SECRET,
        INGEST_DATABASE_URL="sqlite:///bars.db",
        INGEST_SOURCES=str(tmp_path / "none.yaml"),
        TRADELOOP_KAFKA__PREFIX="a b",
    )
    assert main(["config", "validate"]) == 2
    found = capsys.readouterr()
    assert found.out == ""
    assert SECRET not in found.err
    begins = [line.partition(" is unknown")[0].partition(" (")[0] for line in found.err.splitlines()]
    begins = [line.partition(": String")[0].partition(": Input")[0] for line in begins]
    assert begins == [
        "command: environment variable TRADELOOP_KAFKA__PREFIX",
        f"ingest: {tmp_path}/none.yaml: sources cannot be read: No such file or directory",
        "execution: environment variable EXECUTION_KAFKA__SASL_PASSWRD",
        "execution: environment variable EXECUTION_LEDGER_ULR",
        "execution: EXECUTION_LEDGER_URL",
        "execution: environment variable EXECUTION_HTTP__PORT",
    ]
    assert "the nearest known one is EXECUTION_LEDGER_URL" in found.err


def test_what_is_between_two_settings_is_found(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    set_all(
        monkeypatch,
        INFERENCE_DATABASE_URL="sqlite:///bars.db",
        INFERENCE_MLFLOW_TRACKING_URI="sqlite:///mlflow.db",
        INFERENCE_FEATURES="online",
    )
    assert main(["config", "validate", "inference"]) == 2
    assert capsys.readouterr().err.splitlines() == [
        "inference: no portfolios: name a folder that has a YAML file for each one in ..._PORTFOLIO_FOLDER",
        "inference: INFERENCE_FEATURES is online: INFERENCE_FEATURE_ROOT must name the folder of the features",
    ]


def test_what_is_understood_is_said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "validate"]) == 0
    assert "neither the command nor a service has a variable" in capsys.readouterr().out
    set_all(monkeypatch, **PREPROCESS)
    assert main(["config", "validate"]) == 0
    assert capsys.readouterr().out == "understood: preprocess\n"


def test_an_unknown_service_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "show", "broker"]) == 2
    assert "there is no service broker: there are command, ingest" in capsys.readouterr().err


@pytest.mark.parametrize("name", configuration.ALL)
def test_every_setting_says_what_it_means(name: str) -> None:
    assert [one.variable for one in configuration.settings(name) if not one.meaning] == []
