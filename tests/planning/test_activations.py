"""What a step keeps for its backward pass: the formula against what autograd says that it keeps, and against counts by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaModel, Qwen3Config, Qwen3Model

from cl_zoo.nn import BankConfig, ExpertBank
from cl_zoo.planning.forecast.activations import Decoder, activations, decoder_of
from cl_zoo.planning.sizes import shapes
from cl_zoo.recipe.recipe import Recipe, build_recipe

SAMPLES, TOKENS = 2, 24
SHAPE = {
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 16,
    "head_dim": 16,
}
TARGETS = {
    "all": r"(self_attn\.[qkvo]|mlp\.(gate|up|down))",
    "attention": r"self_attn\.[qkvo]",
    "mlp": r"mlp\.(gate|up|down)",
}


def decoder(layers: int, *, normed: bool = False) -> Decoder:
    return Decoder(64, 160, 4, 2, 16, layers, 16, normed)


def recipe(**changes: Any) -> Recipe:
    return build_recipe({f"adapter.{key}": value for key, value in changes.items()})


def kept(layers: int, chosen: Recipe, *, normed: bool) -> int:
    """Bytes of all storages that autograd keeps of one forward in fp32, weights left out."""
    kind, config = (Qwen3Model, Qwen3Config) if normed else (LlamaModel, LlamaConfig)
    model = kind(config(**SHAPE, num_hidden_layers=layers)).requires_grad_(False)
    adapter = chosen.adapter
    targets = rf"layers\.\d+\.{TARGETS[adapter.targets]}_proj"
    bank = ExpertBank(
        model, BankConfig(target_modules=targets, rank=adapter.rank, dropout=adapter.dropout), "t0"
    )
    bank.train()
    weights = {weight.untyped_storage().data_ptr() for weight in bank.parameters()}
    found: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            found[storage.data_ptr()] = storage
        return tensor

    words = torch.randn(SAMPLES, TOKENS, 64, requires_grad=True)
    mask = torch.ones(SAMPLES, TOKENS, dtype=torch.long)
    mask[0, :3] = 0  # padding on the left
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        states = bank(inputs_embeds=words, attention_mask=mask, use_cache=False).last_hidden_state
    del states
    return sum(storage.nbytes() for storage in found.values())


def told(layers: int, chosen: Recipe, *, normed: bool) -> float:
    return activations(
        decoder(layers, normed=normed), chosen, samples=SAMPLES, tokens=TOKENS, answer=0, mask=4
    )


@pytest.mark.parametrize("normed", [False, True])
@pytest.mark.parametrize(
    "changes",
    [{}, {"dropout": 0.0}, {"targets": "mlp"}, {"targets": "attention", "dropout": 0.0}, {"rank": 32}],
    ids=lambda changes: ",".join(f"{key}={value}" for key, value in changes.items()) or "defaults",
)
def test_another_layer_keeps_what_the_formula_says(changes: dict[str, Any], normed: bool) -> None:
    """To the byte, but for what is the same in all layers and counted in one of them here (the mask of the whole batch)."""
    chosen = recipe(**changes)
    more = kept(3, chosen, normed=normed) - kept(2, chosen, normed=normed)
    expected = told(3, chosen, normed=normed) - told(2, chosen, normed=normed)
    assert more == pytest.approx(expected, rel=0.01)


def test_a_layer_with_checkpointing_keeps_its_input_alone() -> None:
    saving = build_recipe({"checkpointing": True})
    assert told(3, saving, normed=False) - told(2, saving, normed=False) == SAMPLES * TOKENS * 4 * 64


def test_without_adapters_no_input_of_a_linear_is_kept() -> None:
    """Seven linears: four read 64 and three read 64, 64 and 160; their inputs and masks in fp32, and rank 8 of each."""
    every = {"samples": 1, "tokens": 1, "answer": 0, "mask": 4}
    with_them, without = (
        activations(decoder(1), Recipe(), **every, adapted=adapted) for adapted in (True, False)
    )
    assert with_them - without == 8 * (6 * 64 + 160) + 4 * 8 * 7


def test_shapes_of_a_published_model_are_its_configurations() -> None:
    found = decoder_of(shapes("qwen3-vl-8b"))
    assert found == Decoder(4096, 12288, 32, 8, 128, 36, 151936, normed=True)
