"""Models of published size without weights, and what methods train, keep and use on them as tables (`cl_zoo.engine.sizes` counts)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from cl_zoo.backbones.backbone import Backbone
from cl_zoo.backbones.checkpoints import ALSO, FAMILIES, family_of
from cl_zoo.backbones.internvl import InternVL
from cl_zoo.backbones.llava import Llava
from cl_zoo.backbones.llava_next import LlavaNext
from cl_zoo.backbones.llava_onevision import LlavaOnevision
from cl_zoo.backbones.qwen import Qwen
from cl_zoo.backbones.qwen3 import Qwen3
from cl_zoo.backbones.smolvlm import SmolVLM
from cl_zoo.engine.sizes import Size
from cl_zoo.errors import BackboneError, ClZooError, first_line, nearest
from cl_zoo.report.sheets import NOTES, UNKNOWN, Entry, Line, Section, Sheet, as_text

PUBLISHED = Path(__file__).parent / "published"
"""Configurations of models as their authors published them, one JSON file each."""

CLASSES: dict[str, type[Backbone]] = {
    one.model_type: one for one in (Llava, LlavaNext, LlavaOnevision, InternVL, Qwen, Qwen3, SmolVLM)
}
"""Families by the `model_type` of their configurations."""


class Widths:
    """Stands where a feature encoder would: it knows how wide features are and can compute none.

    Attributes:
        width: of image and text features in CLIP's joint space.
        text_width: of the text tower's states before the projection.
    """

    def __init__(self, width: int, text_width: int) -> None:
        self.width, self.text_width = width, text_width


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
    folder = Path(path if path and label in (*FAMILIES.values(), *ALSO, *published()) else name)
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
