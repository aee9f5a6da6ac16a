"""A published table as a job: which methods it takes, with which recipe, what is missing here, and what it will cost."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cl_zoo.backbones.checkpoints import HUB, backbone_parts, in_cache
from cl_zoo.data.benchmarks import Described, benchmark_loader, files_of, resolved
from cl_zoo.errors import ClZooError, OptionError, nearest
from cl_zoo.names import BACKBONES, installed, split, stack
from cl_zoo.planning.forecast import outlook
from cl_zoo.published import Publication, published, read_published
from cl_zoo.recipe.keys import read_recipe
from cl_zoo.recipe.suite import read_suite


@dataclass(frozen=True)
class Target:
    """A published table and how it is made here.

    Attributes:
        name: of the publication, or the path of its file.
        methods: labels of what is run.
    """

    name: str
    paper: Publication
    methods: tuple[str, ...]

    @property
    def groups(self) -> list[tuple[list[str], dict[str, Any]]]:
        """Methods that share a recipe, and its values by dotted key."""
        setting = self.paper.setting
        if setting is None:  # `read_target` has refused it
            return []
        if setting.recipe:
            return [(list(self.methods), {**read_recipe(setting.recipe), **setting.values})]
        suite = read_suite(setting.suite)
        return [([one], {**suite.of(one), **setting.values}) for one in self.methods]

    def about(self) -> str:
        """What will be run, a line each."""
        setting = self.paper.setting
        if setting is None:
            return ""
        backbone, orders = self.paper.backbone, ", ".join(self.paper.orders)
        lines = [
            f"{self.name}: {self.paper.about}",
            f"  from    {self.paper.cited()}",
            f"  tasks   {self.paper.benchmark} in the order {orders}, answered with {backbone}",
            f"  recipe  {setting.recipe or setting.suite}, {setting.source}",
            f"  methods {', '.join(self.methods)}",
            *(f"  unlike  {one}" for one in (*setting.unlike, *self.paper.caveats)),
        ]
        return "\n".join(lines) + "\n"


def read_target(name: str, methods: str | None = None) -> Target:
    """A publication as something to be run.

    Args:
        methods: some of its methods, comma-separated; default: all that are here.

    Raises:
        OptionError: there is no such publication, it cannot be set up here, or it has no such method.
    """
    paper = read_published(name)
    if why := _unset(paper):
        raise OptionError(f"{name}: cannot be run here: {why}; one of {', '.join(settable())} can")
    chosen = [one.strip() for one in split(methods, ",") if one.strip()] if methods else list(paper.labels)
    for one in chosen:
        if one not in paper.labels:
            raise OptionError(f"{name}: has no row of {one}{nearest(one, paper.labels)}")
    return Target(name, paper, tuple(chosen))


def settable() -> list[str]:
    """The publications that can be run."""
    return [name for name in published() if not _unset(read_published(name))]


def targets() -> str:
    """The publications that can be run, a line each, and why others cannot."""
    lines = []
    for name in published():
        paper = read_published(name)
        why = _unset(paper)
        said = f"cannot be run here: {why}" if why else ", ".join(paper.labels)
        lines.append(f"{name:<20} {paper.benchmark:<6} {said}")
    return "\n".join(lines) + "\n"


def lacking(target: Target, data: str | None, backbone: str | None) -> list[str]:
    """What has to be there before it can be run and is not, a sentence each: data, weights."""
    return [*_data(target.paper.benchmark, data), *_weights(backbone or target.paper.backbone)]


def costs(
    target: Target, *, seeds: int, gpu: str, gpus: int, width: int | None = None, **look: Any
) -> tuple[str, list[dict[str, Any]]]:
    """What it takes, forecast on published shapes: as text and as values.

    Args:
        look: `data`, `limit` and `cells`, as `forecast` takes them.

    Raises:
        ClZooError: anything is unknown, out of range or does not go together.
    """
    texts, values = [], []
    for methods, recipe in target.groups:
        planner, _, assumed = outlook.plan(
            target.paper.benchmark,
            target.paper.backbone,
            recipe,
            order=target.paper.orders[0],
            gpu=gpu,
            **look,
        )
        found = [planner.forecast(stack(one, (), (), {}, strict=False)) for one in methods]
        about: dict[str, Any] = {"seeds": seeds, "gpus": gpus, "assumed": assumed}
        texts.append(outlook.text(found, planner, width=width, **about))
        values.append(outlook.to_json(found, planner, **about))
    if len(target.paper.orders) > 1:
        texts.append(f"this for each of {len(target.paper.orders)} orders")
    return "\n\n".join(texts), values


def _unset(paper: Publication) -> str:
    """Why a publication cannot be run; empty where it can."""
    if paper.backbone not in {one.name for one in installed(BACKBONES)}:
        return f"there is no backbone here that is its {paper.backbone}"
    if not paper.labels:
        return "none of its methods is here"
    return "" if paper.setting else "how it was trained is not known"


def _data(benchmark: str, data: str | None) -> Iterator[str]:
    loader = benchmark_loader(benchmark)
    if not isinstance(loader, Described):
        return
    try:
        bases = loader.bases(Path(data) if data else None)
    except ClZooError as error:
        yield f"data: {error}"
        return
    wanted = [
        source
        for _, what, source in files_of(loader.description)
        if not (what == "references" and source.optional)
    ]
    gone = [source for source in wanted if resolved(bases, source.files) is None]
    if gone:
        first = gone[0].files[0]
        yield (
            f"data: {len(gone)} of {len(wanted)} files of {benchmark} are not in {bases[0]}, {first} the first; "
            f"'cl-zoo data fetch {benchmark} --data {bases[0]}' gets what the hub holds"
        )


def _weights(backbone: str) -> Iterator[str]:
    try:
        name, folder = backbone_parts(backbone)
    except ClZooError as error:
        yield f"weights: {error}"
        return
    if folder is None and name in HUB:
        kept, why = in_cache(HUB[name])
        if kept is None:
            yield f"weights: {HUB[name]} {why}; run `hf download {HUB[name]}`, or pass --backbone {name}:FOLDER"
    elif folder is not None and not folder.is_dir():
        yield f"weights: {folder}: no such folder; pass the folder of {name} with --backbone {name}:FOLDER"
