"""The site of the documentation: its navigation is the index, and what is wrong with it is found."""

from __future__ import annotations

from pathlib import Path

import pytest

from docs.site.build import (
    INDEX,
    SETTINGS,
    SiteError,
    build,
    dead,
    missing,
    navigation,
    pages,
    settings,
    stage,
    strangers,
)
from tests.test_docs import DECISIONS, PAGES, ROOT

POLICY = "<meta http-equiv='Content-Security-Policy' content=\"default-src 'self'\">"


def test_every_page_is_in_the_navigation_once() -> None:
    listed = [page for _, rows in navigation((ROOT / INDEX).read_text()) for _, page in rows]
    assert len(listed) == len(set(listed))
    assert set(listed) == {str(page.relative_to(ROOT)) for page in set(PAGES) - set(DECISIONS)} - {INDEX}


def test_the_first_page_of_the_navigation_is_the_front_page() -> None:
    assert navigation((ROOT / INDEX).read_text())[0][1][0][1] == "README.md"


def test_a_section_has_the_pages_of_its_rows() -> None:
    index = "# All\n\n## One\n\n| page | for |\n|---|---|\n| [A](a.md) | x |\n| [B](../b/c.md) | y |\n\n## Two\n"
    assert navigation(index) == [("One", [("A", "docs/a.md"), ("B", "b/c.md")]), ("Two", [])]
    with pytest.raises(SiteError, match="A stands before the first section"):
        navigation(index.replace("## One", ""))


def test_the_navigation_is_put_into_the_settings() -> None:
    text = settings('[project]\nsite_name = "x"\n', [("One", [('The "A"', "docs/a.md")])])
    assert text.splitlines()[:4] == ["[project]", "nav = [", '  { "One" = [{ "The \\"A\\"" = "docs/a.md" }] },', "]"]
    with pytest.raises(SiteError, match="no \\[project\\]"):
        settings("", [])


def test_pages_lie_as_they_lie_in_the_checkout(tmp_path: Path) -> None:
    stage(ROOT, tmp_path / "staged")
    laid = sorted(str(file.relative_to(tmp_path / "staged/pages")) for file in tmp_path.rglob("pages/**/*.*"))
    assert laid == pages(ROOT)
    assert {"README.md", "benchmarks/RESULTS.md", "docs/adr/0001-event-time-dataflow.md"} <= set(laid)
    assert (tmp_path / "staged/zensical.toml").read_text().count("nav = [") == 1
    assert SETTINGS not in laid


def test_a_page_that_was_not_built_is_found(tmp_path: Path) -> None:
    for page in "index.html", "docs/a/index.html":
        (tmp_path / page).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / page).touch()
    assert list(missing(tmp_path, ["README.md", "docs/a.md"])) == []
    assert list(missing(tmp_path, ["docs/README.md", "docs/x.png"])) == [
        "docs/README.md: the site has no docs/index.html",
        "docs/x.png: the site has no docs/x.png",
    ]


@pytest.mark.parametrize(
    ("html", "found"),
    [
        ("<a href='https://example.org'>read</a><link rel='canonical' href='https://example.org/'>", 0),
        ("<script src='./bundle.js'></script><img src='data:image/png;base64,AA'>", 0),
        ("<script src='https://example.org/x.js'></script>", 1),
        ("<link rel='preconnect' href='//example.org'>", 1),
        ("<link rel='Stylesheet' href='https://example.org/x.css'>", 1),
        ("<img srcset='https://example.org/x.png 2x'>", 1),
        ("<iframe src='HTTPS://example.org'></iframe>", 1),
        ("<p style='background: url(\"https://example.org/x.png\")'>x</p>", 1),
        ("<meta http-equiv='refresh' content='0; url=https://example.org'>", 1),
    ],
)
def test_what_asks_another_host_is_found(tmp_path: Path, html: str, found: int) -> None:
    (tmp_path / "index.html").write_text(POLICY + html)
    assert len(list(strangers(tmp_path))) == found


def test_a_page_that_lets_a_browser_ask_others_is_found(tmp_path: Path) -> None:
    for number, policy in enumerate(["", POLICY.replace("'self'", "'self' https://example.org")]):
        (tmp_path / f"{number}.html").write_text(policy)
    (tmp_path / "x.css").write_text("@import '//example.org/x.css'; p { background: url(x.png) }")
    assert list(strangers(tmp_path)) == [
        "0.html: lets a browser ask other hosts",
        "1.html: lets a browser ask other hosts",
        "x.css: asks for //example.org/x.css",
    ]


def test_a_dead_link_between_built_pages_is_found(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a/index.html").write_text("<h1 id='here'>A</h1><a href='../'>up</a><a href='../b/'>b</a>")
    (tmp_path / "index.html").write_text(
        "<a href='a/#here'>1</a><a href='a/#none'>2</a><a href='#'>3</a><img src='x.png'><a href='mailto:a@b.example'>"
    )
    assert list(dead(tmp_path)) == [
        "a/index.html: ../b/ leads nowhere",
        "index.html: a/#none is no heading",
        "index.html: x.png leads nowhere",
    ]


def test_the_site_is_whole_and_can_be_searched(tmp_path: Path) -> None:
    site = build(ROOT, tmp_path / "built")
    assert len(list(site.rglob("*.html"))) == sum(page.endswith(".md") for page in pages(ROOT)) + 1  # 404.html
    assert "experience.transitions.v1" in (site / "search.json").read_text()
