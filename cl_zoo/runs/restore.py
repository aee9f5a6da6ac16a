"""From a finished run's folder back to the model that answered in it.

The backbone is loaded and the stack placed on it as in the run, plugins and tensors come from the run's last checkpoint,
strictly by name, and the inference model is built for all tasks of the stream. Nothing of the benchmark's data is needed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from cl_zoo.backbones.checkpoints import backbone_parts
from cl_zoo.contract.plugins import Plugins
from cl_zoo.engine.files import LIST, damage, remedy
from cl_zoo.engine.folder import read_manifest
from cl_zoo.engine.states import read_state
from cl_zoo.errors import BackboneError, DataError, OptionError, RunError
from cl_zoo.recipe.recipe import Recipe, validated
from cl_zoo.runs.job import Job
from cl_zoo.runs.prepared import load_backbone
from cl_zoo.runs.trust import check_backbone, check_code
from cl_zoo.tasks import ImageSource, Sample, Task

if TYPE_CHECKING:
    from torch import nn

    from cl_zoo.backbones.backbone import Backbone
    from cl_zoo.processes import World

Picture = ImageSource | str | None
Shown = Picture | Sequence[Picture]
"""What a prompt is about: an image, the path of its file, several of these, or nothing."""


@dataclass(frozen=True)
class Restored:
    """A finished run's model, ready to answer.

    Attributes:
        folder, manifest: of the run.
        recipe, plugins, backbone: as in the run.
        model: what answers after the last task; it may have `prepare(batch)` and a `route`.
        tasks: what was learnt, in order; one of all tasks where they were learnt jointly.
    """

    folder: Path
    manifest: Mapping[str, Any]
    recipe: Recipe
    plugins: Plugins
    backbone: Backbone
    model: nn.Module
    tasks: tuple[Task, ...]
    world: World

    def answers(
        self,
        images: Sequence[Shown],
        prompts: Sequence[str],
        *,
        max_new_tokens: int | None = None,
        batch: int | None = None,
    ) -> Iterator[dict[str, Any]]:
        """Greedy answers, one record per prompt: `prompt`, `answer`, and `route` where the model exposes one.

        The arguments are those of `Result.generate`.
        """
        from cl_zoo.engine.answering import answers

        asked = self._samples(images, prompts)
        budget = self.max_new_tokens if max_new_tokens is None else max_new_tokens
        size = self.recipe.eval_batch if batch is None else batch
        for what, value in (("max_new_tokens", budget), ("batch", size)):
            if value < 1:
                raise OptionError(f"{what} must be at least 1, got {value}")
        return self._answers(answers, asked, budget, size)

    def autocast(self) -> AbstractContextManager[Any]:
        """The precision of the run."""
        return self.world.autocast(self.recipe.precision)

    @cached_property
    def max_new_tokens(self) -> int:
        """The largest token budget among the tasks of the run."""
        return max(int(budget) for *_, budget in self.manifest["identity"]["benchmark"]["tasks"].values())

    def _answers(
        self, answers: Any, asked: Sequence[Sample], budget: int, size: int
    ) -> Iterator[dict[str, Any]]:
        with self.autocast():
            guard = self.plugins.calling_module(answers=True)
            for record in answers(
                self.model,
                self.backbone,
                asked,
                max_new_tokens=budget,
                batch=size,
                guard=guard,
                static=self.recipe.static_cache,
            ):
                del record["id"]
                yield record

    def _samples(self, images: Sequence[Shown], prompts: Sequence[str]) -> tuple[Sample, ...]:
        if isinstance(images, str | Path) or isinstance(prompts, str):
            raise OptionError("images and prompts are one thing each; pass a list of either")
        if len(images) != len(prompts):
            raise OptionError(
                f"there are {len(images)} images and {len(prompts)} prompts; pass one image per prompt, a list where there are several, None where there is none"
            )
        made = []
        for place, (image, prompt) in enumerate(zip(images, prompts, strict=True)):
            if not isinstance(prompt, str) or not prompt.strip():
                raise OptionError(f"prompt {place} is {prompt!r}; pass a question as text")
            shown = _pictures(image, place)
            first, more = shown[0] if shown else None, tuple(shown[1:])
            if not more:
                self.backbone.check_prompt(prompt, f"prompt {place}")
            made.append(Sample(str(place), first, prompt, more_images=more))
            if says := self.backbone.misplaced(made[-1]):
                raise DataError(f"prompt {place}: {says}")
        return tuple(made)


def _pictures(image: Shown, place: int) -> list[ImageSource]:
    """What a prompt is about as images.

    Raises:
        OptionError: it is something else.
    """
    shown: list[ImageSource] = []
    for one in image if isinstance(image, list | tuple) else [image]:
        if isinstance(one, str | Path):
            shown.append(Path(one) if isinstance(one, str) else one)
        elif isinstance(one, Image.Image):
            shown.append(one)
        elif one is not None:
            raise OptionError(
                f"image {place} is a {type(one).__name__}; pass a PIL image, the path of a file, a list of these or None"
            )
    return shown


def restore(
    folder: Path,
    *,
    backbone: str | None = None,
    features: str | None = None,
    device: str = "auto",
    trust: Sequence[str | Path] = (),
) -> Restored:
    """The model that answers after the last task of a finished run.

    Args:
        folder: of the run.
        backbone, features: another place of the weights that the run was made on.
        device: `auto`, `cpu` or `cuda`.
        trust: files that the run names and that may be imported; see `cl_zoo.runs.trust`.

    Raises:
        RunError: no finished run, its checkpoint is missing or damaged, or it is too old to hold what is needed.
        PluginError: the run names code that is not trusted, or that is not what it was made with.
        BackboneError: the weights are not those of the run.
    """
    import torch

    from cl_zoo.engine.run import answering_model, placed, put_back, seed_phase
    from cl_zoo.processes import World

    manifest = read_manifest(folder)
    job, recipe, tasks = _described(folder, manifest)
    check_code(folder, manifest, job, trust)
    if backbone is None:
        backbone = _own_backbone(folder, job, trust)
    world = World(device)
    if world.device.type == "cpu":
        torch.set_num_threads(1)  # as in the run, whose bits must not depend on the number of cores
    found = _state(folder, manifest, str(world.device)) if tasks else None
    if tasks and found is None:
        raise RunError(
            f"{folder} holds no checkpoint (state-{len(tasks)}); put it back, or delete the folder and run again"
        )
    plugins = Plugins(job.choices, recipe.options)
    loaded = backbone_of(folder, manifest, recipe, backbone, features or job.features, world)
    seed_phase(job.seed, "build")
    model = placed(plugins, loaded, recipe)
    if found is not None:
        put_back(found, plugins, model, loaded, folder)
    with world.autocast(recipe.precision):
        answering = answering_model(plugins, model, tasks, job.seed)
    same_encoder(folder, manifest["identity"]["backbone"]["features"], loaded)
    return Restored(folder, manifest, recipe, plugins, loaded, answering, tuple(tasks), world)


def untouched(
    folder: Path,
    *,
    backbone: str | None = None,
    features: str | None = None,
    device: str = "auto",
    trust: Sequence[str | Path] = (),
) -> Restored:
    """The model that a finished run began with: its backbone as it answers with nothing placed and nothing learnt.

    The arguments are those of `restore`.

    Raises:
        RunError: no finished run.
        PluginError: the run names code that is not trusted.
        BackboneError: the weights are not those of the run.
    """
    import torch

    from cl_zoo.processes import World

    manifest = read_manifest(folder)
    job, recipe, _ = _described(folder, manifest)
    backbone = backbone or _own_backbone(folder, job, trust)
    world = World(device)
    if world.device.type == "cpu":
        torch.set_num_threads(1)
    loaded = backbone_of(folder, manifest, recipe, backbone, features or job.features, world)
    model = loaded.model.to(world.device).eval()
    return Restored(folder, manifest, recipe, Plugins(()), loaded, model, (), world)


def _described(folder: Path, manifest: Mapping[str, Any]) -> tuple[Job, Recipe, list[Task]]:
    """Job, recipe and learnt tasks of a run.

    Raises:
        RunError: the manifest lacks them.
    """
    try:
        job = Job.from_json(manifest["job"])
        recipe = validated(Recipe, manifest["identity"]["recipe"], "recipe")
        return job, recipe, [Task(**lesson) for lesson in manifest["lessons"]]
    except (KeyError, TypeError, OptionError) as error:
        raise RunError(
            f"{folder}: its manifest does not say how to build the model again ({error}); it was made by another version, run it again"
        ) from None


def _state(folder: Path, manifest: Mapping[str, Any], device: str) -> Any:
    """The last checkpoint, `None` where there is none.

    Raises:
        RunError: it is damaged.
    """
    for name, wanted in manifest.get("files", {}).items():  # what is in the list is checked by it
        listing = name.endswith(f"/{LIST}") and (folder / name).parent.is_dir()
        if listing and (wrong := damage(folder / name, wanted)):
            raise RunError(f"{folder / name} {wrong}; {remedy(folder)}")
    return read_state(folder, device)


def _own_backbone(folder: Path, job: Job, trust: Sequence[str | Path]) -> str:
    """The backbone that the manifest names.

    Raises:
        RunError: it names none.
        PluginError: it names code that is not trusted.
    """
    if job.backbone is None:
        raise RunError(f"{folder}: its manifest names no backbone; pass the run's own with --backbone")
    check_backbone(folder, backbone_parts(job.backbone)[0], trust)
    return job.backbone


def backbone_of(
    folder: Path,
    manifest: Mapping[str, Any],
    recipe: Recipe,
    name: str,
    features: str | None,
    world: World,
) -> Backbone:
    """The run's backbone, from where it was or from another place of the same weights.

    Raises:
        BackboneError: the weights are not those of the run.
    """
    wanted = manifest["identity"]["backbone"]
    loaded = load_backbone(backbone_parts(name), recipe, world.device)
    loaded.adjust(features=features)
    if loaded.revision != wanted["revision"]:
        raise BackboneError(
            f"run {folder} was made on {wanted['name']} of revision {wanted['revision']}, but {name} is of revision {loaded.revision}; pass the run's own weights with --backbone"
        )
    loaded.adjust(template=wanted["template"], image_aspect=wanted["image_aspect"])
    return loaded


def same_encoder(folder: Path, wanted: str | None, backbone: Backbone) -> None:
    """Whether a stack that looks through the feature encoder has got the run's own; one that does not needs none.

    Raises:
        BackboneError: it is another one.
    """
    if wanted is None or "features" not in vars(backbone):
        return
    if backbone.feature_revision != wanted:
        raise BackboneError(
            f"run {folder} looked through a feature encoder of revision {wanted}, but {backbone.feature_name} is of revision {backbone.feature_revision}; pass the run's own with --features"
        )
