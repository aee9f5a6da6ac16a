"""What is seen of an image in the inputs of adapted linears, in a tiny model."""

from __future__ import annotations

import torch

from cl_zoo.backbones.backbone import Backbone
from cl_zoo.batches import forward
from cl_zoo.nn import ImageInputs, adapters
from cl_zoo.recipe.recipe import build_recipe
from cl_zoo.tasks import Sample
from cl_zoo.testing import tiny_benchmark


def test_the_mean_is_over_an_images_tokens_and_zero_without_one(tiny: Backbone) -> None:
    """Against the inputs of one layer, caught by a hook of the test; layers that are not watched give nothing."""
    bank = adapters(tiny, build_recipe({"adapter.rank": 2, "adapter.dropout": 0}))
    inputs, layer = ImageInputs(bank), bank.layers[0]
    caught: list[torch.Tensor] = []
    layer.register_forward_pre_hook(lambda _, given: caught.append(given[0]))
    shown = tiny_benchmark().tasks[0].train[0]
    batch = tiny.batch([shown, Sample("t", None, "Say one colour .", "red")], answers=True)
    places = batch.inputs["input_ids"] == tiny.model.config.image_token_id

    forward(bank, batch)
    assert not inputs.found
    inputs.layers = [layer]
    inputs.start(places)
    forward(bank, batch)

    assert set(inputs.found) == {layer}
    found = inputs.found[layer]
    assert places[0].sum() > 1
    torch.testing.assert_close(found[0], caught[-1][0][places[0]].mean(0))
    assert not found[1].any()
