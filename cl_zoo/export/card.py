"""The model card of an exported run: what it was made from, how it scored, and the lines that load it."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from huggingface_hub import ModelCardData, metadata_load

from cl_zoo.nn.fourbit import quantized
from cl_zoo.scoring.matrix import Matrix

if TYPE_CHECKING:
    from cl_zoo.backbones.backbone import Backbone
    from cl_zoo.runs.restore import Restored

CACHED = re.compile(r"models--([^/]+?)--([^/]+)/snapshots/")
"""Where huggingface_hub keeps the files of a model."""

PARENTS = re.compile(r"(?<![\w./:~])/(?:[^\s/+,=\[\]`|]+/)+(?=[^\s/+,=\[\]`|])")
"""The folders of an absolute path: those of the machine that made a run are nobody's business and are not there elsewhere."""


@dataclass(frozen=True)
class Base:
    """The model that was adapted.

    Attributes:
        place: what `from_pretrained` takes: a folder or an id of the hub.
        hub: id on the hub, where it is known.
        licence: as its own card names it, where it has one.
        model_class: name of its class in transformers.
        dtype: name of the type in which it answered.
        whole: modules whose linears were not held in 4 bits; none where no linears were.
    """

    place: str
    hub: str | None
    licence: str | None
    model_class: str
    dtype: str
    whole: tuple[str, ...] = ()

    @classmethod
    def of(cls, model: Any, whole: tuple[str, ...] = ()) -> Base:
        place = str(model.name_or_path)
        cached = CACHED.search(place)
        hub = f"{cached[1]}/{cached[2]}" if cached else None if Path(place).is_dir() else place or None
        dtype = str(model.dtype).removeprefix("torch.")
        if hub is None and Path(place).is_dir():
            place = str(Path(place).resolve())  # the adapter is read from another folder
        return cls(hub or place, hub, _licence(Path(place)), type(model).__name__, dtype, whole)

    @classmethod
    def behind(cls, backbone: Backbone) -> Base:
        """The model of a backbone, in the bits in which the backbone holds it."""
        parts = (backbone.tower_at, backbone.projector_at, "lm_head")
        packed = quantized(backbone.model)
        return cls.of(backbone.model, tuple(map(backbone.hub_name, parts)) if packed else ())

    @property
    def named(self) -> str:
        """The id of the hub, or the name of the folder: where it lies here is nobody's business, and it lies elsewhere there."""
        return self.hub or Path(self.place).name

    @property
    def line(self) -> str:
        """The line of Python that says what `from_pretrained` takes."""
        where = "" if self.hub else "  # a folder: give the path where it lies on your machine"
        return f"BASE = {json.dumps(self.named)}{where}"

    @property
    def loading(self) -> str:
        """The lines of Python that load it with transformers as it answered, as `model`."""
        classes, lines, more = self.model_class, "", ""
        if self.whole:
            classes, more = f"BitsAndBytesConfig, {classes}", ", quantization_config=bits"
            lines = f"""
bits = BitsAndBytesConfig(
    load_in_4bit=True,
    bnb_4bit_quant_type="nf4",
    bnb_4bit_use_double_quant=True,
    bnb_4bit_compute_dtype=torch.{self.dtype},
    llm_int8_skip_modules={json.dumps(self.whole)},
)"""
        return f"""from transformers import {classes}

{self.line}{lines}
model = {self.model_class}.from_pretrained(BASE, dtype=torch.{self.dtype}{more})"""


def _licence(folder: Path) -> str | None:
    try:
        found = (metadata_load(folder / "README.md") or {}).get("license")
    except (OSError, ValueError, yaml.YAMLError):
        return None
    return str(found) if found else None


def write_card(
    folder: Path, restored: Restored, base: Base, what: str, loading: str, *, library: str
) -> None:
    """Write README.md; the arguments are those of `card`."""
    text = card(restored, base, what, loading, library=library)
    (folder / "README.md").write_text(text, encoding="utf-8")


def card(restored: Restored, base: Base, what: str, loading: str, *, library: str) -> str:
    """The text of README.md.

    Args:
        what: one paragraph on what the folder holds.
        loading: Python lines that load it, run inside the folder.
        library: `peft` or `transformers`.
    """
    manifest = restored.manifest
    names = [PARENTS.sub("", one["name"]) for one in manifest["identity"]["stack"]]
    data = ModelCardData(
        base_model=base.hub,
        library_name=library,
        license=base.licence,
        pipeline_tag="image-text-to-text",
        tags=["cl-zoo", "continual-learning", *(["lora"] if library == "peft" else []), *names],
    )
    parts = [
        f"---\n{data.to_yaml()}\n---",
        f"# {PARENTS.sub('', manifest['label'])} on {', '.join(manifest['tasks'])}",
        what,
        *_papers(restored.plugins.instances.values()),
        "## Lineage",
        _table(("what", "value"), _lineage(manifest, base)),
        "## Scores",
        *_scores(manifest),
        "## How to load",
        f"Inside this folder:\n\n```python\n{loading.strip()}\n```",
        _asking(restored),
        "## Recipe",
        f"```yaml\n{PARENTS.sub('', yaml.safe_dump(manifest['identity']['recipe'], sort_keys=True)).strip()}\n```",
        "## Licence",
        _terms(base),
    ]
    return "\n\n".join(parts) + "\n"


def _papers(plugins: Sequence[Any] | Any) -> list[str]:
    """The first paragraph and the source of every plugin of the stack."""
    found = []
    for plugin in plugins:
        module = inspect.getmodule(type(plugin))
        paragraphs = (inspect.getdoc(module) or "").split("\n\n")[:2]
        if any(paragraphs):
            found.append("\n>\n".join("> " + " ".join(text.split()) for text in paragraphs if text.strip()))
    return found


def _lineage(manifest: Mapping[str, Any], base: Base) -> list[tuple[str, str]]:
    identity, environment = manifest["identity"], manifest.get("environment", {})
    benchmark, backbone = identity["benchmark"], identity["backbone"]
    rows = [
        ("base model", f"`{base.named}` ({base.model_class}), hash of its files {backbone['revision']}"),
        ("prompt template", f"`{backbone['template']}`"),
        ("image aspect", backbone["image_aspect"]),
    ]
    for plugin in identity["stack"]:
        chosen = ", ".join(f"{key}={value}" for key, value in sorted(plugin["options"].items()))
        rows.append((PARENTS.sub("", f"plugin {plugin['name']}"), PARENTS.sub("", chosen) or "no options"))
    # A run from before each task had a hash has one of the benchmark.
    learnt = [one["learnt"] for one in identity["chain"]] if "chain" in identity else [benchmark["data"]]
    data = ", ".join(dict.fromkeys(learnt))
    limit = f", {benchmark['limit']} samples per split" if benchmark["limit"] is not None else ""
    return [
        *rows,
        ("benchmark", f"{benchmark['name']} {benchmark['version']}, data {data}{limit}"),
        ("order", ", ".join(benchmark["order"])),
        ("seed", str(manifest["seed"])),
        ("run", manifest["id"]),
        ("cl_zoo", f"{identity['version']}, commit {environment.get('commit') or 'unknown'}"),
    ]


def _scores(manifest: Mapping[str, Any]) -> list[str]:
    matrix = Matrix.from_json(manifest["matrix"])
    rows = zip(manifest["tasks"], manifest["metrics"], map(_number, matrix.last_i), strict=True)
    figures = (
        f"Last {_number(matrix.last)}, BWT {_number(matrix.bwt)} (official scores, after the last task)."
    )
    return [_table(("task", "metric", "score"), list(rows)), figures]


def _asking(restored: Restored) -> str:
    wanted = restored.manifest["identity"]["backbone"]
    return (
        f"A prompt is question and instruction, separated by a newline, inside the template `{wanted['template']}`, with the "
        f"image before it; images are brought to the vision tower's square by `{wanted['image_aspect']}`. Answers were made "
        "greedily."
    )


def _terms(base: Base) -> str:
    named = f"The base model's own card names `{base.licence}`. " if base.licence else ""
    return (
        f"{named}The licence of the base model applies to what is derived from it, and the terms of the data to what was "
        "learnt from them."
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines)


def _cell(text: str) -> str:
    return " ".join(str(text).replace("|", "\\|").split())


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"
