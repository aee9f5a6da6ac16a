"""All generated pages, and those that are written elsewhere in the repository and belong to the site too."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

from cl_zoo_docs import cards, commands, names, recipes, systems

ROOT = Path(__file__).parents[2]

TAKEN = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "benchmarks/README.md": "results.md",
}
"""Files outside of `docs/` that are pages of the site, with the page that each becomes."""


def pages(tasks: int = cards.TASKS) -> dict[str, str]:
    """Markdown by the path of the page in the site.

    Args:
        tasks: length of the stream on which the cards count parameters.
    """
    return {
        **{page: linked(file, (ROOT / file).read_text(encoding="utf-8")) for file, page in TAKEN.items()},
        **cards.pages(tasks),
        "options.md": recipes.page(),
        "commands.md": commands.page(),
        "api.md": names.page(),
        "systems.md": systems.page(),
    }


def linked(file: str, markdown: str) -> str:
    """The text of a file of the repository with its links as the site has them; a link to what is no page is its text alone."""

    def place(found: re.Match[str]) -> str:
        words, target, anchor = found.groups(default="")
        path = posixpath.normpath(posixpath.join(posixpath.dirname(file), target))
        page = TAKEN.get(path, path.removeprefix("docs/") if path.startswith("docs/") else None)
        if page is None:
            return words
        here = posixpath.dirname(TAKEN.get(file, file.removeprefix("docs/")))
        return f"[{words}]({posixpath.relpath(page, here or '.')}{anchor})"

    return re.sub(r"\[([^\]]+)\]\((?!https?:|#|mailto:)([^)#\s]+)(#[^)\s]*)?\)", place, markdown)
