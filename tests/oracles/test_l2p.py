"""L2P: choice, pull and frequency against Eq. 3 to 5, by a search over all subsets, and against what the public code computes."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from cl_zoo_l2p import L2P, Pool, distance, frequency, nearest
from hypothesis import given
from hypothesis import strategies as st
from oracles.shapes import CASES, SEEDS, Stage, assert_equal, batch, cosine, draws, normal, samples
from torch import Tensor

from cl_zoo.recipe.recipe import Recipe
from cl_zoo.tasks import Sample

POOLS = st.tuples(st.integers(1, 7), st.integers(1, 7)).map(sorted)
"""N and M."""


def gamma(query: Tensor, key: Tensor) -> float:
    return 1 - cosine(query, key)


def best_subset(query: Tensor, keys: Tensor, top: int, h: Tensor) -> set[int]:
    """Eq. 3 and 4 to the letter: of all subsets of the pool the one of the smallest sum of γ · h."""

    def cost(places: tuple[int, ...]) -> float:
        return sum(gamma(query, keys[place]) * float(h[place]) for place in places)

    return set(min(itertools.combinations(range(len(keys)), top), key=cost))


def literal_query(features: Any, sample: Sample) -> Tensor:
    """The image's feature, and the text's where there is none."""
    if sample.image is None:
        return features.texts([sample.prompt])[0]
    return features.images([sample.image])[0]


def built(seed: int, top: int, pool: int, length: int, strength: float = 0.5) -> tuple[L2P, Pool, Stage]:
    """Prompts and keys drawn, in fp64."""
    stage, generator = Stage(seed, 1, 6, 4), draws(seed)
    method = L2P(L2P.Options(pool=pool, length=length, top=top, strength=strength, diversify=True))
    model = method.build_model(stage, Recipe()).double()
    for weight in (model.prompts, model.keys):
        weight.data = normal(generator, *weight.shape)
    return method, model, stage


@CASES
@given(SEEDS, POOLS, st.integers(1, 3))
def test_a_sample_answers_with_the_best_of_all_subsets(seed: int, pool: list[int], length: int) -> None:
    """Eq. 3; what is read are the chosen prompts, nearest key first."""
    method, model, stage = built(seed, pool[0], pool[1], length)
    asked = samples(draws(seed), 4, "asked")
    every = torch.ones(pool[1])

    model.eval().prepare(batch(asked))

    assert method.model is model
    for row, sample in enumerate(asked):
        query = literal_query(stage.features, sample)
        chosen = model.chosen[row].tolist()
        assert set(chosen) == best_subset(query, model.keys, pool[0], every)
        assert chosen == sorted(chosen, key=lambda place: gamma(query, model.keys[place]))
        assert_equal(model.query[row], query)
        read = torch.cat([model.prompts[place] for place in chosen])
        assert_equal(model.soft_prompts()[row], read)


@CASES
@given(SEEDS, POOLS)
def test_while_learning_frequent_prompts_cost_more(seed: int, pool: list[int]) -> None:
    """Eq. 4, with any h."""
    generator = draws(seed)
    keys, queries = normal(generator, pool[1], 5), normal(generator, 6, 5)
    h = torch.rand(pool[1], generator=generator).double()

    chosen = nearest(distance(queries, keys), pool[0], h)

    for row, query in zip(chosen.tolist(), queries, strict=True):
        assert set(row) == best_subset(query, keys, pool[0], h)


@CASES
@given(SEEDS, POOLS, st.floats(0, 3))
def test_the_pull_is_the_second_term_of_equation_5(seed: int, pool: list[int], strength: float) -> None:
    """λ Σ γ for each sample; its gradient to a key is −λ (q/|q| − cos k/|k|) / |k| for every sample that chose it."""
    method, model, stage = built(seed, pool[0], pool[1], 1, strength)
    asked = samples(draws(seed), 3, "asked")
    model.eval().prepare(batch(asked))

    terms = method.loss()
    terms["l2p/pull"].sum().backward()

    assert terms.keys() == {"l2p/pull"}
    slope = torch.zeros_like(model.keys)
    for row, sample in enumerate(asked):
        query, value = literal_query(stage.features, sample), 0.0
        for place in model.chosen[row].tolist():
            key = model.keys[place].detach()
            value += strength * gamma(query, key)
            length = math.sqrt(float((key * key).sum()))
            toward = query / math.sqrt(float((query * query).sum())) - cosine(query, key) * key / length
            slope[place] -= strength * toward / length
        assert_equal(terms["l2p/pull"][row], torch.tensor(value, dtype=torch.float64))
    assert model.keys.grad is not None
    assert_equal(model.keys.grad, slope.detach())


@CASES
@given(SEEDS, POOLS)
def test_for_one_sample_the_public_code_chooses_and_pulls_the_same(seed: int, pool: list[int]) -> None:
    """There: the N keys of highest similarity, then those most often chosen in the batch; loss −λ Σ cos / batch.

    With one sample in the batch the vote changes nothing, and the loss is ours less the constant λN.
    """
    method, model, stage = built(seed, pool[0], pool[1], 1)
    (sample,) = samples(draws(seed), 1, "asked")
    query = literal_query(stage.features, sample)
    model.eval().prepare(batch([sample]))
    similar = [cosine(query, key) for key in model.keys]
    chosen = sorted(range(pool[1]), key=lambda place: -similar[place])[: pool[0]]
    votes = {place: chosen.count(place) for place in range(pool[1])}
    majority = sorted(votes, key=lambda place: -votes[place])[: pool[0]]
    theirs = -0.5 * sum(similar[place] for place in majority) / 1

    assert set(model.chosen[0].tolist()) == set(majority)
    ours = method.loss()["l2p/pull"][0]
    assert_equal(ours - 0.5 * pool[0], torch.tensor(theirs, dtype=torch.float64))


@CASES
@given(st.lists(st.integers(0, 50), min_size=1, max_size=9))
def test_the_frequency_is_the_share_of_choices_with_one_added(counts: list[int]) -> None:
    expected = [(count + 1) / (sum(counts) + len(counts)) for count in counts]

    assert_equal(frequency(torch.tensor(counts).double()), torch.tensor(expected, dtype=torch.float64))


# --- by hand ------------------------------------------------------------------------------------------------------------


def test_the_distance_is_one_minus_the_cosine() -> None:
    """(3, 4) to itself 0, to (4, −3) 1, to (−3, −4) 2, to (1, 0) 1 − 3/5."""
    keys = torch.tensor([[3.0, 4], [4, -3], [-3, -4], [1, 0]])

    got = distance(torch.tensor([[3.0, 4], [30, 40]]), keys)

    torch.testing.assert_close(got, torch.tensor([[0.0, 1, 2, 0.4]] * 2))


def test_the_nearest_keys_are_chosen_nearest_first() -> None:
    assert nearest(torch.tensor([[0.4, 0, 1, 2], [2, 1, 0, 0.4]]), 2).tolist() == [[1, 0], [2, 3]]


def test_prompts_that_earlier_tasks_chose_often_cost_more() -> None:
    """γ = (0.4, 0.5, 1, 2) times h = (0.6, 0.2, 0.11, 0.09) is (0.24, 0.1, 0.11, 0.18): 0, the nearest, comes last."""
    h = torch.tensor([0.6, 0.2, 0.11, 0.09])

    assert nearest(torch.tensor([[0.4, 0.5, 1, 2]]), 3, h).tolist() == [[1, 2, 3]]


def test_where_nothing_was_chosen_yet_equation_4_is_equation_3() -> None:
    """Counts 0, 3, 1 give (1, 4, 2) / 7."""
    torch.testing.assert_close(frequency(torch.tensor([0.0, 3, 1])), torch.tensor([1.0, 4, 2]) / 7)
    assert frequency(torch.zeros(4)).tolist() == pytest.approx([0.25] * 4)
