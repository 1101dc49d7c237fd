"""One small figure, for two readers: inline SVG for the page, axes of a picture for TensorBoard.

In the page text stays text and colours are left to its style sheet: they are drawn as marker values and then replaced
by ``currentColor`` and ``var(--c0)``, ``var(--c1)`` ..., so that one figure serves light and dark; nothing refers to
the outside. A picture has the style sheet's light colours. Both come from the same drawing, whose colours are positions
(``C0`` ... ``C9``) in the cycle that is set while it is drawn.

Limits: text is measured in matplotlib's own font and shown in the reader's; margins leave room for the difference.
"""

from __future__ import annotations

import hashlib
import io
import math
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from cycler import cycler
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from irl.report.style import LIGHT

COLOURS = 8
"""Series colours of the style sheet; 0 is the anchor's grey. More actions than that repeat the others."""
INK, WARNING = f"C{COLOURS}", f"C{COLOURS + 1}"
MARKERS = tuple(f"#0a0b0{n}" for n in range(COLOURS + 2))
"""What the page's figures are drawn with: colours that occur nowhere else, in the order of the cycle."""
IN_PAGE = (*(f"var(--c{n})" for n in range(COLOURS)), "currentColor", "var(--warn)")
IN_PICTURE = tuple(LIGHT[name] for name in (*(f"c{n}" for n in range(COLOURS)), "ink", "warn"))


@dataclass(frozen=True)
class Panel:
    """One small figure: a caption, what it shows in words, how it is drawn, and its size in inches."""

    caption: str
    description: str
    draw: Callable[[Axes], None]
    width: float
    height: float

    @cached_property
    def svg(self) -> str:
        """The figure as it stands in a page beside others."""
        with _drawing(MARKERS):
            figure = Figure(figsize=(self.width, self.height), layout="constrained")
            self.onto(figure.add_subplot())
            buffer = io.StringIO()
            figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
        return _inline(buffer.getvalue(), f"{self.caption}|{self.description}")

    def onto(self, axes: Axes) -> None:
        """Draw it on axes."""
        self.draw(axes)
        axes.tick_params(length=3)


def panel(
    caption: str, description: str, draw: Callable[[Axes], None], *, width: float = 3.9, height: float = 2.6
) -> Panel:
    """A panel of the usual size."""
    return Panel(caption, description, draw, width, height)


def series(number: int) -> int:
    """The style sheet's colour for an action: 0 is the anchor, others count from 1 and repeat when colours run out."""
    return number if number < COLOURS else 1 + (number - 1) % (COLOURS - 1)


def colour(number: int) -> str:
    """The colour of :func:`series`, to draw with."""
    return f"C{series(number)}"


def short(name: str, longest: int = 22) -> str:
    """A name that fits beside an axis."""
    return name if len(name) <= longest else name[: longest - 1] + "…"


@contextmanager
def picture(panels: Sequence[Panel], *, columns: int = 3, legend: Sequence[tuple[str, int]] = ()) -> Iterator[Figure]:
    """Panels side by side on white, for what shows pixels; to be rendered while the context lasts.

    ``legend`` names the series: (label, number of the colour).
    """
    columns = min(columns, len(panels))
    rows = math.ceil(len(panels) / columns)
    width, height = (max(getattr(p, side) for p in panels) for side in ("width", "height"))
    with _drawing(IN_PICTURE):
        figure = Figure(figsize=(columns * width, rows * (height + 0.3) + 0.3), layout="constrained", facecolor="white")
        for i, each in enumerate(panels):
            axes = figure.add_subplot(rows, columns, i + 1)
            each.onto(axes)
            axes.set_title(short(each.caption, 40), fontsize=10, fontweight="bold", loc="left")
        if legend:
            handles = [Axes.plot(axes, [], [], color=colour(number), label=label)[0] for label, number in legend]
            figure.legend(handles=handles, loc="outside lower left", ncols=6)
        yield figure


@contextmanager
def _drawing(cycle: Sequence[str]) -> Iterator[None]:
    """The style of the report's figures, its colours being ``cycle``: the series, the ink, the warning."""
    ink = cycle[COLOURS]
    style: dict[Any, Any] = {
        "svg.fonttype": "none",
        "svg.hashsalt": "irl",
        "text.parse_math": False,  # names are data: a $ in them is a dollar
        "axes.prop_cycle": cycler(color=list(cycle)),
        "font.size": 9.5,
        "text.color": ink,
        "axes.facecolor": "none",
        "axes.edgecolor": ink,
        "axes.labelcolor": ink,
        "xtick.color": ink,
        "ytick.color": ink,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.linewidth": 0.6,
        "xtick.major.width": 0.6,
        "ytick.major.width": 0.6,
        "lines.solid_capstyle": "round",
        "legend.frameon": False,
    }
    with rc_context(style), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"Glyph .* missing")  # the reader's font has it
        yield


def _inline(svg: str, key: str) -> str:
    """A stand-alone SVG made fit for a page: no prolog, metadata, style; names made its own by ``key``."""
    svg = svg[svg.index("<svg") :]
    for part in (r"<metadata>.*?</metadata>", r"<style.*?</style>", r"<!--.*?-->", r'\sxmlns(:\w+)?="[^"]*"'):
        svg = re.sub(part, "", svg, flags=re.DOTALL)
    svg = re.sub(r'<g id="patch_1">.*?</g>', "", svg, count=1, flags=re.DOTALL)  # the figure's own background
    mine = f"f{hashlib.sha256(key.encode()).hexdigest()[:8]}-"
    for before, after in ((' id="', f' id="{mine}'), ("url(#", f"url(#{mine}"), ('xlink:href="#', f'href="#{mine}')):
        svg = svg.replace(before, after)
    svg = re.sub(r"font-family: [^;\"]*; ", "", svg)  # the page's
    for marker, shown in zip(MARKERS, IN_PAGE, strict=True):
        svg = svg.replace(marker, shown)
    return re.sub(r"<svg", '<svg role="presentation" aria-hidden="true"', svg, count=1).strip()
