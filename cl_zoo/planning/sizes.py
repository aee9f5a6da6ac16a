"""How many parameters a method trains, keeps and uses on a model of published size: exact, without weights or data.

The model stands on torch's meta device, where tensors have shapes and no values. The method's own hooks place what it
trains there, task after task, with no batches; what is counted is what a run's ledger counts.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cl_zoo.backbones.backbone import Backbone
from cl_zoo.backbones.checkpoints import FAMILIES, family_of
from cl_zoo.backbones.internvl import InternVL
from cl_zoo.backbones.llava import Llava
from cl_zoo.backbones.qwen import Qwen
from cl_zoo.contract.plugins import Plugins
from cl_zoo.engine.learning import assign_parts
from cl_zoo.engine.ledger import active, stored
from cl_zoo.engine.run import placed
from cl_zoo.errors import BackboneError, ClZooError, PluginError, PluginFault, first_line, nearest
from cl_zoo.names import Choice
from cl_zoo.nn.budget import Learning, budget, learning
from cl_zoo.nn.still import standing_still
from cl_zoo.recipe.budget import beside_projector, budget_notes
from cl_zoo.recipe.recipe import Recipe
from cl_zoo.report.sheets import NOTES, UNKNOWN, Entry, Line, Section, Sheet, as_text
from cl_zoo.tasks import Task

PUBLISHED = Path(__file__).parent / "published"
"""Configurations of models as their authors published them, one JSON file each."""

CLASSES: dict[str, type[Backbone]] = {one.model_type: one for one in (Llava, InternVL, Qwen)}
"""Families by the `model_type` of their configurations."""


class Widths:
    """Stands where a feature encoder would: it knows how wide features are and can compute none.

    Attributes:
        width: of image and text features in CLIP's joint space.
        text_width: of the text tower's states before the projection.
    """

    def __init__(self, width: int, text_width: int) -> None:
        self.width, self.text_width = width, text_width


@dataclass(frozen=True)
class Size:
    """Parameters after learning one more task, by part.

    Attributes:
        budget: what may train in one task by the recipe's rank, without the projector.
        learning: what learns in an adapted layer in this task.
        trained: in this task.
        inference, continuing: kept beside the frozen backbone, for answering and for learning on.
        active: of those for answering, what takes part in one answer token.
    """

    trained: Mapping[str, int]
    inference: Mapping[str, int]
    continuing: Mapping[str, int]
    active: Mapping[str, int]
    budget: int = 1
    learning: Learning = field(default_factory=Learning)

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader has to know of its budget."""
        return budget_notes(self.trained, self.budget, asdict(self.learning)) if self.trained else ()

    @property
    def times(self) -> float:
        """What trains besides the projector, in units of the budget."""
        return beside_projector(self.trained) / self.budget

    def to_json(self) -> dict[str, Any]:
        sizes = asdict(self)
        return {
            "trained": {**sizes["trained"], "total": sum(self.trained.values())},
            "stored": {
                use: {**sizes[use], "total": sum(sizes[use].values())} for use in ("inference", "continuing")
            },
            "active": {**sizes["active"], "total": sum(self.active.values())},
            "learning": {**sizes["learning"], "budget": self.budget, "times": self.times},
        }


def published() -> list[str]:
    """Names of the models whose configuration lies in the package."""
    return sorted(file.stem for file in PUBLISHED.glob("*.json"))


def shapes(name: str) -> Backbone:
    """A backbone without values: a published model by name, or a checkpoint folder with a `config.json`.

    Args:
        name: of a published configuration, a folder, or `BACKBONE:FOLDER`.

    Raises:
        BackboneError: none of them, or the configuration cannot be used.
    """
    import transformers

    label, _, path = name.partition(":")
    folder = Path(path if path and label in (*FAMILIES.values(), *published()) else name)
    try:
        if (folder / "config.json").is_file():
            family_of(folder)  # says by itself what is wrong
            config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
            widths = Widths(
                768, 768
            )  # of ViT-L/14, the encoder of the papers and of LLaVA's own vision tower
        elif name in published():
            content = json.loads((PUBLISHED / f"{name}.json").read_text(encoding="utf-8"))
            config = transformers.AutoConfig.for_model(**content["model"])
            widths = Widths(content["features"]["width"], content["features"]["text_width"])
        else:
            raise BackboneError(
                f"no published configuration is called {name!r}{nearest(name, published())}; or pass a folder with a config.json"
            )
        family = CLASSES[config.model_type]
        with torch.device("meta"):
            model = getattr(transformers, family.model_class)(config)
    except ClZooError:
        raise
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise BackboneError(
            f"backbone {name}: {first_line(error)}; pass the folder of a checkpoint of one of {', '.join(sorted(CLASSES))}"
        ) from None
    backbone = family(name, model, None, None)
    vars(backbone)["features"] = widths
    return backbone


NOT_COUNTED = (NotImplementedError, RuntimeError, TypeError, AttributeError)
"""What is raised where a tensor without values is read, or data that are not there."""

COUNTED = "its hooks must size their tensors without values and data to be counted"


def sizes(choices: Sequence[Choice], backbone: Backbone, recipe: Recipe, tasks: int) -> list[Size]:
    """Sizes of a stack after 1, 2, … `tasks` tasks; one entry where the stack learns everything at once or nothing.

    Raises:
        PluginError: a hook needs values or data to size its tensors.
    """
    plugins = Plugins(choices, recipe.options)
    try:
        return list(_sizes(plugins, backbone, recipe, tasks))
    except PluginFault as fault:
        if not isinstance(fault.__cause__, NOT_COUNTED):
            raise
        raise PluginFault(fault.what, COUNTED, fault.where, fault.packages) from fault.__cause__
    except ClZooError:
        raise  # says by itself what is wrong
    except NOT_COUNTED as error:
        raise PluginError(
            f"{'+'.join(choice.name for choice in choices)}: {first_line(error)}; {COUNTED}"
        ) from error


def _sizes(plugins: Plugins, backbone: Backbone, recipe: Recipe, tasks: int) -> Iterator[Size]:
    """The sizes, task after task, as a run would go through the hooks."""
    may_train = budget(backbone, recipe)
    model, meta = placed(plugins, backbone, recipe), backbone.device
    if plugins.protocol == "none":
        yield replace(_size(model, plugins, backbone, [], {}), budget=may_train)
        return
    seen: list[Task] = []
    for index in range(tasks if plugins.protocol == "sequential" else 1):
        task = Task(index, f"task {index}", "", 0)
        seen.append(task)
        plugins.before_task(model, task)
        parts = assign_parts(model.to(meta), plugins, backbone)
        trained, learns = _trained(model, parts), learning(model)
        plugins.after_task(model, task, (), parts=parts, backbone=backbone)
        size = _size(model.to(meta), plugins, backbone, seen, trained)
        yield replace(size, budget=may_train, learning=learns)


def side_by_side(found: Mapping[str, Sequence[Size]]) -> str:
    """Several methods as plain text, a line each: what learns in a task, against the budget, and what is kept after the last one."""
    columns = ("Experts", "Rank", "Update rank", "Trained", "× budget", "Stored", "Active", NOTES)
    lines = []
    for name, counted in found.items():
        last = counted[-1]
        shape = [str(value) if value else UNKNOWN for value in asdict(last.learning).values()]
        times = f"{last.times:.2f}" if last.trained else UNKNOWN
        trained, kept, used = (sum(of.values()) for of in (last.trained, last.inference, last.active))
        notes = "; ".join(last.notes)
        cells = (*shape, f"{trained:,}", times, f"{kept:,}", f"{used:,}", notes)
        lines.append(Line(name, tuple(map(Entry, cells))))
    return as_text(Sheet(columns, (Section("", tuple(lines)),)))


def as_sheet(found: Sequence[Size]) -> str:
    """The sizes as plain text: a line per part and use, a column per number of tasks learnt; what learns in a layer stands above, notes below."""
    sections = [_learning_of(found)]
    for title in ("trained", "inference", "continuing", "active"):
        counts: list[Mapping[str, int]] = [getattr(size, title) for size in found]
        parts = list(dict.fromkeys(part for count in counts for part in count))
        lines = [
            Line(part, tuple(Entry(f"{count[part]:,}" if part in count else UNKNOWN) for count in counts))
            for part in parts
        ]
        lines.append(Line("total", tuple(Entry(f"{sum(count.values()):,}") for count in counts)))
        name = {"inference": "stored for inference", "continuing": "stored for continuing"}.get(title, title)
        sections.append(Section(name, tuple(lines)))
    columns = tuple(f"{n + 1} tasks" if n else "1 task" for n in range(len(found)))
    return as_text(Sheet(columns, tuple(sections))) + "".join(f"{note}\n" for note in found[-1].notes)


def _learning_of(found: Sequence[Size]) -> Section:
    """Experts, ranks and the share of the budget, by number of tasks learnt."""
    shapes_of = [asdict(size.learning) for size in found]
    names = {"experts": "experts", "rank": "rank of each", "update_rank": "update rank"}
    lines = [
        Line(title, tuple(Entry(str(one[key]) if one[key] else UNKNOWN) for one in shapes_of))
        for key, title in names.items()
    ]
    times = tuple(Entry(f"{size.times:.2f}" if size.trained else UNKNOWN) for size in found)
    return Section("learning in one task", (*lines, Line("trained × budget", times)))


def _trained(model: nn.Module, parts: Mapping[str, Sequence[str]]) -> dict[str, int]:
    weights = dict(model.named_parameters())
    counted = {
        part: sum(weights[name].numel() for name in names if weights[name].requires_grad)
        for part, names in parts.items()
    }
    return {part: size for part, size in counted.items() if size}


def _size(
    model: nn.Module, plugins: Plugins, backbone: Backbone, seen: Sequence[Task], trained: dict[str, int]
) -> Size:
    with standing_still(model):
        answering = plugins.build_inference_model(model, seen)
        parts = assign_parts(model, plugins, backbone)
        kept = stored(model, answering, backbone, parts, plugins.state_dict(probes=False))
        return Size(trained, kept["inference"], kept["continuing"], active(answering, kept["inference"]))
