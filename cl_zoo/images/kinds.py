"""How a picture of any kind becomes RGB, and which kinds do not become what a person sees.

Official pipelines call Pillow's `convert("RGB")`, and so does this package unless a benchmark asks for `faithful` pictures:

kind            what `official` makes of it                     `faithful`
`16-bit`        white wherever a value is above 255             values by 257
`32-bit`        white wherever a value is above 255             255 or 2¹⁶ − 1 is white, the smaller that no value exceeds, else the largest value
`float`         black where values run from 0 to 1              the same with 1, 255 and 2¹⁶ − 1
`transparent`   what lies under the transparency, often black   on a white ground
`turned`        as the camera's sensor lay                      turned as the EXIF tag says, a video's header
`animated`      the first frame                                 the same
`CMYK`          without a colour profile                        the same
`palette`       the palette's colours                           the same
`huge`          as any other, but slowly                        the same
`short video`   some of its frames more than once               the same

The kinds are told from the header alone; the colours of a palette that is transparent count as `transparent` too.
"""

from __future__ import annotations

import warnings
from contextlib import suppress
from pathlib import Path, PosixPath

from PIL import ExifTags, Image, ImageOps

KINDS = {
    "16-bit": "16 bits a pixel, which turn nearly all white",
    "32-bit": "32 bits a pixel, which turn nearly all white",
    "float": "fractions for pixels, which turn black",
    "transparent": "transparency, under which hidden colours appear, mostly black",
    "turned": "an orientation in its EXIF tag or header, which is ignored",
    "animated": "several frames, of which the first is taken",
    "CMYK": "the colours of print, which are converted without a profile",
    "palette": "a palette",
    "huge": "so many pixels that Pillow warns of them",
    "short video": "a video of fewer frames than are taken, of which some come more than once",
}
"""Kinds of picture that a check names, and what they have; behind the comma what the official conversion does to them."""
FAITHFUL = ("16-bit", "32-bit", "float", "transparent", "turned")
"""The kinds that `faithful` makes something else of."""
WHITE = {"I": (255, 2**16 - 1), "F": (1, 255, 2**16 - 1)}
"""Values that may stand for white in a picture of 32 bits a pixel, whole numbers or fractions."""

# Pillow's warning would reach a terminal from the middle of a run; `data check` names such pictures. A filter that is set for
# a while only would not hold in threads.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


class Faithful(PosixPath):
    """The path of a picture that its benchmark reads faithfully; `open_image` does so. As a text it is a path like any other: who keeps one keeps what it was."""


def kinds(image: Image.Image) -> tuple[str, ...]:
    """The kinds of an opened picture, from its header; none for an ordinary one."""
    mode, found = image.mode, []
    if mode.startswith("I;16"):
        found.append("16-bit")
    found += [kind for kind, of in (("32-bit", "I"), ("float", "F"), ("CMYK", "CMYK")) if mode == of]
    if transparent(image):
        found.append("transparent")
    if _orientation(image) in range(2, 9):
        found.append("turned")
    with suppress(Exception):  # counting the frames of a damaged file raises anything; who decodes it says so
        found += ["animated"] * bool(getattr(image, "is_animated", False))
    if mode in ("P", "PA"):
        found.append("palette")
    if image.width * image.height > (Image.MAX_IMAGE_PIXELS or float("inf")):
        found.append("huge")
    return tuple(kind for kind in KINDS if kind in found)


def transparent(image: Image.Image) -> bool:
    """Whether a picture has an alpha channel, or a colour that is transparent."""
    return image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info


def as_rgb(image: Image.Image, *, faithful: bool = False) -> Image.Image:
    """A picture as RGB: what Pillow's `convert` makes of it, or what a person sees in it."""
    if not faithful:
        return image.convert("RGB")
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16") or image.mode in WHITE:
        return _scaled(image).convert("RGB")
    if transparent(image):
        seen = image.convert("RGBA")
        ground = Image.new("RGBA", seen.size, "white")
        return Image.alpha_composite(ground, seen).convert("RGB")
    return image.convert("RGB")


def faithfully(image: Path | Image.Image) -> bool:
    """Whether the benchmark that names a picture asks for it to be read faithfully."""
    return isinstance(image, Faithful)


def _orientation(image: Image.Image) -> int | None:
    """What the EXIF tag says; a PNG that has none in its header is not decoded to look for one behind its pixels."""
    with suppress(Exception):  # a damaged tag says nothing
        if "exif" in image.info or image.format == "TIFF":
            return image.getexif().get(ExifTags.Base.Orientation)
    return None


def _scaled(image: Image.Image) -> Image.Image:
    """A picture of one deep channel in 256 tones."""
    import numpy as np

    values = np.asarray(image).astype(np.float64)
    if image.mode.startswith("I;16"):
        white = 2.0**16 - 1
    else:
        largest = float(np.nanmax(values, initial=0))
        white = next((level for level in WHITE[image.mode] if largest <= level), largest)
    tones = np.nan_to_num(values / white * 255).clip(0, 255).round().astype(np.uint8)
    return Image.fromarray(tones)
