"""The making of the site, and the faults that a made one has."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

INDEX = "docs/README.md"
"""The list of all pages. Its headings are the sections of the navigation, and its rows the pages."""
SETTINGS = "docs/site/zensical.toml"
EMBEDDED = {"docs/site/extra.css"}
"""Files that the pages need beside pictures."""
PICTURES = {".png", ".svg"}
DATA = {".ipynb", ".json"}
"""Files that pages link to, as they are."""

_ROW = re.compile(r"^\| \[(?P<title>[^\]]+)\]\((?P<link>[^)#]+)\) \|")
_FETCHED = {"src", "srcset", "data", "poster", "action", "background"}
_LINKS = {"icon", "stylesheet", "preload", "prefetch", "preconnect", "dns-prefetch", "modulepreload", "manifest"}
_ELSEWHERE = re.compile(r"\s*(?:[a-z][a-z0-9+.-]*:)?//|\s*(?:https?|wss?|ftp):", re.I)
_IN_STYLE = re.compile(r"(?:url\(\s*['\"]?|@import\s+['\"])\s*((?:https?:)?//[^'\")\s]+)", re.I)

Section = tuple[str, list[tuple[str, str]]]


class SiteError(Exception):
    """The site cannot be built as it is asked for. The message says what is wrong, a line each."""


def navigation(index: str, folder: str = "docs") -> list[Section]:
    """The sections of the index with the titles and paths of their pages, paths from the root of the checkout."""
    sections: list[Section] = []
    for line in index.splitlines():
        if line.startswith("## "):
            sections.append((line[3:].strip(), []))
        elif (row := _ROW.match(line)) is not None:
            if not sections:
                raise SiteError(f"{INDEX}: {row['title']} stands before the first section")
            sections[-1][1].append((row["title"], _normal(f"{folder}/{row['link']}")))
    return sections


def _normal(path: str) -> str:
    parts: list[str] = []
    for part in path.split("/"):
        if part == "..":
            parts.pop()
        elif part != ".":
            parts.append(part)
    return "/".join(parts)


def settings(text: str, sections: list[Section]) -> str:
    """The settings of the generator, with the navigation."""
    text_of = json.dumps  # a string of JSON is one of TOML
    lines = ["nav = ["]
    for name, pages in sections:
        rows = ", ".join(f"{{ {text_of(title)} = {text_of(page)} }}" for title, page in pages)
        lines.append(f"  {{ {text_of(name)} = [{rows}] }},")
    nav = "\n".join([*lines, "]"])
    if text.count("[project]\n") != 1:
        raise SiteError(f"{SETTINGS}: it has no [project] that the navigation belongs to")
    return text.replace("[project]\n", f"[project]\n{nav}\n")


def pages(root: Path) -> list[str]:
    """Every page, picture and file of data of the site, by its path in the checkout."""
    listed = {page for _, rows in navigation((root / INDEX).read_text()) for _, page in rows}
    files = {
        str(file.relative_to(root)) for file in (root / "docs").rglob("*") if file.suffix in {".md", *PICTURES, *DATA}
    }
    return sorted({INDEX, *listed, *files, *EMBEDDED})


def stage(root: Path, folder: Path) -> None:
    """Lay out in an empty folder what the generator reads: its settings, its theme, and the pages as they lie here."""
    if folder.exists():
        shutil.rmtree(folder)
    for page in pages(root):
        target = folder / "pages" / page
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(root / page, target)
    shutil.copytree(root / "docs/site/theme", folder / "theme")
    sections = navigation((root / INDEX).read_text())
    (folder / "zensical.toml").write_text(settings((root / SETTINGS).read_text(), sections))


def build(root: Path, folder: Path) -> Path:
    """Build the site in a folder that is emptied before; returns where its front page is. Raises `SiteError`."""
    stage(root, folder)
    generator = Path(sys.executable).with_name("zensical")
    if not generator.exists():
        raise SiteError("zensical is not installed: `make docs` installs it")
    done = subprocess.run([generator, "build", "--strict"], cwd=folder, capture_output=True, text=True, timeout=300)
    site = folder / "site"
    if done.returncode:
        said = re.sub(r"\x1b\[[0-9;]*m", "", done.stdout + done.stderr)
        raise SiteError(said.partition("Traceback")[0].strip() or said.strip())
    faults = [*missing(site, pages(root)), *strangers(site), *dead(site)]
    if faults:
        raise SiteError("\n".join(faults))
    return site


def missing(site: Path, expected: list[str]) -> Iterator[str]:
    """Pages that were not built."""
    for page in expected:
        stem = re.sub(r"(^|/)README$", "", page.removesuffix(".md"))
        place = page if stem == page else f"{stem}/index.html".lstrip("/")
        if not (site / place).is_file():
            yield f"{page}: the site has no {place}"


class _Page(HTMLParser):
    """The addresses in a page: those that a browser asks by itself, those that a reader may follow, and its anchors."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.followed: list[str] = []
        self.anchors = {"", "__skip"}
        self.policy = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.anchors |= {given[name] for name in ("id", "name") if name in given}
        self.fetched += [value for name, value in given.items() if name in _FETCHED]
        self.fetched += _IN_STYLE.findall(given.get("style", ""))
        if tag == "link" and _LINKS & set(given.get("rel", "").lower().split()):
            self.fetched.append(given.get("href", ""))
        if tag == "a" and "href" in given:
            self.followed.append(given["href"])
        if tag == "meta" and given.get("http-equiv", "").lower() == "content-security-policy":
            self.policy = given.get("content", "")
        if tag == "meta" and given.get("http-equiv", "").lower() == "refresh":
            self.fetched.append(given.get("content", "").partition("=")[2])


def strangers(site: Path) -> Iterator[str]:
    """Places that make a browser ask another host, and pages that do not forbid it to."""
    for file in sorted(site.rglob("*.html")):
        page = _Page(file.read_text())
        name = file.relative_to(site)
        yield from (f"{name}: asks for {address}" for address in page.fetched if _ELSEWHERE.match(address))
        if "default-src 'self'" not in page.policy or _ELSEWHERE.search(page.policy):
            yield f"{name}: lets a browser ask other hosts"
    for file in sorted(site.rglob("*.css")):
        found = _IN_STYLE.findall(file.read_text())
        yield from (f"{file.relative_to(site)}: asks for {address}" for address in found)


def dead(site: Path) -> Iterator[str]:
    """Links between pages that lead nowhere: to a page that is not there, or to a heading that the page lacks."""
    parsed = {file: _Page(file.read_text()) for file in sorted(site.rglob("*.html")) if file.name != "404.html"}
    for file, page in parsed.items():
        for link in [*page.followed, *page.fetched]:
            if _ELSEWHERE.match(link) or link.startswith(("mailto:", "data:", "javascript:")):
                continue
            path, _, anchor = link.partition("#")
            target = (file.parent / unquote(path)).resolve() if path else file
            target = target / "index.html" if target.is_dir() else target
            if not target.is_file():
                yield f"{file.relative_to(site)}: {link} leads nowhere"
            elif target in parsed and unquote(anchor) not in parsed[target].anchors:
                yield f"{file.relative_to(site)}: {link} is no heading"
