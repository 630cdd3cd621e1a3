"""The diagrams of docs/, as SVG: no library, nothing fetched, and the orders in them are those of the code."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Final

from meshlib.client import stack
from meshlib.server import order

BUILT: Final = frozenset({"access_log", "ip_list", "authenticate", "authorise", "observe"})
"""Places in the provider's ORDER that have no layer of their own yet, or are drawn by another name."""
FONT: Final = "font-family='system-ui, sans-serif' font-size='14'"
OURS: Final = "#d9efec"
OTHERS: Final = "#f3ead7"
PLAIN: Final = "#ffffff"


@dataclass(frozen=True)
class Box:
    """A rectangle with lines of text in it; places are those of its upper left corner, in pixels."""

    x: int
    y: int
    width: int
    height: int
    text: str
    fill: str = OURS

    def svg(self) -> str:
        """Its elements."""
        lines = self.text.split("\n")
        middle, top = self.x + self.width // 2, self.y + self.height // 2 + 5 - 9 * (len(lines) - 1)
        words = "".join(
            f"<text x='{middle}' y='{top + 18 * place}' text-anchor='middle'>{escape(line)}</text>"
            for place, line in enumerate(lines)
        )
        return (
            f"<rect x='{self.x}' y='{self.y}' width='{self.width}' height='{self.height}' rx='6' fill='{self.fill}' "
            f"stroke='#2b6f68'/>{words}"
        )


def arrow(x: int, y: int, to_x: int, to_y: int, text: str = "") -> str:
    """A line with a head, and a word beside its middle."""
    beside = ("middle", 0) if y == to_y else ("start", 8)
    place = f"x='{(x + to_x) // 2 + beside[1]}' y='{(y + to_y) // 2 - 6}' text-anchor='{beside[0]}'"
    word = f"<text {place} fill='#444'>{escape(text)}</text>" if text else ""
    return f"<line x1='{x}' y1='{y}' x2='{to_x}' y2='{to_y}' stroke='#444' stroke-width='1.5' marker-end='url(#head)'/>{word}"


def drawing(width: int, height: int, parts: Iterable[str], title: str) -> str:
    """A whole picture, on a ground that suits light and dark pages."""
    head = (
        "<defs><marker id='head' viewBox='0 0 10 10' refX='9' refY='5' markerWidth='8' markerHeight='8' orient='auto'>"
        "<path d='M0 0 L10 5 L0 10 z' fill='#444'/></marker></defs>"
    )
    return (
        f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {width} {height}' {FONT} role='img'>"
        f"<title>{escape(title)}</title>{head}<rect width='{width}' height='{height}' rx='10' fill='#fbfbf9'/>"
        f"{''.join(parts)}</svg>\n"
    )


def call() -> str:
    """Consumer's layers downwards, the provider's beside them."""
    consumer = ["your code", "observe", *stack.ORDER, "failover", "balance", "send"]
    provider = ["count", *(name for name in order.ORDER if name not in BUILT), "deadline", "your app"]
    height = 60 + 34 * len(consumer)
    left, right = _column(40, consumer), _column(400, provider)
    parts = [
        _heading(150, "a consumer's process"), _heading(510, "a provider's process"), *left, *right,
        arrow(260, 44 + 34 * (len(consumer) - 1) + 13, 398, 57, ""),
        f"<text x='272' y='{height - 14}' fill='#444'>over the network</text>",
    ]  # fmt: skip
    return drawing(660, height, parts, "What becomes of a call")


def _column(x: int, names: Sequence[str]) -> list[str]:
    return [
        Box(x, 44 + 34 * place, 220, 26, name, OTHERS if name.startswith("your") else OURS).svg()
        for place, name in enumerate(names)
    ]


def _heading(x: int, text: str) -> str:
    return f"<text x='{x}' y='28' text-anchor='middle' font-weight='bold'>{escape(text)}</text>"


def planes() -> str:
    """What calls read, and who writes it."""
    parts = [
        "<rect x='20' y='40' width='500' height='250' rx='8' fill='none' stroke='#888' stroke-dasharray='5 4'/>",
        "<text x='32' y='60' fill='#444'>one process</text>",
        Box(50, 80, 180, 56, "your threads\nand tasks", OTHERS).svg(),
        Box(310, 80, 180, 56, "snapshot\n(immutable)", PLAIN).svg(),
        Box(310, 210, 180, 56, "control plane\n(one thread, one loop)").svg(),
        Box(50, 210, 180, 56, "disk snapshot", PLAIN).svg(),
        Box(600, 80, 150, 56, "instances", OTHERS).svg(),
        Box(600, 210, 150, 56, "registry", OTHERS).svg(),
        arrow(230, 108, 308, 108, "read"), arrow(400, 210, 400, 138, "swap"),
        arrow(310, 238, 232, 238, "write"), arrow(600, 238, 492, 238, "watch"),
        "<path d='M140 80 C140 10 675 10 675 78' fill='none' stroke='#444' stroke-width='1.5' marker-end='url(#head)'/>",
        "<text x='560' y='22' fill='#444'>calls</text>",
    ]  # fmt: skip
    return drawing(780, 310, parts, "Two planes")


def leaving() -> str:
    """The order in which a provider leaves."""
    steps = ["told to stop", "deregister", "wait until\nconsumers know", "wait for what\nis in flight", "the server\nstops"]
    parts = [
        Box(20 + 160 * place, 40, 130, 60, step, OTHERS if place in (0, 4) else OURS).svg() for place, step in enumerate(steps)
    ]
    parts += [arrow(150 + 160 * place, 70, 178 + 160 * place, 70) for place in range(4)]
    parts += [
        "<line x1='20' y1='130' x2='628' y2='130' stroke='#2b6f68' stroke-width='6'/>",
        "<text x='320' y='155' text-anchor='middle' fill='#444'>requests are served</text>",
    ]
    return drawing(810, 175, parts, "Leaving")
