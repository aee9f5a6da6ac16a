"""The objective of a step: what a term counts in it, and a gradient that is the same however few operations it takes."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from cl_zoo.batches import IGNORED, Batch
from cl_zoo.engine.objective import backward, reduce_term, weights_alone
from cl_zoo.errors import PluginError
from cl_zoo.nn.products import Down
from cl_zoo.tasks import Sample
from cl_zoo.testing import tiny_benchmark

SAMPLES: tuple[Sample, ...] = tuple(tiny_benchmark(3).tasks[2].train)


def fake_batch() -> Batch:
    """Two samples, of two and of one answer token."""
    targets = torch.tensor([[5, 6], [IGNORED, 7]])
    return Batch((SAMPLES[0], SAMPLES[1]), {}, targets)


@pytest.mark.parametrize(
    ("term", "share"),
    [
        (torch.tensor(6.0), 6.0 / 3),  # once per step, over three forwards
        (torch.tensor([1.0, 4.0]), 5.0 / 8),  # mean over eight samples
        (
            torch.tensor([[1.0, 2.0], [100.0, 4.0]]),
            7.0 / 20,
        ),  # mean over twenty answer tokens; the 100 is off the answer
    ],
)
def test_a_term_is_averaged_by_its_shape(term: Tensor, share: float) -> None:
    got = reduce_term("mine", term, fake_batch(), samples=8, answer_tokens=20.0, forwards=3)

    assert got.item() == pytest.approx(share)


def test_a_value_off_the_answer_does_not_count_even_where_it_is_not_a_number() -> None:
    term = torch.tensor([[1.0, 2.0], [math.nan, 4.0]])

    assert reduce_term(
        "mine", term, fake_batch(), samples=2, answer_tokens=3.0, forwards=1
    ).item() == pytest.approx(7 / 3)


@pytest.mark.parametrize("term", [torch.zeros(3), torch.zeros(2, 3), torch.zeros(1, 2, 2), torch.zeros(2, 1)])
def test_another_shape_is_refused_by_the_terms_name(term: Tensor) -> None:
    with pytest.raises(
        PluginError, match=r"'mine' has shape \(.*\); return a scalar, \(batch,\) or \(batch, K\)"
    ):
        reduce_term("mine", term, fake_batch(), samples=2, answer_tokens=3.0, forwards=1)


def test_a_number_is_no_term() -> None:
    with pytest.raises(PluginError, match="'mine' is a float; return a tensor"):
        reduce_term("mine", 0.5, fake_batch(), samples=2, answer_tokens=3.0, forwards=1)  # type: ignore[arg-type]


# --- gradients ------------------------------------------------------------------------------------------------------


class Two(nn.Module):
    """Two weights that a forward uses, and one that it does not."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.down, self.up, self.key = (nn.Parameter(torch.randn(3, 4)) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        return (Down.apply(x, self.down) * Down.apply(x, self.up)).sin()


X = torch.arange(8.0).view(2, 4) / 8

PENALTIES: dict[str, Callable[[Two, Tensor], Tensor]] = {
    "of a weight": lambda model, y: (model.down - 1).pow(2).sum(),
    "of two weights in one vector": lambda model, y: torch.cat([model.down, model.up]).flatten().pow(3).sum(),
    "a plain sum": lambda model, y: model.up.sum(),
    "of a weight that the forward does not use": lambda model, y: model.key.sum(),
    "recomputed": lambda model, y: checkpoint(lambda w: w.sin().sum(), model.up, use_reentrant=False),
    "of a function of its own": lambda model, y: Down.apply(X, model.down).pow(2).sum(),
    "recomputed by a pass of its own": lambda model, y: checkpoint(
        lambda w: w.sin().sum(), model.up, use_reentrant=True
    ),
    "of what the forward gave": lambda model, y: y.square().mean(),
    "of both": lambda model, y: y.square().mean() * model.up.sum(),
    "of nothing that learns": lambda model, y: torch.tensor(2.0),
}
ALONE = list(PENALTIES)[:6]


def shares(model: Two, *names: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The task's own loss and these penalties, as shares and as they were given."""
    y = model(X)
    terms = {"task": y, **{name: PENALTIES[name](model, y) for name in names}}
    return {name: term.sum() / 3 for name, term in terms.items()}, terms


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize(
    "names",
    [(), *[(name,) for name in PENALTIES], ("of a weight", "a plain sum", "of both"), tuple(PENALTIES)],
)
def test_the_gradient_is_that_of_one_backward_pass(names: tuple[str, ...], times: int) -> None:
    one, other = Two(), Two()
    for _ in range(times):  # micro-batches add up
        torch.stack([*shares(one, *names)[0].values()]).sum().backward()
        backward(*shares(other, *names))
    for name, weight in one.named_parameters():
        found = other.get_parameter(name).grad
        assert (found is None) == (weight.grad is None), name
        if found is not None:
            torch.testing.assert_close(found, weight.grad, rtol=1e-6, atol=1e-7)
            found.mul_(2)  # whoever clips a gradient may write on it


def test_of_one_penalty_the_gradient_has_the_same_bits() -> None:
    """a + b is b + a."""
    one, other = Two(), Two()
    torch.stack([*shares(one, "of a weight")[0].values()]).sum().backward()
    backward(*shares(other, "of a weight"))
    assert torch.equal(one.down.grad, other.down.grad)


@pytest.mark.parametrize("name", PENALTIES)
def test_what_is_a_function_of_weights_alone_is_found_by_what_it_was_computed_from(name: str) -> None:
    model = Two()
    y = model(X)
    found = weights_alone(PENALTIES[name](model, y), y)
    assert (found is not None) == (name in ALONE)
    if name == "of two weights in one vector":
        assert {id(weight) for weight in found or ()} == {id(model.down), id(model.up)}


def test_a_penalty_adds_to_all_gradients_in_one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    model, calls = Two(), []
    real = torch._foreach_add_
    monkeypatch.setattr(torch, "_foreach_add_", lambda *lists: (calls.append(len(lists[0])), real(*lists)))
    backward(*shares(model, "of two weights in one vector", "a plain sum"))
    assert calls == [2]


def test_terms_may_share_what_they_are_computed_from() -> None:
    """Keys are made unit vectors once; one term pulls each sample's towards it, another keeps them apart."""

    def sharing(model: Two) -> dict[str, Tensor]:
        y = model(X)
        keys = nn.functional.normalize(model.key, dim=-1)
        pull = 1 - (keys[:2] * X).sum(-1)
        return {"task": y, "apart": (keys @ keys.T).square().sum(), "bound": keys.sum(), "pull": pull}

    one, other = Two(), Two()
    torch.stack([term.sum() for term in sharing(one).values()]).sum().backward()
    given = sharing(other)
    backward({name: term.sum() for name, term in given.items()}, given)
    torch.testing.assert_close(other.key.grad, one.key.grad, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("waits", ["register_hook", "register_post_accumulate_grad_hook"])
def test_who_waits_for_the_gradient_of_a_weight_gets_the_whole(waits: str) -> None:
    seen: list[list[Tensor]] = [[], []]
    models = Two(), Two()
    for model, found in zip(models, seen, strict=True):
        take: Callable[[Tensor], None] = lambda given, found=found: found.append(  # type: ignore[misc]  # noqa: E731
            (given if waits == "register_hook" else given.grad).clone()
        )
        getattr(model.down, waits)(take)
    torch.stack([*shares(models[0], "of a weight")[0].values()]).sum().backward()
    backward(*shares(models[1], "of a weight"))
    assert len(seen[1]) == len(seen[0]) == 1
    torch.testing.assert_close(seen[1][0], seen[0][0])


def test_a_term_per_sample_is_never_taken_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only a scalar says of itself that it is a function of weights."""
    model = Two()
    y = model(X)
    given = {"task": y, "keys": model.key[:2, 0] ** 2}
    monkeypatch.delattr(torch.autograd, "grad")
    backward({name: term.sum() for name, term in given.items()}, given)
    assert model.key.grad is not None
    assert model.key.grad[0, 0] == 2 * model.key.detach()[0, 0]
