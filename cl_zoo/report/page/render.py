"""The page as one file: a template in which everything that comes from runs is escaped, with its style and script inside."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources

from cl_zoo._version import __version__
from cl_zoo.report.page.content import Told
from cl_zoo.report.page.view import section


def render(told: Sequence[Told], left_out: Sequence[str] = ()) -> str:
    """The whole page.

    Args:
        told: the comparisons.
        left_out: sentences about runs that are in none.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    # Autoescaping is on for every template: only the two files below, which are this package's own, are taken as they are.
    environment = Environment(
        loader=PackageLoader("cl_zoo.report.page", "template"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    folder = resources.files("cl_zoo.report.page") / "template"
    own = {name: Markup((folder / name).read_text(encoding="utf-8")) for name in ("style.css", "script.js")}
    sections = [section(one, number) for number, one in enumerate(told, start=1)]
    return environment.get_template("page.html").render(
        sections=sections,
        style=own["style.css"],
        script=own["script.js"],
        left_out=left_out,
        version=__version__,
        finished=max((run["finished"] for one in sections for run in one["runs"]), default=""),
    )
