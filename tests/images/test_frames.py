"""Videos as images: which frames are taken, that each is the one it should be, and what is said of a video that cannot be read."""

from __future__ import annotations

import struct
import sys
from pathlib import Path

import numpy as np
import pytest
from films import TONES, av, cut, film, tone
from PIL import Image

from cl_zoo import frames
from cl_zoo.errors import DataError, OptionError
from cl_zoo.features.encoder import content_key, image_key, open_image
from cl_zoo.images.kinds import Faithful
from cl_zoo.nn.memory import pack_sample, unpack_sample
from cl_zoo.preflight.looks import equal_files, looks
from cl_zoo.tasks import Sample
from cl_zoo.videos import Frame, file_of, frame_of

CODECS = {
    "b-frames.mp4": ("libx264", {"bf": "3"}),
    "open.mkv": ("libx264", {"bf": "3", "x264-params": "open-gop=1"}),
    "hidden.webm": ("libvpx", {"auto-alt-ref": "1", "lag-in-frames": "10"}),
    "old.avi": ("mpeg4", {"bf": "2"}),
    "stream.ts": ("libx264", {"bf": "2"}),
}
"""Frames that are stored in another order than they are shown, hidden ones, and containers without an index or a number of frames."""


@pytest.mark.parametrize(
    ("total", "parts", "places"),
    [
        (30, 8, [1, 5, 9, 13, 16, 20, 24, 28]),  # 30/16 = 1.875, 5.625, 9.375, 13.125, …
        (8, 8, [0, 1, 2, 3, 4, 5, 6, 7]),
        (10, 2, [2, 7]),
        (5, 1, [2]),
        (3, 8, [0, 0, 0, 1, 1, 2, 2, 2]),  # 3/16 = 0.1875, 0.5625, 0.9375, 1.3125, …
        (1, 3, [0, 0, 0]),
    ],
)
def test_a_video_is_the_middle_frames_of_equal_parts(total: int, parts: int, places: list[int]) -> None:
    assert [Frame(Path("a.mp4"), number, parts).place(total) for number in range(1, parts + 1)] == places


def test_a_frame_is_named_below_its_video_and_a_picture_is_none() -> None:
    assert [str(one) for one in frames("clips/a.mp4", 2)] == [
        "clips/a.mp4/frame-1-of-2",
        "clips/a.mp4/frame-2-of-2",
    ]
    assert frame_of(Path("clips/a.mp4/frame-2-of-2")) == (Path("clips/a.mp4"), 2, 2)
    for name in ("a.png", "a.mp4/frame-3-of-2", "a.mp4/frame-0-of-2", "frame-1-of-2", "a/frame-1-of-2.png"):
        assert frame_of(Path(name)) is None
        assert file_of(Path(name)) == Path(name)
    with pytest.raises(OptionError, match="frames must be at least 1, got 0"):
        frames("a.mp4", 0)


@pytest.mark.parametrize("name", CODECS)
def test_a_frame_that_is_sought_is_the_one_that_comes_at_its_place(tmp_path: Path, name: str) -> None:
    codec, options = CODECS[name]
    video = film(tmp_path / name, codec=codec, **options)

    with av().open(str(video)) as opened:
        whole = [one.to_image() for one in opened.decode(video=0)]
    assert list(map(tone, whole)) == list(TONES)
    found = [open_image(one) for one in frames(video, 8)]
    assert list(map(tone, found)) == [TONES[place] for place in (1, 5, 9, 13, 16, 20, 24, 28)]
    assert [one.tobytes() for one in found] == [
        whole[place].tobytes() for place in (1, 5, 9, 13, 16, 20, 24, 28)
    ]


def test_of_a_short_video_frames_come_more_than_once_and_a_look_says_so(tmp_path: Path) -> None:
    video = film(tmp_path / "a.mp4", TONES[:3])

    assert [tone(open_image(one)) for one in frames(video, 5)] == [TONES[k] for k in (0, 0, 1, 2, 2)]
    assert {look.kinds for look in looks([str(one) for one in frames(video, 5)])} == {("short video",)}
    (look, *_) = looks([str(one) for one in frames(video, 3)])
    assert (look.fault, look.kinds, look.width, look.height, look.size) == (
        "",
        (),
        32,
        32,
        video.stat().st_size,
    )


def test_a_frame_goes_by_what_its_video_holds_and_by_its_part(tmp_path: Path) -> None:
    video, other = film(tmp_path / "a.mp4"), film(tmp_path / "b.mp4", TONES[1:])
    copy = tmp_path / "c.mp4"
    copy.write_bytes(video.read_bytes())

    one, two = frames(video, 2)
    assert content_key(one) == content_key(frames(copy, 2)[0])
    keys = [content_key(image) for image in (one, two, frames(video, 3)[0], frames(other, 2)[0], video)]
    assert len({*keys}) == 5
    assert image_key(one) != image_key(two)
    before = image_key(one)
    video.write_bytes(other.read_bytes())
    assert image_key(one) != before
    paths = [str(image) for image in (*frames(copy, 2), *frames(video, 2), *frames(other, 2))]
    groups = equal_files(paths, looks(paths))
    assert groups.keys() == {*paths[2:]}
    assert groups[paths[2]] == groups[paths[4]] != groups[paths[3]] == groups[paths[5]]


def test_a_frame_that_is_kept_for_rehearsal_is_the_same_frame(tmp_path: Path) -> None:
    first, *more = frames(film(tmp_path / "a.mp4"), 3)

    kept = unpack_sample(pack_sample(Sample("1", first, "Who?", "me", more_images=tuple(more))))

    assert kept.images == (first, *more)
    assert [tone(open_image(image)) for image in kept.images] == [TONES[k] for k in (5, 15, 25)]


def test_a_video_is_turned_as_its_header_says_where_it_is_read_faithfully(tmp_path: Path) -> None:
    """Red above and blue below as it is stored; turned clockwise by a right angle red is on the right."""
    picture = Image.new("RGB", (32, 32), "red")
    picture.paste("blue", (0, 16, 32, 32))
    video = film(tmp_path / "a.mp4", [picture] * 4)
    content = bytearray(video.read_bytes())
    matrix = content.index(b"tkhd") + 4 + 40  # version and flags, times, ids, layer and volume
    content[matrix : matrix + 36] = struct.pack(">9i", 0, 1 << 16, 0, -(1 << 16), 0, 0, 32 << 16, 0, 1 << 30)
    video.write_bytes(content)

    (name,) = frames(video, 1)
    stored, turned = np.asarray(open_image(name)), np.asarray(open_image(Faithful(name)))
    assert stored[4, 16, 0] > 200 > 50 > stored[28, 16, 0]
    assert turned[16, 28, 0] > 200 > 50 > turned[16, 4, 0]
    assert looks([str(name)])[0].kinds == ("turned",)
    assert content_key(name) != content_key(Faithful(name))


def sound(file: Path) -> None:
    with av().open(str(file), "w") as out:
        stream = out.add_stream("aac", rate=16000)
        silence = av().AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        silence.rate = 16000
        for packet in (*stream.encode(silence), *stream.encode(None)):
            out.mux(packet)


def header_first(file: Path) -> bytes:
    """A video as it is written for the web; a fifth is cut off its end."""
    film(file, [Image.effect_noise((32, 32), 90).convert("RGB") for _ in range(30)], header_first=True)
    return file.read_bytes()[: file.stat().st_size * 4 // 5]


FAULTS = {
    "sound": ("no image", "holds no pictures, only sound or text"),
    "text": ("unreadable", "cannot be read as a video: invalid data found when processing input"),
    "no header": ("unreadable", "cannot be read as a video: invalid data found when processing input"),
    "cut": ("truncated", "is truncated: it has "),
}


def damaged(file: Path, how: str) -> Path:
    if how == "sound":
        sound(file)
    else:
        content = {
            "text": lambda: b"What is it?" * 20,
            "no header": lambda: film(file).read_bytes()[: file.stat().st_size // 2],
            "cut": lambda: header_first(file),
        }
        file.write_bytes(content[how]())
    return file


@pytest.mark.parametrize("how", FAULTS)
def test_a_video_that_is_damaged_is_one_fault_for_a_look_and_for_who_opens_it(
    tmp_path: Path, how: str
) -> None:
    video = damaged(tmp_path / "a.mp4", how)
    fault, words = FAULTS[how]

    names = frames(video, 2)
    for look in looks([str(one) for one in names]):
        assert look.fault == fault
        assert look.words.startswith(words)
    with pytest.raises(DataError) as caught:
        open_image(names[0])
    assert str(caught.value).startswith(f"video {video}: {words}")
    assert str(caught.value).endswith("; check the data folder")


def test_damage_behind_the_first_frame_is_found_where_it_is_decoded(tmp_path: Path) -> None:
    video = tmp_path / "a.mp4"
    film(video, codec="libx264", header_first=True)
    content = bytearray(video.read_bytes())
    content[-200:] = bytes(200)
    video.write_bytes(content)

    paths = [str(one) for one in frames(video, 8)]
    assert not any(look.fault for look in looks(paths))
    assert [look.fault for look in looks(paths, decode=True)][-1] == "unreadable"
    with pytest.raises(DataError, match=r"video .*a\.mp4: .*; check the data folder"):
        open_image(Path(paths[-1]))


def test_a_video_that_is_not_there_or_empty_is_named_as_such(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").touch()

    faults = {name: looks([str(frames(tmp_path / name)[0])])[0].fault for name in ("a.mp4", "b.mp4")}
    assert faults == {"a.mp4": "empty", "b.mp4": "missing"}
    with pytest.raises(DataError, match=r"video .*b\.mp4: no such file"):
        open_image(frames(tmp_path / "b.mp4")[0])
    with pytest.raises(DataError, match=r"video .*: is a folder; name the file of a picture"):
        open_image(frames(tmp_path)[0])


def test_without_its_package_a_video_is_refused_with_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.mp4").write_bytes(b"some video")
    monkeypatch.setitem(sys.modules, "av", None)
    says = r"video .*a\.mp4: reading a video takes the package av; pip install 'cl-zoo\[video\]'"

    with pytest.raises(DataError, match=says):
        open_image(frames(tmp_path / "a.mp4")[0])
    with pytest.raises(DataError, match=says):
        looks([str(frames(tmp_path / "a.mp4")[0])])


def test_a_video_that_was_cut_without_encoding_is_whole_and_has_the_frames_that_are_shown(
    tmp_path: Path,
) -> None:
    """Thirty frames from the sixth on, behind the key frame before it: the parts are of the twenty-five that are shown."""
    whole = film(tmp_path / "whole.mp4", codec="libx264", bf="0")
    shown = cut(whole, tmp_path / "cut.mp4", 5)

    assert [tone(open_image(one)) for one in frames(shown, 5)] == [
        TONES[5 + place] for place in (2, 7, 12, 17, 22)
    ]
