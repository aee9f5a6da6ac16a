"""A run that answers by soft prompts: the prompts, their keys, and how a sample's are chosen."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from cl_zoo.backbones.backbone import Backbone
from cl_zoo.batches import prepare
from cl_zoo.engine.ledger import answering_state
from cl_zoo.export.adapters import METADATA, plain
from cl_zoo.export.folders import Answering, write_folder
from cl_zoo.export.folding import refusal
from cl_zoo.nn.chosen import Choice, Chosen
from cl_zoo.nn.prompts import Prompted
from cl_zoo.nn.still import standing_still
from cl_zoo.runs.restore import Restored
from cl_zoo.tasks import Sample


def choice_of(answering: nn.Module, backbone: Backbone) -> Choice | None:
    """How what answers chooses its prompts; none where it does not say so.

    Raises:
        OptionError: it says so, and chooses others or answers by more than prompts.
    """
    if not isinstance(answering, Prompted) or (choice := answering.choice()) is None:
        return None
    kind = type(answering)
    if (kind.forward, kind.generate) != (Prompted.forward, Prompted.generate):
        raise refusal(f"{kind.__module__}.{kind.__name__} answers by more than soft prompts")
    learnt = {id(tensor) for tensor in [*backbone.projector.parameters(), *backbone.projector.buffers()]}
    for name, tensor in answering_state(answering, backbone).items():
        if name.startswith("model.") and id(tensor) not in learnt:
            raise refusal(f"{name} takes part in answering beside the prompts and the projector")
    _measured(answering, Chosen(backbone, choice), backbone)
    return choice


@torch.no_grad()
def _measured(answering: Prompted, other: Chosen, backbone: Backbone) -> None:
    """Compare the prompts that both choose for a few samples, with and without an image.

    Raises:
        OptionError: they are not the same.
    """
    drawn = torch.Generator().manual_seed(0)
    noise = (torch.rand(6, 24, 32, 3, generator=drawn) * 255).byte().numpy()
    images = [Image.fromarray(one) for one in noise] + [None, None]
    asked = "what who where how many which why when".split()
    samples = [
        Sample(str(place), image, f"{word} is {place} ?")
        for place, (image, word) in enumerate(zip(images, asked, strict=True))
    ]
    batch = backbone.batch(samples, answers=False)
    with standing_still(answering):
        answering.eval()
        prepare(answering, batch)
        other.prepare(batch)
        wanted, got = answering.soft_prompts(), other.soft_prompts()
    if wanted.shape != got.shape or not torch.equal(wanted, got.to(wanted)):
        kind = type(answering)
        raise refusal(f"{kind.__module__}.{kind.__name__} reads other prompts than its choice says")


def write_prompted(folder: Path, restored: Restored, choice: Choice) -> list[str]:
    """`prompts.safetensors` with prompts (M, length, width) and keys (M, d), and what all folders have."""
    save_file(plain(choice.tensors()), folder / "prompts.safetensors", METADATA)
    what = (
        "Soft prompts that the frozen base reads behind its first token, and the keys by which each sample's are chosen. "
        "`export.json` says how: the highest of `images` * cos(image feature, key) + `texts` * cos(text feature, key), `alone` in "
        "the place of `texts` without an image; features are open_clip's, in its joint space, of the whole image and of the prompt."
    )
    write_folder(folder, restored, Answering("prompts", choice.describe(), looks=True), what)
    return []
