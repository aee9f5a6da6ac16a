"""Colours that colour-blind readers tell apart: a scale for scores, a row of colours for methods, and text that stands out on both."""

from __future__ import annotations

CIVIDIS = (
    (0x00, 0x22, 0x4E),
    (0x12, 0x35, 0x70),
    (0x3B, 0x49, 0x6C),
    (0x57, 0x5D, 0x6D),
    (0x70, 0x71, 0x73),
    (0x8A, 0x87, 0x79),
    (0xA6, 0x9D, 0x75),
    (0xC4, 0xB5, 0x6C),
    (0xE4, 0xCF, 0x5B),
    (0xFE, 0xE8, 0x38),
)
"""Stops of the scale cividis (Nuñez, Anderton and Renslow, PLoS ONE 2018), dark to bright, evenly spaced."""

METHODS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#7f6fcf", "#8c6d31")
"""Colours of Okabe and Ito's set that are seen on white and on black, and two more."""

DASHES = ("", "6 3", "2 3", "8 3 2 3")
"""Lines of one colour differ in their dashes, in SVG's words; the empty one is solid."""

MARKERS = ("circle", "square", "triangle", "diamond")
"""And in their markers."""

Colour = tuple[int, int, int]
LIGHTEST, DARKEST = (255, 255, 255), (0, 0, 0)


def of_score(score: float, highest: float = 100.0) -> Colour:
    """The colour of a score between 0 and `highest`, red, green and blue up to 255."""
    place = min(max(score / highest, 0.0), 1.0) * (len(CIVIDIS) - 1)
    low = min(int(place), len(CIVIDIS) - 2)
    share = place - low
    red, green, blue = (
        round(a + (b - a) * share) for a, b in zip(CIVIDIS[low], CIVIDIS[low + 1], strict=True)
    )
    return red, green, blue


def on(ground: Colour) -> Colour:
    """Black or white, whichever has more contrast on a colour; it is never below 4.5 : 1."""
    return max((DARKEST, LIGHTEST), key=lambda text: contrast(text, ground))


def contrast(one: Colour, other: Colour) -> float:
    """The contrast ratio of two colours by WCAG 2, from 1 to 21."""
    bright, dark = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (bright + 0.05) / (dark + 0.05)


def as_hex(colour: Colour) -> str:
    return "#{:02x}{:02x}{:02x}".format(*colour)


def of_method(place: int) -> tuple[str, str, str]:
    """Colour, dashes and marker of the method at a place; they repeat together after 32."""
    turn = place // len(METHODS)
    return METHODS[place % len(METHODS)], DASHES[turn % len(DASHES)], MARKERS[turn % len(MARKERS)]


def _luminance(colour: Colour) -> float:
    parts = [one / 255 for one in colour]
    red, green, blue = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue
