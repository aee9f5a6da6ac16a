"""A folder that `cl-zoo export` wrote and that this package answers from: the run is not needed, nor its plugins.

`export.json` lists every tensor and JSON file with its size and SHA-256 and is sealed itself, so damage is found before anything is read.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cl_zoo.backbones.checkpoints import backbone_parts
from cl_zoo.contract.plugins import Plugins
from cl_zoo.engine.files import damage, read_sealed
from cl_zoo.errors import BackboneError, RunError
from cl_zoo.recipe.recipe import Recipe, validated
from cl_zoo.runs.restore import Restored, backbone_of, same_encoder
from cl_zoo.runs.result import Result
from cl_zoo.runs.trust import check_backbone

if TYPE_CHECKING:
    from torch import Tensor, nn

    from cl_zoo.backbones.backbone import Backbone

ABOUT = "export.json"
"""What an exported folder says of itself."""
PROJECTOR = "projector.safetensors"
AGAIN = "export the run again"


@dataclass(frozen=True)
class Exported(Result):
    """An exported folder: scores and costs of its run, and a model that answers as the run's does.

    Attributes:
        about: what `export.json` holds.
    """

    about: Mapping[str, Any] | None = None

    @property
    def _checked(self) -> Mapping[str, Any]:
        """The run's answers are not here, so there is nothing to compare its scores with."""
        return self.manifest

    @cached_property
    def restored(self) -> Restored:
        """The model that answers; it is loaded when it is first asked for, and kept.

        Raises:
            RunError: a file is missing or damaged.
            BackboneError: the weights are not those of the run.
        """
        folder, about = self.folder or Path(), self.about or {}
        return _restored(folder, about, **self.places)


def is_exported(folder: Path) -> bool:
    """Whether a folder is an exported one."""
    return (folder / ABOUT).is_file()


def load_exported(folder: Path, **places: Any) -> Exported:
    """An exported folder.

    Raises:
        RunError: what it says of itself is damaged.
    """
    about = _read(folder)
    run = about["run"]
    about_order = {"order": run.get("order", ""), "ordered": run.get("protocol") == "sequential"}
    return Exported(run["label"], run["seed"], run, folder, places=places, about=about, **about_order)


def _read(folder: Path) -> dict[str, Any]:
    try:
        return read_sealed(folder / ABOUT, folder)
    except RunError as error:
        raise RunError(f"{str(error).partition(';')[0]}; {AGAIN}") from None


def _restored(
    folder: Path,
    about: Mapping[str, Any],
    *,
    backbone: str | None = None,
    features: str | None = None,
    device: str = "auto",
    trust: Sequence[str | Path] = (),
) -> Restored:
    """The arguments are those of `cl_zoo.runs.restore.restore`."""
    import torch

    from cl_zoo.processes import World

    for name, wanted in about["files"].items():
        if wrong := damage(folder / name, wanted):
            raise RunError(f"{folder / name} {wrong}; {AGAIN}")
    manifest = about["run"]
    recipe = validated(Recipe, manifest["identity"]["recipe"], "recipe")
    world = World(device)
    if world.device.type == "cpu":
        torch.set_num_threads(1)
    name, encoder = backbone or _own_backbone(folder, about, trust), about["encoder"]
    loaded = backbone_of(folder, manifest, recipe, name, features or _own_encoder(folder, encoder), world)
    _put_projector(folder, loaded)
    model = _answering(folder, about, loaded).to(world.device).eval()
    same_encoder(folder, (encoder or {}).get("revision"), loaded)
    return Restored(folder, manifest, recipe, Plugins(()), loaded, model, (), world)


def _own_backbone(folder: Path, about: Mapping[str, Any], trust: Sequence[str | Path]) -> str:
    """The backbone by the name that the run had for it.

    Raises:
        BackboneError: it was a folder, and where that lies is not said here.
        PluginError: it names code that is not trusted.
    """
    name = str(about["base"]["backbone"])
    if about["base"]["folder"]:
        raise BackboneError(
            f"{folder} was exported from a run on weights in a folder, {name}; say where they lie with --backbone (backbone= in Python)"
        )
    check_backbone(folder, backbone_parts(name)[0], trust)
    return name


def _own_encoder(folder: Path, encoder: Mapping[str, Any] | None) -> str | None:
    """The feature encoder by the name that the run had for it; none where samples are not looked at.

    Raises:
        BackboneError: it was a folder or a file, and where that lies is not said here.
    """
    if encoder is None or encoder["place"] == "name":
        return encoder and str(encoder["name"])
    head, colon, own = str(encoder["name"]).rpartition(":")
    raise BackboneError(
        f"{folder} was exported from a run that looked through the {encoder['place']} {own}; say where it lies "
        f"with --features {head}{colon}{encoder['place'].upper()} (features= in Python)"
    )


def _put_projector(folder: Path, backbone: Backbone) -> None:
    from safetensors.torch import load_file

    if (folder / PROJECTOR).is_file():
        backbone.train_projector(True)
        backbone.projector.load_state_dict(load_file(folder / PROJECTOR, device=str(backbone.device)))
        backbone.projector.requires_grad_(False)


def _answering(folder: Path, about: Mapping[str, Any], backbone: Backbone) -> nn.Module:
    """The module that answers, by what the folder holds."""
    from safetensors.torch import load_file

    from cl_zoo.nn.chosen import Choice, Chosen
    from cl_zoo.nn.patched import Gates, Patched, gates_patch

    kind, how, device = about["kind"], about["how"], str(backbone.device)
    if kind == "prompts":
        tensors = load_file(folder / "prompts.safetensors", device=device)
        return Chosen(backbone, Choice(tensors["prompts"], tensors["keys"], **how))
    if kind == "adapters":
        return _routed(folder, how, backbone)
    if kind == "gates":
        tensors = load_file(folder / "gates.safetensors", device=device)
        names = [name.removesuffix(".router") for name in tensors if name.endswith(".router")]
        gates = {name: Gates(*(tensors[f"{name}.{part}"] for part in Gates._fields)) for name in names}
        return Patched(backbone.model, {name: gates_patch(one, how["scale"]) for name, one in gates.items()})
    raise RunError(f"{folder} holds {kind}, which this version does not know; load it with a newer one")


def _routed(folder: Path, how: Mapping[str, Any], backbone: Backbone) -> nn.Module:
    """A model that weighs one adapter per task by each sample's anchors.

    Raises:
        RunError: samples are looked at in a way that the folder does not say.
    """
    import torch
    from safetensors.torch import load_file

    from cl_zoo.nn.anchors import VIEWS, Anchors
    from cl_zoo.nn.mixes import PerSample
    from cl_zoo.nn.patched import Patch, Patched

    if others := [kind for kind, one in how["views"].items() if one["view"] not in VIEWS]:
        raise RunError(
            f"{folder} does not say how its run looked at {others[0]}; answer with the run's own folder"
        )
    views = {kind: VIEWS[one["view"]](backbone.features, one["weight"]) for kind, one in how["views"].items()}
    anchors, gate = Anchors(views, how["temperature"], backbone.device), PerSample()
    anchors.restore(load_file(folder / "routing.safetensors", device=str(backbone.device)))
    patches = {}
    for name, (adapters, scale) in _adapters(folder, how["adapters"], str(backbone.device)).items():
        downs, ups = zip(*adapters, strict=True)
        # a layer that is the same in all adapters was not routed: weights sum to one
        same = all(torch.equal(one, first) for first, *rest in (downs, ups) for one in rest)
        chosen = slice(0, 1) if same else slice(None)
        patches[name] = Patch(downs[chosen], ups[chosen], scale, None if same else gate)
    return Patched(backbone.model, patches, gate, anchors)


def _adapters(
    folder: Path, names: Sequence[str], device: str
) -> dict[str, tuple[list[tuple[Tensor, Tensor]], float]]:
    """A and B of each adapter, and their scale, by the name of the linear."""
    from safetensors.torch import load_file

    found: dict[str, tuple[list[tuple[Tensor, Tensor]], float]] = {}
    for name in names:
        place = folder / "adapters" / name
        config = json.loads((place / "adapter_config.json").read_text(encoding="utf-8"))
        tensors = load_file(place / "adapter_model.safetensors", device=device)
        for layer in config["target_modules"]:
            down, up = (tensors[f"base_model.model.{layer}.lora_{side}.weight"] for side in "AB")
            scale = config["alpha_pattern"].get(layer, config["lora_alpha"]) / len(down)
            found.setdefault(layer, ([], scale))[0].append((down, up))
    return found
