"""The budget rule against counts made by hand and against its own inequality."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from cl_zoo.backbones.backbone import Backbone
from cl_zoo.nn.budget import Learning, Mixture, Widths, budget, learning, mixture_of, rank_of_ups, widths
from cl_zoo.nn.layer import BankLayer
from cl_zoo.nn.placing import adapters, mixture
from cl_zoo.planning.sizes import shapes
from cl_zoo.recipe.budget import LEAST, budget_notes
from cl_zoo.recipe.recipe import Recipe, build_recipe

INPUTS, OUTPUTS = 32 * 35_584, 32 * 42_496
"""Of the seven linears of a layer of LLaVA-1.5-7B, over its 32 layers."""


@pytest.fixture(scope="module")
def llava() -> Backbone:
    return shapes("llava-1.5-7b")


def recipe(rank: int, kind: str = "parameters") -> Recipe:
    return build_recipe({"adapter.rank": rank, "budget": kind})


def test_the_measure_is_one_lora_on_all_linears_of_the_language_model(
    llava: Backbone, tiny: Backbone
) -> None:
    """Two decoder layers of the tiny model have Σ d_in = 240 and Σ d_out = 256 each; vision tower and projector do not count."""
    assert widths(llava) == Widths(INPUTS, OUTPUTS, 32 * 7)
    assert budget(llava, recipe(8)) == 8 * 2_498_560
    assert widths(tiny) == Widths(2 * 240, 2 * 256, 2 * 7)


def test_the_measure_is_the_same_once_the_bank_stands_on_the_linears(tiny: Backbone) -> None:
    before = budget(tiny, recipe(4))
    bank = adapters(tiny, recipe(4))

    assert budget(tiny, recipe(4)) == before
    assert sum(weight.numel() for weight in bank.parameters() if weight.requires_grad) == before


def test_experts_with_an_a_each_by_hand(llava: Backbone) -> None:
    """Rank 16 is 1,249,280 a layer. Three experts: (1,249,280 − 3·35,584) / (3·78,080) = 4.9; four: 3.5, so three."""
    assert mixture_of(llava, recipe(16), None, published=8) == Mixture(3, 4)
    assert mixture_of(llava, recipe(16), 4, published=8) == Mixture(4, 3)


def test_experts_on_one_a_by_hand(llava: Backbone) -> None:
    """Five: (1,249,280 − 5·35,584) / (35,584 + 5·42,496) = 4.3; six: 3.6, so five."""
    assert mixture_of(llava, recipe(16), None, published=8, shared=True) == Mixture(5, 4)
    assert mixture_of(llava, recipe(64), None, published=8, shared=True) == Mixture(8, 12)


def test_an_expert_whose_b_alone_trains_by_hand(llava: Backbone) -> None:
    """Rank 8 is 624,640 a layer: 624,640 / 42,496 = 14.7."""
    assert rank_of_ups(llava, recipe(8)) == 14
    assert rank_of_ups(llava, recipe(8, "published")) == 8


def test_what_a_task_trains_beside_its_experts_counts(llava: Backbone) -> None:
    """Two experts of rank 3 and their routers leave 32 · (624,640 − 6·78,080 − 2·35,584) = 2,719,744 of rank 8."""
    assert mixture_of(llava, recipe(8), 2, published=8, beside=2_719_744) == Mixture(2, 3)
    left = 32 * (624_640 - 6 * 78_080 - 2 * 35_584)
    assert mixture_of(llava, recipe(8), 2, published=8, beside=left) == Mixture(2, 3)
    assert mixture_of(llava, recipe(8), 2, published=8, beside=left + 1) == Mixture(2, 2)


def test_routers_that_do_not_learn_cost_nothing(llava: Backbone) -> None:
    """Four experts of rank 4 are exactly rank 16; with their routers, 4 · 35,584 a layer, they would have rank 3."""
    assert mixture_of(llava, recipe(16), None, published=8, routers=False) == Mixture(4, 4)
    assert mixture_of(llava, recipe(16), 4, published=8) == Mixture(4, 3)


def test_where_no_number_of_experts_is_fed_the_fewest_remain(llava: Backbone) -> None:
    assert mixture_of(llava, recipe(1), None, published=8) == Mixture(2, 1)
    assert mixture_of(llava, recipe(8), None, published=8, shared=True, fewest=3) == Mixture(3, 3)


def test_published_gives_each_of_the_papers_experts_the_rank_of_the_recipe(llava: Backbone) -> None:
    assert mixture_of(llava, recipe(16, "published"), None, published=8) == Mixture(8, 16)
    assert mixture_of(llava, recipe(16, "published"), 3, published=8) == Mixture(3, 16)


@settings(max_examples=60, deadline=None)
@given(
    rank=st.integers(1, 160),
    published=st.integers(2, 12),
    shared=st.booleans(),
    asked=st.none() | st.integers(1, 12),
)
def test_the_rank_is_the_largest_that_fits_and_the_number_the_largest_that_is_fed(
    rank: int, published: int, shared: bool, asked: int | None
) -> None:
    llava = shapes_once()
    found = mixture_of(llava, recipe(rank), asked, published=published, shared=shared)

    def cost(experts: int, each: int) -> int:
        downs = 1 if shared else experts
        return each * (downs * INPUTS + experts * OUTPUTS) + experts * INPUTS

    most = rank * (INPUTS + OUTPUTS)
    assert cost(found.experts, found.rank) <= most or found.rank == 1
    assert cost(found.experts, found.rank + 1) > most
    if asked is None:
        fed = [n for n in range(3, published + 1) if cost(n, LEAST) <= most]
        assert found.experts == max(fed, default=2)


def shapes_once() -> Backbone:
    if not kept:
        kept.append(shapes("llava-1.5-7b"))
    return kept[0]


kept: list[Backbone] = []


def test_a_mixture_is_placed_as_the_rule_says(tiny: Backbone) -> None:
    """Rank 32 is 32·992 = 31,744. Seven experts: (31,744 − 7·480) / (7·992) = 4.1; eight: 3.5."""
    bank = mixture(tiny, recipe(32), published=8)

    assert bank.experts == [f"e{place}" for place in range(7)]
    assert learning(bank) == Learning(7, 4, 28)


def test_what_learns_counts_a_shared_a_once_and_frozen_experts_not_at_all(tiny: Backbone) -> None:
    bank = mixture(tiny, recipe(4, "published"), 3, published=8, shared=True)
    assert learning(bank) == Learning(3, 4, 4)

    bank.add("wide", rank=6)
    bank.use(["e0", "wide"], trainable=["wide"])
    assert learning(bank) == Learning(1, 6, 6)
    bank.use(["e0", "wide"])
    assert learning(bank) == Learning()


def test_what_learns_is_told_of_the_layer_where_it_is_least(tiny: Backbone) -> None:
    bank = mixture(tiny, recipe(4, "published"), 2, published=8)
    bank.use(["e0"], trainable=["e0"], where=lambda layer: layer.depth == 1)

    assert learning(bank) == Learning(1, 4, 4)
    assert learning(nn.Linear(2, 2)) == Learning()


@pytest.mark.parametrize(
    ("trained", "shape", "notes"),
    [
        ({"adapters": 1000, "projector": 77}, {"experts": 1, "rank": 2, "update_rank": 2}, ()),
        ({"adapters": 1100}, {"experts": 1, "rank": 8, "update_rank": 8}, ()),
        ({"adapters": 4000, "routers": 900}, {}, ("parameters × 4.9",)),
        ({"prompts": 11}, {}, ("parameters × 0.011",)),
        (
            {"adapters": 1000},
            {"experts": 2, "rank": 4, "update_rank": 8},
            ("2 experts of rank 4, update rank 8",),
        ),
        (
            {"adapters": 1000},
            {"experts": 8, "rank": 1, "update_rank": 8},
            ("8 experts of rank 1, update rank 8 (starved: below 4)",),
        ),
    ],
)
def test_a_reader_is_told_what_is_not_the_budget_and_how_experts_share_it(
    trained: dict[str, int], shape: dict[str, int], notes: tuple[str, ...]
) -> None:
    assert budget_notes(trained, 1000, shape) == notes


def test_a_recipe_may_adapt_attention_or_the_mlp_alone(llava: Backbone, tiny: Backbone) -> None:
    """Of LLaVA-1.5-7B 32 layers: attention 4 · 8,192 · 32 = 1,048,576 a rank, the MLP 3 · 15,104 · 32 = 1,449,984, together 2,498,560."""
    ranks = {
        kind: build_recipe({"adapter.rank": 1, "adapter.targets": kind})
        for kind in ("all", "attention", "mlp")
    }
    counted = {kind: budget(llava, one) for kind, one in ranks.items()}
    bank = adapters(tiny, ranks["mlp"])

    assert counted == {"all": 2_498_560, "attention": 1_048_576, "mlp": 1_449_984}
    assert {
        path.rpartition(".")[2] for path, module in bank.named_modules() if isinstance(module, BankLayer)
    } == {
        "gate_proj",
        "up_proj",
        "down_proj",
    }
