"""What an analysis found: a sentence, tidy rows and a figure, the same for all of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from cl_zoo.errors import OptionError
from cl_zoo.report.figures import FORMATS, save

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Outcome:
    """What an analysis found.

    Attributes:
        name: of the analysis: `forgetting`.
        sentence: one or two plain sentences that say it with its figures.
        rows: tidy rows, all that was measured; their keys are the columns.
        draw: draws the figure and returns its axes; called when a figure is asked for.
        text: what a terminal shows below the sentence, a table for instance; may be empty.
    """

    name: str
    sentence: str
    rows: Sequence[Mapping[str, Any]]
    draw: Callable[[], Axes]
    text: str = ""

    def figure(self) -> Figure:
        """The figure, drawn anew."""
        drawn: Any = self.draw().figure
        return cast("Figure", drawn)

    def to_json(self) -> dict[str, Any]:
        """Name, sentence and rows."""
        return {"analysis": self.name, "sentence": self.sentence, "rows": [dict(row) for row in self.rows]}

    def write_figure(self, file: Path) -> None:
        """Write the figure, as PNG or SVG by the ending of the file.

        Raises:
            OptionError: it ends otherwise.
        """
        check_figure(file)
        save(self.draw(), file)


def check_figure(file: Path) -> None:
    """Whether a figure can be written under this name.

    Raises:
        OptionError: it ends neither in `.png` nor in `.svg`.
    """
    if file.suffix.removeprefix(".") not in FORMATS:
        raise OptionError(
            f"{file}: a figure is written as {' or '.join(FORMATS)}; end the name in one of them"
        )
