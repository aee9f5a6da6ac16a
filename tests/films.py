"""Short videos that tests write: frames of one tone each, so that a frame says which one it is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

TONES = tuple(range(10, 250, 8))
"""Grey values of thirty frames, further apart than a codec moves them."""


def av() -> Any:
    return pytest.importorskip("av", reason="writing and reading a video takes the package av")


def film(
    file: Path,
    pictures: Sequence[int | Image.Image] = TONES,
    codec: str = "mpeg4",
    size: int = 32,
    header_first: bool = False,
    **options: str,
) -> Path:
    """Write a video of ten frames a second, a grey value or a picture each; a key frame comes every twelve."""
    with av().open(str(file), "w", options={"movflags": "+faststart"} if header_first else {}) as out:
        stream = out.add_stream(codec, rate=10, options=options)
        stream.width, stream.height, stream.pix_fmt, stream.gop_size = size, size, "yuv420p", 12
        stream.bit_rate = 2_000_000
        for one in pictures:
            picture = Image.new("RGB", (size, size), (one,) * 3) if isinstance(one, int) else one
            for packet in stream.encode(av().VideoFrame.from_ndarray(np.asarray(picture), format="rgb24")):
                out.mux(packet)
        for packet in stream.encode(None):
            out.mux(packet)
    return file


def cut(film: Path, file: Path, first: int) -> Path:
    """The film from a frame on, copied without encoding anew: what comes before is in the file and hidden by its edit list."""
    with av().open(str(film)) as old, av().open(str(file), "w") as out:
        (stream,) = old.streams.video
        copied = out.add_stream_from_template(stream)
        shift = round(first / (stream.average_rate * stream.time_base))
        for packet in old.demux(stream):
            if packet.dts is not None:
                packet.pts, packet.dts, packet.stream = packet.pts - shift, packet.dts - shift, copied
                out.mux(packet)
    return file


def tone(image: Image.Image) -> int:
    """The grey value of a frame, as it was written."""
    return min(TONES, key=lambda one: abs(one - float(np.asarray(image).mean())))
