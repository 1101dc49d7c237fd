"""Contrast of the report's colours (WCAG 2.2): text 4.5 to 1, marks of figures 3 to 1, light and dark."""

from __future__ import annotations

import pytest

from irl.report.style import DARK, LIGHT, STYLE


def luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


TEXT = {"card": ("ink", "quiet", "accent", "warn"), "page": ("ink", "quiet", "accent"), "head": ("ink",),
        "warn-card": ("ink", "warn")}  # fmt: skip


@pytest.mark.parametrize("colours", [LIGHT, DARK], ids=["light", "dark"])
def test_text_and_marks_stand_out(colours):
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    low = [(a, b) for b, names in TEXT.items() for a in names if contrast(colours[a], colours[b]) < 4.5]
    low += [(f"c{n}", "card") for n in range(8) if contrast(colours[f"c{n}"], colours["card"]) < 3]
    assert not low


def test_both_palettes_are_in_the_style_sheet():
    assert set(LIGHT) == set(DARK)
    assert all(f"--{name}: {value};" in STYLE for colours in (LIGHT, DARK) for name, value in colours.items())
