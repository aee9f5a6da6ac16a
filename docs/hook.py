"""The hook of mkdocs: adds the generated pages to the site that it builds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cl_zoo_docs import cards, pages
from mkdocs.structure.files import File, Files

CARDS = "methods/"


def on_files(files: Files, config: Any) -> Files:
    """Add every generated page, and its place in the navigation where pages are many."""
    made = pages.pages()
    for path, content in made.items():
        files.append(File.generated(config, path, content=content))
    first = [f"{CARDS}index.md", {"held against": cards.HELD}]
    methods = [path for path in made if path.startswith(CARDS) and path not in (first[0], cards.HELD)]
    for entry in config.nav:
        if CARDS in entry.values():
            (title,) = entry
            entry[title] = [*first, *({Path(path).stem: path} for path in sorted(methods))]
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Links of a page to files beside `docs/` go where those stand in the site."""
    if page.file.src_uri in pages.TAKEN.values() or page.file.generated_by:
        return markdown
    return pages.linked(f"docs/{page.file.src_uri}", markdown)
