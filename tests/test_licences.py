"""What ships has a licence that may be used."""

from __future__ import annotations

import pytest

from deploy.licences import NAMED, licence_of, refused, shipped


def test_every_package_that_ships_has_a_licence_that_may_be_used() -> None:
    names = shipped()
    assert {"numpy", "psycopg", "torch"} < set(names)
    assert {name: licence for name in names if refused(name, licence := licence_of(name))} == {}
    assert NAMED.keys() <= set(names), "what was looked up by hand is used"


@pytest.mark.parametrize(
    ("licence", "is_refused"),
    [
        ("MIT", False),
        ("MIT OR GPL-3.0-only", False),
        ("Apache-2.0 AND MIT", False),
        ("MPL-2.0 AND (Apache-2.0 OR MIT)", False),
        ("BSD-2-Clause AND Apache-2.0 WITH LLVM-exception", False),
        ("LGPL-3.0-only", False),
        ("GPL-3.0-only", True),
        ("AGPL-3.0-or-later", True),
        ("MIT AND GPL-2.0-only", True),
        ("LicenseRef-NVIDIA-Proprietary", True),
        ("OSI Approved", True),
        ("", True),
        (None, True),
    ],
)
def test_what_may_not_be_used_is_refused(licence: str | None, is_refused: bool) -> None:
    assert refused("some-package", licence) is is_refused


def test_a_package_that_nobody_installed_has_no_licence() -> None:
    assert licence_of("no-such-package") is None
