"""The bank against closed forms written as loops over experts, and against stock PEFT LoRA."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from cl_zoo.backbones.backbone import Backbone
from cl_zoo.engine.learning import recompute_activations
from cl_zoo.nn.bank import ExpertBank, name_of
from cl_zoo.nn.layer import BankConfig, BankLayer
from cl_zoo.nn.mixes import AllOnes, PerSample, PerToken, SharedDown, spread
from cl_zoo.nn.placing import KeepsExperts, bank_parts, mixture
from cl_zoo.nn.still import standing_still
from cl_zoo.recipe.recipe import build_recipe
from cl_zoo.tasks import Task

TARGETS = r".*language_model\.layers\.\d+\.(self_attn\.[qkvo]|mlp\.(gate|up|down))_proj"
SCALE = 1.5


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(before)


class Tiny(nn.Module):
    """Two linear decoder layers and a projector: the smallest model with an inside and an outside of the bank."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.projector = nn.Linear(5, 5, dtype=dtype)
        self.layers = nn.ModuleList(nn.ModuleDict({"lin": nn.Linear(5, 5, dtype=dtype)}) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.projector(x)
        for layer in self.layers:
            x = layer["lin"](x)
        return x


def make_bank(
    *more: str, rank: int = 3, reads: str | None = None, dtype: torch.dtype = torch.float32
) -> ExpertBank:
    """A bank on `Tiny` whose experts `a`, and `more`, hold random A and B; only `a` is active and learns."""
    bank = ExpertBank(
        Tiny(dtype), BankConfig(target_modules=r"layers\.\d+\.lin", rank=rank, scale=SCALE), "a"
    )
    for name in more:
        bank.add(name, reads=reads)
    return randomised(bank)


def randomised(bank: ExpertBank) -> ExpertBank:
    with torch.no_grad():
        for layer in bank.layers:
            for table in (layer.bank_down, layer.bank_up):
                for weight in table.values():
                    weight.normal_()
    return bank


def layer_of(bank: ExpertBank, depth: int = 0) -> BankLayer:
    return bank.layers[depth]


def routed(weights: Tensor | None) -> PerSample:
    mix = PerSample()
    mix.weights = weights
    return mix


def gated(router: nn.Module) -> SharedDown:
    return SharedDown(lambda z, x: router(x))


def learning(model: nn.Module) -> set[str]:
    return {name for name, weight in model.named_parameters() if weight.requires_grad}


# --- one equation, five mixes ---------------------------------------------------------------------------------------


class Case:
    """One layer with three experts, an input (samples, tokens, d_in), and what the closed forms need."""

    def __init__(self, *, shared: bool = False, ranks: tuple[int, ...] = (3, 3, 3), beams: int = 1) -> None:
        self.bank = make_bank(rank=ranks[0])
        for name, rank in zip("bc", ranks[1:], strict=True):
            self.bank.add(name, rank=None if shared else rank, reads="a" if shared else None)
        randomised(self.bank).use(["a", "b", "c"])
        self.layer = layer_of(self.bank)
        self.x = torch.randn(2, 4, 5).repeat_interleave(beams, 0)
        self.route = torch.tensor([[0.2, 0.3, 0.5], [1.0, 0.0, -2.0]])
        self.router = nn.Linear(5, 3)
        self.beams = beams

    def up(self, name: str) -> Tensor:
        return self.layer.bank_up[name].detach()

    def down(self, name: str) -> Tensor:
        return self.layer.bank_down[name].detach()

    def each(self, add: Callable[[int, int], Tensor]) -> Tensor:
        """W x + s · add(sample, token), one sample and one token after the other."""
        base = self.layer.base_layer
        out = torch.empty(*self.x.shape[:2], 5)
        for sample in range(self.x.shape[0]):
            for token in range(self.x.shape[1]):
                w_x = base.weight @ self.x[sample, token] + base.bias
                out[sample, token] = w_x + SCALE * add(sample, token)
        return out.detach()


def identity(case: Case) -> tuple[nn.Module | None, Tensor]:
    def add(n: int, t: int) -> Tensor:
        total = torch.zeros(5)
        for name in "abc":
            total = total + case.up(name) @ (case.down(name) @ case.x[n, t])  # Σ BᵢAᵢ x
        return total

    return None, case.each(add)


def identity_on_a_shared_a(case: Case) -> tuple[nn.Module | None, Tensor]:
    def add(n: int, t: int) -> Tensor:
        total = torch.zeros(5)
        for name in "abc":
            total = total + case.up(name) @ (case.down("a") @ case.x[n, t])  # Σ BᵢA x
        return total

    return None, case.each(add)


def per_token(case: Case) -> tuple[nn.Module | None, Tensor]:
    def add(n: int, t: int) -> Tensor:
        x, total = case.x[n, t], torch.zeros(5)
        scores = [(case.router.weight[i] @ x + case.router.bias[i]).exp() for i in range(3)]
        for i, name in enumerate("abc"):
            total = total + scores[i] / sum(scores) * (
                case.up(name) @ (case.down(name) @ x)
            )  # Σ gᵢ(x) BᵢAᵢ x
        return total

    return PerToken(case.router), case.each(add)


def per_sample(case: Case) -> tuple[nn.Module | None, Tensor]:
    mix = PerSample()
    mix.weights = case.route

    def add(n: int, t: int) -> Tensor:
        total = torch.zeros(5)
        for i, name in enumerate("abc"):
            w = case.route[n // case.beams, i]
            total = total + w * (case.up(name) @ (case.down(name) @ case.x[n, t]))  # Σ wᵢ BᵢAᵢ x
        return total

    return mix, case.each(add)


def shared_down(case: Case) -> tuple[nn.Module | None, Tensor]:
    def add(n: int, t: int) -> Tensor:
        x, b = case.x[n, t], torch.zeros(5, 3)
        for i, name in enumerate("abc"):
            b = b + (case.router.weight[i] @ x + case.router.bias[i]) * case.up(name)
        return b @ (case.down("a") @ x)  # (Σ gᵢ(x) Bᵢ) A x

    return SharedDown(lambda z, x: case.router(x)), case.each(add)


def shared_down_per_sample(case: Case) -> tuple[nn.Module | None, Tensor]:
    def add(n: int, t: int) -> Tensor:
        b = torch.zeros(5, 3)
        for i, name in enumerate("abc"):
            b = b + case.route[n // case.beams, i] * case.up(name)
        return b @ (case.down("a") @ case.x[n, t])  # (Σ wᵢ Bᵢ) A x

    return SharedDown(lambda z, x: case.route), case.each(add)


def all_ones(case: Case) -> tuple[nn.Module | None, Tensor]:
    def add(n: int, t: int) -> Tensor:
        b, a = torch.zeros(5, 3), torch.zeros(3, 5)
        for name in "abc":
            b, a = b + case.up(name), a + case.down(name)
        return b @ (a @ case.x[n, t])  # (ΣBᵢ)(ΣAᵢ) x

    return AllOnes(), case.each(add)


@pytest.mark.parametrize(
    ("form", "case"),
    [
        pytest.param(identity, {}, id="identity"),
        pytest.param(identity, {"ranks": (3, 1, 2)}, id="identity, different ranks"),
        pytest.param(identity_on_a_shared_a, {"shared": True}, id="identity, one shared A"),
        pytest.param(per_token, {}, id="per token"),
        pytest.param(per_token, {"ranks": (3, 1, 2)}, id="per token, different ranks"),
        pytest.param(per_sample, {}, id="per sample"),
        pytest.param(per_sample, {"ranks": (3, 1, 2)}, id="per sample, different ranks"),
        pytest.param(per_sample, {"beams": 3}, id="per sample, three beams"),
        pytest.param(shared_down, {"shared": True}, id="shared A"),
        pytest.param(shared_down_per_sample, {"shared": True}, id="shared A, per sample"),
        pytest.param(
            shared_down_per_sample, {"shared": True, "beams": 3}, id="shared A, per sample, three beams"
        ),
        pytest.param(all_ones, {}, id="all ones"),
    ],
)
def test_the_mix_turns_the_bank_into(
    form: Callable[[Case], tuple[nn.Module | None, Tensor]], case: dict[str, object]
) -> None:
    made = Case(**case)  # type: ignore[arg-type]
    mix, expected = form(made)
    made.bank.mix(lambda layer: mix)

    with torch.no_grad():
        torch.testing.assert_close(made.layer(made.x), expected)
        if (
            form is not per_token
        ):  # one token alone, as in a decoding step, and the place of the token does not matter
            torch.testing.assert_close(made.layer(made.x[:, 1:2]), expected[:, 1:2])


def test_a_sample_weight_meets_inputs_without_a_token_axis() -> None:
    case = Case()
    mix, expected = per_sample(case)
    case.bank.mix(lambda layer: mix)

    torch.testing.assert_close(case.layer(case.x[:, 0]).detach(), expected[:, 0])


def test_a_route_keeps_its_gradient() -> None:
    """∂/∂wᵢ of the sum of Σ wᵢ s BᵢAᵢ x over everything is the sum of s BᵢAᵢ x."""
    case = Case(ranks=(3, 1, 2))
    mix = PerSample()
    mix.weights = case.route.clone().requires_grad_()
    case.bank.mix(lambda layer: mix)

    case.layer(case.x).sum().backward()

    expected = torch.stack([SCALE * (case.x @ case.down(n).T @ case.up(n).T).sum((1, 2)) for n in "abc"], 1)
    torch.testing.assert_close(mix.weights.grad, expected)


def test_one_weight_per_expert_becomes_one_per_rank_row() -> None:
    weights = torch.tensor([[1.0, 2.0, 3.0]])
    assert spread(weights, [2, 1, 3]).tolist() == [[1, 1, 2, 3, 3, 3]]
    assert spread(weights, [2, 2, 2]).tolist() == [[1, 1, 2, 2, 3, 3]]


def test_the_mix_sees_the_experts_in_the_order_of_use() -> None:
    case = Case()
    mix = PerSample()
    mix.weights = torch.tensor([[0.0, 1.0], [0.0, 1.0]])
    case.bank.mix(lambda layer: mix)
    case.bank.use(["c", "a"])

    only_a = case.each(lambda n, t: case.up("a") @ (case.down("a") @ case.x[n, t]))
    torch.testing.assert_close(case.layer(case.x).detach(), only_a)


def test_mixes_and_experts_can_differ_from_layer_to_layer() -> None:
    bank = make_bank("b")
    bank.use(["a"])
    bank.use(["a", "b"], where=lambda layer: layer.depth == 1)
    bank.mix(lambda layer: AllOnes(), where=lambda layer: layer.depth == bank.depth)

    assert [layer.experts for layer in bank.layers] == [["a"], ["a", "b"]]
    assert layer_of(bank, 0).bank_mix is None
    assert isinstance(layer_of(bank, 1).bank_mix, AllOnes)
    bank.mix(lambda layer: None)
    assert layer_of(bank, 1).bank_mix is None


@pytest.mark.parametrize("experts", [1, 2, 7])
@pytest.mark.parametrize("reads", [None, "a"])
def test_a_layer_costs_two_gemms_whatever_the_number_of_experts(experts: int, reads: str | None) -> None:
    names = "abcdefg"[:experts]
    bank = make_bank(*names[1:], reads=reads)
    bank.use(names)
    products: list[tuple[int, ...]] = []

    class Products(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func._schema.name in ("aten::mm", "aten::addmm", "aten::addmm_"):
                products.append(tuple(args[-1].shape))
            return func(*args, **(kwargs or {}))

    with Products():
        layer_of(bank)(torch.randn(2, 4, 5))

    downs = 3 if reads else 3 * experts
    assert products == [(5, 5), (5, downs), (3 * experts, 5)]  # W, A, B


def test_dropout_draws_one_mask_on_x_for_all_experts() -> None:
    """A bank of two equal experts with B and −B cancels only if both see the same mask."""
    bank = ExpertBank(Tiny(), BankConfig(target_modules=r"layers\.\d+\.lin", rank=3, dropout=0.5), "a")
    bank.add("b")
    layer, x = layer_of(bank), torch.randn(2, 4, 5)
    down, up = torch.randn(3, 5), torch.randn(5, 3)
    bank.put("a", layer, down, up)
    bank.put("b", layer, down, -up)

    bank.use(["a"])
    assert not torch.allclose(layer(x), layer(x))
    bank.use(["a", "b"])
    torch.testing.assert_close(layer(x), layer.base_layer(x))


# --- the same as stock PEFT -----------------------------------------------------------------------------------------


def tiny_llava() -> LlavaForConditionalGeneration:
    """A LLaVA of two CLIP and two Llama layers with random weights; 4 image patches of 7 × 7 pixels."""
    torch.manual_seed(1)
    vision = CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=14,
        patch_size=7,
    )
    text = LlamaConfig(
        vocab_size=40,
        hidden_size=24,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=64,
    )
    model = LlavaForConditionalGeneration(
        LlavaConfig(vision_config=vision, text_config=text, image_token_index=39)
    )
    return model.eval()


def llava_inputs() -> dict[str, Tensor]:
    ids = torch.tensor([[39, 39, 39, 39, 5, 6, 7, 8], [39, 39, 39, 39, 9, 3, 2, 1]])
    labels = torch.where(torch.arange(8) < 5, -100, ids)
    pixels = torch.randn(2, 3, 14, 14, generator=torch.Generator().manual_seed(2))
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "pixel_values": pixels,
        "labels": labels,
    }


def llava_bank(first: str = "a", *more: str, rank: int = 4) -> ExpertBank:
    bank = ExpertBank(tiny_llava(), BankConfig(target_modules=TARGETS, rank=rank, scale=SCALE), first)
    for name in more:
        bank.add(name)
    with torch.no_grad():
        for layer in bank.layers:
            for table in (layer.bank_down, layer.bank_up):
                for weight in table.values():
                    weight.normal_(std=0.1)
    return bank


def test_the_bank_adapts_the_language_model_and_not_the_vision_tower() -> None:
    """Both have a `q_proj`; two layers with seven linears each are to be adapted."""
    bank = llava_bank()

    assert len(bank.layers) == 14
    assert all("language_model.layers." in layer.path for layer in bank.layers)
    assert [layer.depth for layer in bank.layers] == [0] * 7 + [1] * 7
    assert bank.depth == 1
    assert any("vision" in name and name.endswith("q_proj") for name, _ in bank.named_modules())
    assert all(".bank_" in name for name in learning(bank))


@pytest.mark.parametrize("names", [["t0"], ["t0", "t1", "t2"]], ids=["one expert", "three active experts"])
def test_the_bank_is_stock_lora(names: list[str]) -> None:
    """Same W, A and B, alpha = s · r, no dropout: logits, loss and every gradient agree to 1e-5."""
    rank, inputs = 4, llava_inputs()
    bank = llava_bank(*names, rank=rank)
    bank.use(names, trainable=names)
    lora = LoraConfig(r=rank, lora_alpha=SCALE * rank, lora_dropout=0.0, target_modules=TARGETS)  # type: ignore[arg-type]
    stock = get_peft_model(tiny_llava(), lora, adapter_name=names[0])
    for name in names[1:]:
        stock.add_adapter(name, lora)
    stock.base_model.set_adapter(names)
    theirs = {
        path: module for path, module in stock.base_model.model.named_modules() if hasattr(module, "lora_A")
    }
    for layer in bank.layers:
        for name in names:
            theirs[layer.path].lora_A[name].weight.data.copy_(layer.bank_down[name].data)
            theirs[layer.path].lora_B[name].weight.data.copy_(layer.bank_up[name].data)
    assert set(theirs) == {layer.path for layer in bank.layers}

    ours, expected = bank(**inputs), stock(**inputs)
    ours.loss.backward()
    expected.loss.backward()

    torch.testing.assert_close(ours.logits, expected.logits, atol=1e-5, rtol=0)
    for layer in bank.layers:
        for name in names:
            a, b = theirs[layer.path].lora_A[name].weight.grad, theirs[layer.path].lora_B[name].weight.grad
            assert a.abs().max() > 1e-4  # otherwise agreement to 1e-5 would say nothing
            assert b.abs().max() > 1e-4
            torch.testing.assert_close(layer.bank_down[name].grad, a, atol=1e-5, rtol=0)
            torch.testing.assert_close(layer.bank_up[name].grad, b, atol=1e-5, rtol=0)


def test_a_new_bank_answers_as_the_bare_model() -> None:
    """B starts at zero."""
    bank = ExpertBank(tiny_llava(), BankConfig(target_modules=TARGETS), "a")
    torch.testing.assert_close(bank(**llava_inputs()).logits, tiny_llava()(**llava_inputs()).logits)
    spreads = torch.cat([layer.bank_down["a"].flatten() for layer in bank.layers]).std()
    assert spreads.item() == pytest.approx(0.01, rel=0.1)


def test_gradient_checkpointing_gives_the_same_gradients() -> None:
    """With a route per sample, which must still stand when a layer is computed a second time."""
    gradients, runs = [], []
    for checkpointing in (False, True):
        bank, mix, forwards = llava_bank("a", "b"), PerSample(), []
        mix.weights = torch.tensor([[0.3, 0.7], [1.0, 0.2]])
        bank.use(["a", "b"], trainable=["a", "b"])
        bank.mix(lambda layer, mix=mix: mix)
        layer_of(bank).register_forward_hook(lambda *_, seen=forwards: seen.append(1))
        if checkpointing:
            recompute_activations(bank.model)
        bank.train()
        bank(**llava_inputs()).loss.backward()
        gradients.append(
            {name: weight.grad for name, weight in bank.named_parameters() if weight.requires_grad}
        )
        runs.append(len(forwards))

    assert runs == [1, 2]
    assert len(gradients[0]) == 2 * 2 * 14
    torch.testing.assert_close(gradients[0], gradients[1])


def test_a_route_per_sample_holds_through_beam_search() -> None:
    """A sample answered alone with its own weights answers the same inside a batch, with three beams."""
    bank, mix, inputs = llava_bank("a", "b"), PerSample(), llava_inputs()
    bank.use(["a", "b"])
    bank.mix(lambda layer: mix)
    route = torch.tensor([[2.0, 0.0], [-1.0, 3.0]])
    settings = {
        "max_new_tokens": 5,
        "num_beams": 3,
        "do_sample": False,
        "pad_token_id": 0,
        "eos_token_id": 38,
    }
    del inputs["labels"]

    mix.weights = route
    together = bank.generate(**inputs, **settings)
    for i in range(2):
        mix.weights = route[i : i + 1]
        alone = bank.generate(**{name: value[i : i + 1] for name, value in inputs.items()}, **settings)
        assert together[i].tolist()[: alone.shape[1]] == alone[0].tolist()
    mix.weights = route.flip(0)
    assert bank.generate(**inputs, **settings).tolist() != together.tolist()


# --- adding, using, removing ----------------------------------------------------------------------------------------


def test_adding_an_expert_freezes_nothing_and_lets_nothing_learn() -> None:
    bank = make_bank()
    bank.model.projector.requires_grad_(True)
    bank.mix(lambda layer: PerToken(nn.Linear(5, 1)))
    before = learning(bank)
    assert {"model.projector.weight", "model.layers.0.lin.bank_mix.router.weight"} <= before

    bank.add("b")

    assert learning(bank) == before
    assert [layer.experts for layer in bank.layers] == [["a"], ["a"]]
    assert bank.experts == ["a", "b"]


def test_adding_an_expert_does_not_wake_frozen_weights_or_leave_evaluation_mode() -> None:
    bank = make_bank()
    bank.use(["a"])
    bank.eval()

    bank.add("b")

    assert learning(bank) == set()
    assert not any(module.training for module in bank.modules())


def test_a_router_keeps_learning_after_an_expert_was_added() -> None:
    bank = make_bank("b")
    bank.mix(lambda layer: PerToken(nn.Linear(5, 2)))
    bank.add("c")
    bank.use(["b", "c"], trainable=["c"])
    randomised(bank)
    router = layer_of(bank).bank_mix.router  # type: ignore[union-attr]
    was = router.weight.detach().clone()  # type: ignore[union-attr, operator]
    optimizer = torch.optim.SGD([weight for weight in bank.parameters() if weight.requires_grad], lr=0.1)

    bank(torch.randn(2, 4, 5)).square().mean().backward()
    optimizer.step()

    assert not torch.equal(router.weight, was)  # type: ignore[union-attr, arg-type]


def test_use_freezes_the_others_exactly() -> None:
    bank = make_bank("b", "c")
    bank.use(["a", "b"], trainable=["b"])

    bank(torch.randn(2, 4, 5)).square().mean().backward()

    for layer in bank.layers:
        for name in "ac":
            assert layer.bank_down[name].grad is None
            assert layer.bank_up[name].grad is None
        assert layer.bank_down["b"].grad.abs().sum() > 0
        assert layer.bank_up["b"].grad.abs().sum() > 0
        assert layer.base_layer.weight.grad is None


def test_learning_with_a_shared_a_teaches_that_a() -> None:
    bank = make_bank("b", "c", reads="a")
    bank.use(["a", "b"], trainable=["b"])

    bank(torch.randn(2, 4, 5)).square().mean().backward()

    for layer in bank.layers:
        assert list(layer.bank_down) == ["a"]
        assert layer.bank_down["a"].grad.abs().sum() > 0
        assert layer.bank_up["b"].grad.abs().sum() > 0
        assert layer.bank_up["a"].grad is None
        assert layer.bank_up["c"].grad is None


def test_sharing_what_is_shared_already_leads_to_its_owner() -> None:
    bank = make_bank(rank=2)
    bank.add("wide", rank=4)
    bank.add("b", reads="wide")
    bank.add("c", reads="b")

    assert layer_of(bank).reads == {"a": "a", "wide": "wide", "b": "wide", "c": "wide"}
    assert layer_of(bank).bank_up["c"].shape == (5, 4)
    bank.remove("b")
    bank.use(["c"])
    bank(torch.randn(2, 5))


def test_an_expert_that_shares_an_a_stands_where_that_a_stands() -> None:
    bank = make_bank("b")
    bank.remove("b", where=lambda layer: layer.depth == 0)
    bank.add("c", reads="b")
    bank.use(["a", "c"])

    assert [layer.experts for layer in bank.layers] == [["a"], ["a", "c"]]
    bank(torch.randn(2, 5))


def test_an_a_that_others_share_is_not_taken_from_them() -> None:
    bank = make_bank("b", reads="a")

    with pytest.raises(ValueError, match=r"b in layers\.0\.lin reads the A of 'a'; remove it first"):
        bank.remove("a")
    with pytest.raises(ValueError, match=r"b in layers\.0\.lin reads the A of 'a'; its rank cannot change"):
        bank.put("a", layer_of(bank), torch.zeros(9, 5), torch.zeros(5, 9))
    assert bank.experts == ["a", "b"]
    bank.remove("b")
    bank.remove("a")
    assert bank.experts == []


def test_a_removed_expert_is_gone_and_its_name_is_free() -> None:
    bank = make_bank("b", rank=2)
    bank.use(["a", "b"])

    bank.remove("a", where=lambda layer: layer.depth == 0)
    assert bank.experts == ["a", "b"]
    assert [layer.experts for layer in bank.layers] == [["b"], ["a", "b"]]
    bank.remove("a")
    assert bank.experts == ["b"]
    assert not any(".a" in name for name in bank.state_dict())

    bank.add("a", rank=4)
    assert [layer.experts for layer in bank.layers] == [["b"], ["b"]]
    assert layer_of(bank).bank_up["a"].shape == (5, 4)


def test_a_merged_expert_of_summed_rank_equals_the_sum() -> None:
    """[B₁ B₂][A₁; A₂] = B₁A₁ + B₂A₂."""
    bank, x = make_bank("b", "merged"), torch.randn(2, 4, 5)
    bank.use(["a", "b"])
    expected = bank(x).detach()
    for layer in bank.layers:
        down = torch.cat([layer.bank_down["a"], layer.bank_down["b"]])
        up = torch.cat([layer.bank_up["a"], layer.bank_up["b"]], dim=1)
        bank.put("merged", layer, down, up)
    assert not any(".merged" in name for name in learning(bank))

    bank.use(["merged"])

    torch.testing.assert_close(bank(x), expected)
    assert learning(bank) == set()
    for layer in bank.layers:
        total = SCALE * sum(layer.bank_up[n] @ layer.bank_down[n] for n in "ab")
        torch.testing.assert_close(layer.delta(), total)
        torch.testing.assert_close(layer.delta(["a", "b"]), total)
        torch.testing.assert_close(layer.delta(["b"]), SCALE * layer.bank_up["b"] @ layer.bank_down["b"])


def test_without_experts_a_layer_is_its_frozen_weight() -> None:
    bank, x = make_bank("b"), torch.randn(2, 5)
    layer = layer_of(bank)
    bank.use([])
    torch.testing.assert_close(layer(x), layer.base_layer(x))
    assert layer.delta().abs().sum() == 0


def test_parts_name_what_learns() -> None:
    bank = make_bank("b")
    assert set(bank_parts(bank)) == {"adapters"}
    bank.mix(lambda layer: PerToken(nn.Linear(5, 2)))
    parts = bank_parts(bank)

    assert parts["routers"] == [
        f"model.layers.{depth}.lin.bank_mix.router.{kind}"
        for depth in range(2)
        for kind in ("weight", "bias")
    ]
    assert len(parts["adapters"]) == 2 * 2 * 2
    assert set(bank_parts(Tiny())) == set()


# --- state ----------------------------------------------------------------------------------------------------------


def varied() -> ExpertBank:
    """A bank with a rank of its own, an A shared in one layer only, and experts that miss a layer."""
    bank = make_bank()
    bank.add("wide", rank=5)
    bank.add("reader", reads="wide")
    bank.add("missing")
    bank.remove("missing", where=lambda layer: layer.depth == 1)
    bank.put("reader", layer_of(bank), torch.zeros(7, 5), torch.zeros(5, 7))
    bank.put("a", layer_of(bank, 1), torch.zeros(6, 5), torch.zeros(5, 6))
    bank.remove("wide", where=lambda layer: layer.depth == 0)
    return randomised(bank)


@pytest.mark.parametrize(
    "held", [(), ("b",), ("missing", "wide", "reader")], ids=["fresh", "another", "same names"]
)
def test_a_described_bank_can_be_built_again(held: tuple[str, ...]) -> None:
    bank, x = varied(), torch.randn(2, 4, 5)
    description = json.loads(json.dumps(bank.describe()))
    again = make_bank(*held)

    again.rebuild(description)

    assert again.describe() == bank.describe()
    assert again.experts == bank.experts
    again.load_state_dict(bank.state_dict())  # strict: every name, every shape
    for each in (bank, again):
        each.use(each.experts)
    torch.testing.assert_close(again(x), bank(x))
    for here, there in zip(again.layers, bank.layers, strict=True):
        assert here.reads == there.reads


def test_the_order_of_a_description_is_no_trap() -> None:
    """JSON files are often sorted by key; `reader` then comes before `wide`, whose A it shares."""
    bank = varied()
    again = make_bank("reader", "wide")
    again.rebuild(json.loads(json.dumps(bank.describe(), sort_keys=True)))

    assert again.describe() == bank.describe()
    assert again.experts == ["a", "missing", "reader", "wide"]


def test_an_expert_with_an_own_a_everywhere_no_longer_needs_the_shared_one() -> None:
    bank = make_bank("b", reads="a")
    for layer in bank.layers:
        bank.put("b", layer, torch.zeros(2, 5), torch.zeros(5, 2))
    bank.remove("a")
    again = make_bank()

    again.rebuild(bank.describe())

    assert again.describe() == bank.describe() == {"b": {"reads": None, "ranks": layer_ranks(2), "own": []}}
    again.add("c", reads="b")
    assert layer_of(again).reads["c"] == "b"


def layer_ranks(rank: int) -> dict[str, int]:
    return {"layers.0.lin": rank, "layers.1.lin": rank}


def test_rebuilding_leaves_equal_experts_alone() -> None:
    bank = make_bank("b")
    tensors = copy.deepcopy(bank.state_dict())
    description = bank.describe()
    bank.add("extra")
    bank.use(["a", "extra"], trainable=["a"])
    learns = {name for name in learning(bank) if ".extra" not in name}

    bank.rebuild(description)

    assert bank.experts == ["a", "b"]
    assert learning(bank) == learns
    assert [layer.experts for layer in bank.layers] == [["a"], ["a"]]
    torch.testing.assert_close(dict(bank.state_dict()), dict(tensors))


def test_rebuilding_removes_a_shared_a_together_with_its_readers() -> None:
    bank = varied()
    bank.rebuild(make_bank("z").describe())
    assert bank.describe() == make_bank("z").describe()


def test_a_bank_survives_losing_its_first_expert() -> None:
    bank = make_bank("b")
    bank.remove("a")
    bank.rebuild({name: made for name, made in make_bank("b", "c").describe().items() if name != "a"})
    bank.use(["b", "c"], trainable=["c"])
    bank(torch.randn(2, 5)).sum().backward()
    assert bank.experts == ["b", "c"]


def test_a_description_of_another_model_is_refused() -> None:
    bank = make_bank()
    description = {"x": {"reads": None, "ranks": {"layers.9.lin": 3}, "own": []}}
    with pytest.raises(
        ValueError, match=r"'x' is described in layers\.9\.lin, which this bank does not adapt"
    ):
        bank.rebuild(description)


@pytest.mark.parametrize("fails", [False, True])
def test_standing_still_restores_everything(fails: bool) -> None:
    bank, mix = make_bank("b"), PerSample()
    mix.weights = torch.tensor([[1.0, 0.5]])
    bank.use(["b", "a"], trainable=["a"])
    bank.mix(lambda layer: mix)
    bank.model.projector.requires_grad_(True)
    bank.train()
    layer_of(bank, 1).eval()
    x = torch.randn(1, 4, 5)
    learns, answer = learning(bank), bank(x).detach()
    modes = [module.training for module in bank.modules()]

    def disturb() -> None:
        with standing_still(bank):
            bank.use(["a"], trainable=["b"])
            bank.model.projector.requires_grad_(False)
            bank.mix(lambda layer: AllOnes())
            mix.weights = torch.zeros(1, 1)
            bank.eval()
            bank.disable_adapter_layers()
            assert not torch.allclose(bank(x), answer)
            if fails:
                raise RuntimeError("on purpose")

    if fails:
        with pytest.raises(RuntimeError, match="on purpose"):
            disturb()
    else:
        disturb()

    assert learning(bank) == learns
    assert [module.training for module in bank.modules()] == modes
    assert [layer.experts for layer in bank.layers] == [["b", "a"], ["b", "a"]]
    assert all(layer.bank_mix is mix for layer in bank.layers)
    torch.testing.assert_close(bank(x), answer)


@pytest.mark.parametrize(
    ("mix", "reads"),
    [
        (lambda layer: None, None),
        (lambda layer: PerToken(nn.Linear(5, 2)), None),
        (lambda layer: routed(torch.tensor([[0.5, 2.0]])), None),
        (lambda layer: AllOnes(), None),
        (lambda layer: gated(nn.Linear(5, 2)), "a"),
    ],
    ids=["identity", "per token", "per sample", "all ones", "shared A"],
)
def test_experts_on_bf16_weights_are_fp32_and_answers_finite(
    mix: Callable[[BankLayer], nn.Module | None], reads: str | None
) -> None:
    bank = make_bank("b", dtype=torch.bfloat16, reads=reads)
    bank.mix(mix)
    bank.use(["a", "b"], trainable=["b"])
    x = torch.randn(2, 4, 5, dtype=torch.bfloat16)

    y = bank(x)
    y.float().square().mean().backward()

    assert y.dtype == torch.bfloat16
    assert y.isfinite().all()
    for layer in bank.layers:
        assert layer.base_layer.weight.dtype == torch.bfloat16
        held = {weight.dtype for table in (layer.bank_down, layer.bank_up) for weight in table.values()}
        assert held == {torch.float32}
        assert layer.bank_up["b"].grad.isfinite().all()


def test_an_update_is_fp32_inside_autocast() -> None:
    bank = make_bank("b")
    layer = bank.layers[0]
    outside = layer.delta(["a", "b"])

    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(layer.delta(["a", "b"]), outside)


def test_under_autocast_bf16_inputs_are_not_copied_to_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    bank = make_bank("b", dtype=torch.bfloat16)
    seen: list[torch.dtype] = []
    for layer in bank.layers:
        monkeypatch.setattr(layer.bank_dropout, "forward", lambda x: (seen.append(x.dtype), x)[1])
    with torch.autocast("cpu", torch.bfloat16):
        bank(torch.randn(2, 5, dtype=torch.bfloat16))

    assert set(seen) == {torch.bfloat16}


# --- errors ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "call",
    [
        lambda bank: bank.use(["nobody"]),
        lambda bank: bank.use(["a"], trainable=["nobody"]),
        lambda bank: bank.remove("nobody"),
        lambda bank: bank.add("c", reads="nobody"),
        lambda bank: bank.put("nobody", layer_of(bank), torch.zeros(3, 5), torch.zeros(5, 3)),
    ],
    ids=["use", "trainable", "remove", "reads", "put"],
)
def test_an_unknown_expert_is_named(call: Callable[[ExpertBank], None]) -> None:
    bank = make_bank("b")
    before = copy.deepcopy(bank.describe())
    with pytest.raises(KeyError, match="the bank has no expert 'nobody'; it has a, b"):
        call(bank)
    assert bank.describe() == before


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda bank: bank.add("b"), KeyError, "already has an expert 'b'"),
        (lambda bank: bank.add("t.0"), ValueError, "cannot be called 't.0'"),
        (lambda bank: bank.add("keys"), ValueError, "cannot be called 'keys'"),
        (lambda bank: bank.add("c", rank=0), ValueError, "'c' cannot have rank 0"),
        (lambda bank: bank.add("c", rank=2, reads="a"), ValueError, "a shared A its own rank"),
        (
            lambda bank: bank.put("a", layer_of(bank), torch.zeros(3, 5), torch.zeros(5, 4)),
            ValueError,
            r"'a' of layers\.0\.lin needs A \(r, 5\) and B \(5, r\), got \(3, 5\) and \(5, 4\)",
        ),
    ],
    ids=["taken", "dot", "reserved", "rank 0", "rank of a shared A", "shapes"],
)
def test_what_cannot_be_is_refused_and_changes_nothing(
    call: Callable[[ExpertBank], None], error: type[Exception], words: str
) -> None:
    bank = make_bank("b")
    before = copy.deepcopy(bank.describe())
    with pytest.raises(error, match=words):
        call(bank)
    assert bank.describe() == before


def test_a_target_that_is_not_linear_is_refused() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Embedding(3, 2))
    with pytest.raises(TypeError, match="1 is a Embedding; the bank adapts linear layers only"):
        ExpertBank(model, BankConfig(target_modules=r"1"), "a")


def test_targets_that_match_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="nowhere"):
        ExpertBank(Tiny(), BankConfig(target_modules="nowhere"), "a")


@pytest.mark.parametrize("config", [{"rank": 0}, {"reads": "b"}])
def test_a_first_expert_without_an_a_is_refused(config: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="a rank of at least 1 and an A of its own"):
        ExpertBank(Tiny(), BankConfig(target_modules=r"layers\.\d+\.lin", **config), "a")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("mix", "case", "error", "words"),
    [
        (routed(None), {}, RuntimeError, "no route is set"),
        (routed(torch.ones(3, 3)), {}, ValueError, "the route has 3 rows but the batch 2"),
        (routed(torch.ones(2, 2)), {}, ValueError, "2 weights but 3 experts are active"),
        (routed(torch.ones(2, 1)), {"ranks": (1, 1, 1)}, ValueError, "1 weights but 3 experts are active"),
        (routed(torch.ones(2, 3)), {"shared": True}, ValueError, "their mix is SharedDown"),
        (PerToken(nn.Linear(5, 2)), {}, ValueError, "2 weights but 3 experts are active"),
        (AllOnes(), {"ranks": (1, 2, 3)}, ValueError, r"of one rank, .* \[1, 2, 3\]"),
        (AllOnes(), {"shared": True}, ValueError, "each with its own A"),
        (SharedDown(lambda z, x: torch.ones(2, 4, 3)), {}, ValueError, "3 experts read several"),
        (
            SharedDown(lambda z, x: torch.ones(2, 4, 2)),
            {"shared": True},
            ValueError,
            "2 weights but 3 experts",
        ),
    ],
)
def test_a_mix_that_does_not_fit_its_experts_says_so(
    mix: nn.Module, case: dict[str, object], error: type[Exception], words: str
) -> None:
    made = Case(**case)  # type: ignore[arg-type]
    made.bank.mix(lambda layer: mix)
    with pytest.raises(error, match=words):
        made.layer(made.x)


# Experts of tasks


def tasks(count: int) -> list[Task]:
    return [Task(index, "again", "", 1, index) for index in range(count)]


def active(bank: ExpertBank) -> list[str]:
    (names,) = {tuple(layer.experts) for layer in bank.layers}
    return list(names)


def learns(bank: ExpertBank) -> set[str]:
    return {name.rpartition(".")[2] for name, weight in bank.named_parameters() if weight.requires_grad}


def test_a_tasks_own_expert_learns_alone_or_on_top_of_the_earlier_ones() -> None:
    bank = ExpertBank(Tiny(), BankConfig(target_modules=r"layers\.\d+\.lin", rank=2), "t0")
    first, second, third = tasks(3)

    assert bank.learn(first) == "t0" == name_of(first)
    assert bank.learn(second) == "t1"
    assert (active(bank), learns(bank), bank.experts) == (["t1"], {"t1"}, ["t0", "t1"])
    bank.learn(third, stacked=True)
    assert (active(bank), learns(bank)) == (["t0", "t1", "t2"], {"t2"})
    bank.remove("t0")
    assert bank.earlier(third) == ["t1"]


def test_answering_chooses_experts_and_leaves_what_learns() -> None:
    bank = ExpertBank(Tiny(), BankConfig(target_modules=r"layers\.\d+\.lin", rank=2), "t0")
    seen = tasks(3)
    for task in seen:
        bank.learn(task)
    bank.remove("t1")

    assert bank.answer(seen) == ["t0", "t2"]
    assert (active(bank), learns(bank)) == (["t0", "t2"], {"t2"})
    bank.answer(seen[:1], where=lambda layer: layer.depth == 0)
    assert [layer.experts for layer in bank.layers] == [["t0"], ["t0", "t2"]]


def test_all_of_a_mixture_learns(tiny: Backbone) -> None:
    recipe = build_recipe({"adapter.rank": 2, "budget": "published"})
    apart = mixture(tiny, recipe, published=3)
    assert {layer.bank_down[name].shape[0] for layer in apart.layers for name in ("e0", "e1", "e2")} == {2}
    assert (active(apart), learns(apart)) == (["e0", "e1", "e2"], {"e0", "e1", "e2"})


def test_a_mixture_on_one_shared_a(tiny: Backbone) -> None:
    recipe = build_recipe({"adapter.rank": 2, "budget": "published"})
    bank = mixture(tiny, recipe, 2, published=8, shared=True)

    assert all(
        list(layer.bank_down) == ["e0"] and list(layer.bank_up) == ["e0", "e1"] for layer in bank.layers
    )
    assert learns(bank) == {"e0", "e1"}


class Keeping(KeepsExperts):
    """A method that is nothing but a bank."""

    def __init__(self, bank: ExpertBank) -> None:
        self.bank = bank


def test_experts_come_back_from_the_state_of_a_method_that_keeps_them() -> None:
    method, again = Keeping(make_bank("b", "c", reads="a")), Keeping(make_bank())
    method.bank.remove("c")

    again.load_state_dict(json.loads(json.dumps(method.state_dict())))

    assert again.bank.describe() == method.bank.describe()
