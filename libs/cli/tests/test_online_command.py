from __future__ import annotations

from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from tradeloop.cli.main import main
from tradeloop.common.clock import ManualClock
from tradeloop.common.feature_store.port import FeatureRows
from tradeloop.common.market import Instrument, Timeframe, Universe, to_us
from tradeloop.common.strategy import load


def test_current_values_are_shown_with_their_age(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from tradeloop.common.feature_store.feast.store import FeastFeatureStore

    asked = ["features", "online", "--universe", "pair", "--home", str(tmp_path)]
    assert main(asked) == 2
    assert "knows no universe pair" in capsys.readouterr().err
    universe = Universe(name="pair", instruments=(Instrument(id="x:A"), Instrument(id="x:B")), timeframe=Timeframe.H1)
    (tmp_path / "universes").mkdir()
    (tmp_path / "universes" / "pair.json").write_text(universe.model_dump_json())
    assert main(asked) == 2
    assert "has no features" in capsys.readouterr().err
    features = load("example").feature_set
    with closing(FeastFeatureStore(tmp_path / "features", ManualClock(datetime(2026, 1, 1, tzinfo=UTC)))) as store:
        store.define("fs_other", ("a",))
        assert main(asked) == 2
        assert f"feature set {features.id} of strategy example is not in" in capsys.readouterr().err
        store.define(features.id, features.names)
        assert main(asked) == 2
        assert "nothing of pair is stored online" in capsys.readouterr().err
        close_us = np.array([to_us(datetime(2026, 1, 5, tzinfo=UTC))])
        values = np.full((1, 1, len(features.names)), 0.1)
        store.write_online(features.id, "pair", FeatureRows(("x:A",), features.names, close_us, values))
    assert main(asked) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].startswith("x:A: bar closed 2026-01-05T00:00:00+00:00, ")
    assert lines[2].split() == [features.names[0], "0.1"]
    assert lines[-1] == "x:B: nothing is stored online"
