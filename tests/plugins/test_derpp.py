"""DER++ in a run: what is kept, what it weighs, and what comes back. Its terms: `tests/oracles/test_derpp.py`."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from cl_zoo_derpp import DERpp
from tiny_runs import learnt, weights

from cl_zoo.batches import forward
from cl_zoo.engine.run import Run
from cl_zoo.recipe.recipe import build_recipe
from cl_zoo.tasks import Sample
from cl_zoo.testing import tiny_backbone, tiny_benchmark

BENCHMARK = tiny_benchmark(2, size=8)


def trained(stack: str, folder: Path, root: Path, order: str = "CS", epochs: int = 1) -> Run:
    recipe = build_recipe(BENCHMARK.recipe, {"adapter.dropout": 0, "epochs": epochs})
    return learnt(Run, stack, BENCHMARK.stream(order), tiny_backbone(folder), recipe, root / stack / order)


def test_the_logits_are_those_of_the_model_that_has_just_learnt_the_task(
    tiny_folder: Path, tmp_path: Path
) -> None:
    """Each sample alone in evaluation mode gives the same, at its answer tokens."""
    run = trained("derpp[samples=3]", tiny_folder, tmp_path, "C")
    method = run.plugins.method
    assert isinstance(method, DERpp)

    assert len(method.memory) == len(method.logits) == 3
    for sample, kept in zip(method.memory, method.logits, strict=True):
        batch = run.backbone.batch([sample], answers=True)
        with torch.no_grad():
            logits = forward(run.model.eval(), batch).logits[0][batch.answer_mask[0]]
        torch.testing.assert_close(kept, logits, rtol=1e-4, atol=1e-4)


def test_old_samples_join_a_task_and_logits_are_counted_for_continuing(
    tiny_folder: Path, tmp_path: Path
) -> None:
    run = trained("derpp[samples=3,top=5]", tiny_folder, tmp_path)
    method = run.plugins.method

    assert [task.rehearsed for task in run.ledger.tasks] == [0, 3]
    assert [task.steps for task in run.ledger.tasks] == [2, 2]
    assert [measured["derpp/memory"] for measured in run.measured] == [3, 6]
    tokens = sum(len(one) for one in method.logits)
    pixels = 6 * 16 * 16 * 3
    assert tokens >= 6
    assert run.ledger.stored["continuing"]["plugins"] == pixels + 2 * 5 * tokens  # values and words
    assert set(run.ledger.stored["inference"]) == {"adapters", "projector"}


def test_without_logits_and_with_labels_once_it_is_replay_bit_for_bit(
    tiny_folder: Path, tmp_path: Path
) -> None:
    """In the second epoch the model has moved from where the logits were taken."""
    replayed, same, other = (
        weights(trained(stack, tiny_folder, tmp_path, epochs=2).model)
        for stack in (
            "replay[samples=3]",
            "derpp[alpha=0,beta=1,samples=3]",
            "derpp[alpha=9,beta=1,samples=3]",
        )
    )

    assert replayed.keys() == same.keys()
    assert all(torch.equal(replayed[name], same[name]) for name in replayed)
    assert not all(torch.equal(replayed[name], other[name]) for name in replayed)


def test_a_state_comes_back() -> None:
    method = DERpp(DERpp.Options(top=2))
    method._keep(Sample("1", None, "a", "b"), torch.tensor([[1.0, 3.0, 2.0]]))
    again = DERpp(DERpp.Options(top=2))

    again.load_state_dict(method.state_dict())

    assert list(again.rehearse()) == list(method.rehearse())
    assert torch.equal(again.logits[0], method.logits[0])
    assert torch.equal(again.words[0], method.words[0])


def test_options_say_what_is_out_of_range() -> None:
    for options in ({"samples": 0}, {"alpha": -1}, {"beta": -1}, {"top": 0}):
        with pytest.raises(ValueError, match="validation error"):
            DERpp.Options(**options)
