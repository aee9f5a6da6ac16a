"""The report of a check as one HTML page, with thumbnails of the pictures that may become others as RGB.

The page needs no other file and no network: thumbnails stand in it as data. Names and texts come from data and are escaped.
"""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Iterator
from html import escape
from pathlib import Path

from PIL import Image

from cl_zoo.images.frames import read_frame
from cl_zoo.images.kinds import FAITHFUL, KINDS, as_rgb
from cl_zoo.inspection.findings import FILES, Finding, Report
from cl_zoo.videos import file_of, frame_of

SIDE = 128
"""Pixels of a thumbnail's longer side."""
STYLE = "body{font:15px sans-serif;margin:2em}figure{display:inline-block;margin:.5em;vertical-align:top}figcaption{width:264px;overflow-wrap:anywhere;font-size:12px}img{background:#ccc;margin-right:4px}li.fault{color:#a00}"


def page(report: Report) -> str:
    """The whole page."""
    title = escape(f"{report.benchmark} {report.version}: data check")
    faults = [one for one in report.findings if one.fault]
    remarks = [one for one in report.findings if not one.fault]
    parts = [
        f"<!doctype html><html lang='en'><meta charset='utf-8'><title>{title}</title><style>{STYLE}</style><h1>{title}</h1>",
        f"<p>{escape(report.lines()[-1])}</p>",
        *_listed("Faults", faults),
        *_listed("Worth knowing", remarks),
        *_pictures(report),
        "</html>",
    ]
    return "\n".join(parts) + "\n"


def _listed(title: str, findings: list[Finding]) -> Iterator[str]:
    if findings:
        kind = "fault" if findings[0].fault else "remark"
        items = "".join(f"<li class='{kind}'>{escape(one.sentence)}</li>" for one in findings)
        yield f"<h2>{title}</h2><ul>{items}</ul>"


def _pictures(report: Report) -> Iterator[str]:
    """A row for each kind: what official pipelines see of its first files, and beside it what a person sees."""
    for kind, files in report.pictures.items():
        yield f"<h2>{escape(kind)}: {len(files):,}</h2><p>{escape(KINDS[kind])}</p>"
        if kind != "huge":  # decoding those would take long
            yield from (_figure(file, kind) for file in files[:FILES])


def _figure(file: str, kind: str) -> str:
    ways = (False, True) if kind in FAITHFUL else (False,)
    if not os.path.isfile(file_of(Path(file))):
        return f"<figure>stands inside a dataset<figcaption>{escape(file)}</figcaption></figure>"
    try:
        shown = "".join(_thumbnail(file, faithful) for faithful in ways)
    except Exception as error:  # Pillow's readers raise whatever a broken file leads them to
        shown = escape(f"cannot be shown: {' '.join(str(error).split())}")
    return f"<figure>{shown}<figcaption>{escape(file)}</figcaption></figure>"


def _thumbnail(file: str, faithful: bool) -> str:
    frame = frame_of(Path(file))
    if frame is not None:
        small = read_frame(frame, turned=faithful)
    else:
        with Image.open(Path(file)) as image:
            small = as_rgb(image, faithful=faithful)
    small.thumbnail((SIDE, SIDE))
    held = io.BytesIO()
    small.save(held, "PNG")
    way = "faithful" if faithful else "official"
    return f"<img alt='{way}' title='{way}' src='data:image/png;base64,{base64.b64encode(held.getvalue()).decode()}'>"
