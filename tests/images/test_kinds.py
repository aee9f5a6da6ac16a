"""What becomes of pictures that are not ordinary RGB: as official pipelines read them, and as a person sees them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cl_zoo.errors import DataError
from cl_zoo.features.encoder import content_key, image_key, open_image
from cl_zoo.images.kinds import KINDS, Faithful, kinds
from cl_zoo.preflight.looks import looks

SIDE = 16
RAMP = np.linspace(0, 1, SIDE * SIDE).reshape(SIDE, SIDE)
GREY = (RAMP * 255).round().astype(np.uint8)
"""What a person sees in each of the deep pictures below."""


def deep(factor: float, kind: type) -> Callable[[Path], None]:
    return lambda file: Image.fromarray((RAMP * factor).round(9).astype(kind)).save(file)


def turned(file: Path) -> None:
    """Red above, blue below, as the sensor lay; a person sees red on the right."""
    image = Image.new("RGB", (SIDE, SIDE), "red")
    image.paste("blue", (0, SIDE // 2, SIDE, SIDE))
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(file, exif=exif, quality=100, subsampling=0)


def frames(file: Path) -> None:
    colours = [Image.new("RGB", (SIDE, SIDE), colour) for colour in ("red", "blue")]
    colours[0].save(file, save_all=True, append_images=colours[1:])


def hidden(file: Path) -> None:
    """A red disc's square on nothing, under which black lies."""
    image = Image.new("RGBA", (SIDE, SIDE), (0, 0, 0, 0))
    image.paste((255, 0, 0, 255), (0, 0, SIDE // 2, SIDE))
    image.save(file)


def see_through_palette(file: Path) -> None:
    image = Image.new("P", (SIDE, SIDE), 0)
    image.putpalette([0, 0, 0, 255, 0, 0])
    image.paste(1, (0, 0, SIDE // 2, SIDE))
    image.save(file, transparency=0)


MADE: dict[str, tuple[str, Callable[[Path], None]]] = {
    "16-bit": ("a.png", deep(2**16 - 1, np.uint16)),
    "32-bit": ("a.tiff", deep(2**31 - 1, np.int32)),
    "float": ("a.tiff", deep(1, np.float32)),
    "transparent": ("a.png", hidden),
    "turned": ("a.jpg", turned),
    "animated": ("a.webp", frames),
    "CMYK": ("a.jpg", lambda file: Image.new("CMYK", (SIDE, SIDE), (255, 0, 0, 0)).save(file)),
    "palette": ("a.png", lambda file: Image.new("P", (SIDE, SIDE)).save(file)),
}


def made(folder: Path, kind: str) -> Path:
    name, make = MADE[kind]
    make(folder / name)
    return folder / name


@pytest.mark.parametrize("kind", MADE)
def test_each_kind_is_told_from_the_header(tmp_path: Path, kind: str) -> None:
    with Image.open(made(tmp_path, kind)) as image:
        assert kinds(image) == (kind,)


def test_an_ordinary_picture_has_no_kind_and_every_kind_is_made_here(tmp_path: Path) -> None:
    for name, mode in (("a.png", "RGB"), ("b.jpg", "L"), ("c.png", "1")):
        Image.new(mode, (SIDE, SIDE)).save(tmp_path / name)
        with Image.open(tmp_path / name) as image:
            assert kinds(image) == ()
    assert {*MADE, "huge", "short video"} == set(KINDS)


@pytest.mark.parametrize("kind", MADE)
def test_unless_asked_otherwise_a_picture_is_read_as_official_pipelines_do(tmp_path: Path, kind: str) -> None:
    file = made(tmp_path, kind)

    with Image.open(file) as image:
        assert open_image(file).tobytes() == image.convert("RGB").tobytes()


@pytest.mark.parametrize("kind", ["16-bit", "32-bit", "float"])
def test_a_deep_picture_read_faithfully_has_its_tones(tmp_path: Path, kind: str) -> None:
    file = made(tmp_path, kind)

    tones = np.asarray(open_image(Faithful(file)))
    assert np.abs(tones.astype(int) - GREY[:, :, None]).max() <= 1
    official = np.asarray(open_image(file))
    assert (official == (0 if kind == "float" else 255)).mean() > 0.9


@pytest.mark.parametrize("largest", [255, 2**16 - 1])
def test_whole_numbers_of_32_bits_that_fill_fewer_are_scaled_by_those(tmp_path: Path, largest: int) -> None:
    deep(largest, np.int32)(tmp_path / "a.tiff")

    tones = np.asarray(open_image(Faithful(tmp_path / "a.tiff"))).astype(int)
    assert np.abs(tones - GREY[:, :, None]).max() <= 1


@pytest.mark.parametrize("make", [hidden, see_through_palette])
def test_behind_what_is_transparent_lies_a_white_ground(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / "a.png")
    middle = SIDE // 2

    faithful, official = open_image(Faithful(tmp_path / "a.png")), open_image(tmp_path / "a.png")
    assert (faithful.getpixel((0, middle)), faithful.getpixel((SIDE - 1, middle))) == (
        (255, 0, 0),
        (255, 255, 255),
    )
    assert official.getpixel((SIDE - 1, middle)) == (0, 0, 0)


def test_a_picture_is_turned_as_its_tag_says(tmp_path: Path) -> None:
    file, edge = made(tmp_path, "turned"), (SIDE - 1, SIDE // 2)

    assert np.argmax(open_image(Faithful(file)).getpixel(edge)) == 0  # red on the right
    assert np.argmax(open_image(file).getpixel((SIDE // 2, SIDE - 1))) == 2  # blue below


@pytest.mark.parametrize("kind", ["CMYK", "palette", "animated"])
def test_what_a_conversion_shows_rightly_is_the_same_both_ways(tmp_path: Path, kind: str) -> None:
    file = made(tmp_path, kind)

    assert open_image(file).tobytes() == open_image(Faithful(file)).tobytes()


def test_features_of_one_way_of_reading_are_not_taken_for_the_other(tmp_path: Path) -> None:
    file = made(tmp_path, "transparent")

    for key in (image_key, content_key):
        assert key(file) == key(Path(str(file)))
        assert key(file) != key(Faithful(file))


@pytest.mark.parametrize("read", [open_image, content_key])
def test_a_pipe_or_a_folder_is_no_picture_and_nobody_waits(
    tmp_path: Path, read: Callable[[Path], object]
) -> None:
    os.mkfifo(tmp_path / "a.png")

    with pytest.raises(DataError, match=r"a\.png: is no file but a pipe, .*; name the file of a picture"):
        read(tmp_path / "a.png")
    with pytest.raises(DataError, match="is a folder; name the file of a picture"):
        read(tmp_path)
    (look, folder) = looks([str(tmp_path / "a.png"), str(tmp_path)])
    assert (look.fault, folder.fault) == ("no image", "no image")
    assert look.words.startswith("is no file but a pipe")


def test_a_huge_picture_is_named_and_pillow_s_warning_stays_out_of_a_run(tmp_path: Path) -> None:
    Image.new("1", (9500, 9500)).save(tmp_path / "a.png")
    code = f"""
from pathlib import Path
from cl_zoo.features.encoder import open_image
print(open_image(Path({str(tmp_path / "a.png")!r})).size)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert (done.stdout, done.stderr) == ("(9500, 9500)\n", "")
    (look,) = looks([str(tmp_path / "a.png")])
    assert (look.fault, look.kinds, look.width) == ("", ("huge",), 9500)


def test_a_look_tells_size_and_kinds(tmp_path: Path) -> None:
    (look,) = looks([str(made(tmp_path, "turned"))])

    assert (look.width, look.height, look.kinds) == (SIDE, SIDE, ("turned",))
