"""Small drawings as SVG: boxes, arrows and words, on a card that is readable on a light and on a dark page."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

_STYLE = """\
  .card { fill: #ffffff; stroke: #d0d4dc } .miss { fill: none; stroke: #8a94ab }
  .box { fill: #eef1f8; stroke: #8a94ab } .soft { fill: #f7f8fb; stroke: #c2c8d4 }
  .hit { fill: #dfe7ff; stroke: #4a5fd0 } .up { fill: #2e8b6f } .down { fill: #c2553d }
  .line { fill: none; stroke: #4d5670; stroke-width: 1.5 } .dash { stroke-dasharray: 5 4 } .tip { fill: #4d5670 }
  text { font: 13px system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; fill: #1d2333 }
  .name { font-weight: 600 } .small { font-size: 11.5px; fill: #4d5670 }
  .code { font: 11.5px ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace; fill: #2f3a86 }
  @media (prefers-color-scheme: dark) {
    .card { fill: #1b1f2a; stroke: #3a4152 } .miss { stroke: #6c7690 }
    .box { fill: #2a3040; stroke: #6c7690 } .soft { fill: #222734; stroke: #4b5468 }
    .hit { fill: #2c3670; stroke: #8fa0ff } .up { fill: #4fb995 } .down { fill: #e0785f }
    .line { stroke: #aab2c8 } .tip { fill: #aab2c8 }
    text { fill: #eef1f8 } .small { fill: #aab2c8 } .code { fill: #b3beff }
  }
"""

Point = tuple[float, float]


class Drawing:
    """One picture. Coordinates are pixels from the upper left corner."""

    def __init__(self, width: int, height: int, title: str) -> None:
        self._head = (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
            f'role="img" aria-label="{escape(title)}">\n<title>{escape(title)}</title>\n<style>\n{_STYLE}</style>\n'
        )
        self._parts = [f'<rect class="card" x="0.5" y="0.5" width="{width - 1}" height="{height - 1}" rx="10"/>']

    def rect(self, x: float, y: float, width: float, height: float, kind: str = "box", radius: float = 6) -> None:
        size = f'width="{width:g}" height="{height:g}"'
        self._parts.append(f'<rect class="{kind}" x="{x:g}" y="{y:g}" {size} rx="{radius:g}"/>')

    def text(self, x: float, y: float, words: str, kind: str = "", anchor: str = "middle") -> None:
        look = f'class="{kind}" ' if kind else ""
        self._parts.append(f'<text {look}x="{x:g}" y="{y:g}" text-anchor="{anchor}">{escape(words)}</text>')

    def box(self, x: float, y: float, width: float, height: float, name: str, *under: str, kind: str = "box") -> None:
        """A box with its name, and smaller lines below."""
        self.rect(x, y, width, height, kind)
        top = y + height / 2 + 4.5 - 8 * len(under)
        self.text(x + width / 2, top, name, "name")
        for number, line in enumerate(under, start=1):
            self.text(x + width / 2, top + 16 * number, line, "small")

    def line(self, points: Sequence[Point], *, dashed: bool = False) -> None:
        path = " ".join(f"{x:g},{y:g}" for x, y in points)
        self._parts.append(f'<polyline class="line{" dash" if dashed else ""}" points="{path}"/>')

    def arrow(self, points: Sequence[Point], *, dashed: bool = False) -> None:
        """A line with a tip at its end; its last piece is level or upright."""
        (x0, y0), (x1, y1) = points[-2:]
        across, down = (x1 > x0) - (x1 < x0), (y1 > y0) - (y1 < y0)
        back = (x1 - 9 * across, y1 - 9 * down)
        self.line([*points[:-1], back], dashed=dashed)
        wings = [(back[0] + side * 4.5 * down, back[1] + side * 4.5 * across) for side in (1, -1)]
        tip = " ".join(f"{x:g},{y:g}" for x, y in [(x1, y1), *wings])
        self._parts.append(f'<polygon class="tip" points="{tip}"/>')

    def candle(self, x: float, width: float, prices: tuple[float, float, float, float], scale: Point) -> None:
        """A bar of open, high, low and close; `scale` is the height of a price of 0, and the pixels of a unit."""
        zero, unit = scale
        opened, high, low, close = (zero - price * unit for price in prices)
        kind = "up" if prices[3] >= prices[0] else "down"
        self.line([(x + width / 2, high), (x + width / 2, low)])
        self.rect(x, min(opened, close), width, max(abs(opened - close), 2), kind, 2)

    def svg(self) -> str:
        return self._head + "\n".join(self._parts) + "\n</svg>\n"
