"""PGP: what is seen of a task, where spaces come from and when they hold, what it shares with L2P."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from cl_zoo_pgp import PGP, HeldPool, seen
from tiny_runs import Watched, learnt

from cl_zoo.backbones.backbone import Backbone
from cl_zoo.batches import Batch
from cl_zoo.recipe.recipe import build_recipe
from cl_zoo.testing import tiny_backbone, tiny_benchmark

BENCHMARK = tiny_benchmark(3, size=8)
SMALL = {"pool": 6, "length": 2, "top": 2, "components": 3, "key_components": 2}


def built(backbone: Backbone, **options: Any) -> tuple[PGP, HeldPool]:
    torch.manual_seed(0)
    method = PGP(PGP.Options(**{**SMALL, **options}))
    return method, method.build_model(backbone, build_recipe())


def batches(backbone: Backbone, task: int = 0) -> list[Batch]:
    train = BENCHMARK.tasks[task].train
    return [backbone.batch(train[:5], answers=True), backbone.batch(train[5:8], answers=True)]


def trained(text: str, folder: Path, root: Path) -> Watched:
    recipe = build_recipe(BENCHMARK.recipe, {"lr.prompts": 0.01, "lr.keys": 0.01})
    return learnt(Watched, text, BENCHMARK.tasks[:2], tiny_backbone(folder), recipe, root)


@torch.no_grad()
def test_what_is_seen_of_a_task_is_every_real_token_and_every_query(tiny: Backbone) -> None:
    """Token by token, each sample in a batch of its own and so without padding; questions of three tasks differ in length."""
    _, model = built(tiny)
    mixed = [task.train[place] for task in BENCHMARK.tasks for place in range(3)]
    inputs, queries = torch.zeros(32, 32), torch.zeros(model.keys.shape[1], model.keys.shape[1])
    for sample in mixed:
        alone = tiny.batch([sample], answers=True)
        states: list[torch.Tensor] = []
        handle = tiny.layers[0].register_forward_pre_hook(lambda _, x, s=states: s.append(x[0]))
        tiny.model(**alone.inputs)
        handle.remove()
        for x in states[0][0]:
            inputs += torch.outer(x, x)
        (q,) = model.ask(alone)
        queries += torch.outer(q, q)

    found = seen(model, tiny, [tiny.batch(mixed, answers=True)], 100)

    torch.testing.assert_close(found[0], inputs, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found[1], queries, rtol=1e-4, atol=1e-4)


def test_spaces_hold_from_the_next_task_on(tiny: Backbone) -> None:
    method, model = built(tiny)
    method.before_task()

    measured = method.after_task(batches(tiny), tiny)

    assert model.spaces == {}
    assert {part: tuple(space.shape) for part, space in method.spaces.items()} == {
        "prompts": (32, 3),
        "keys": (model.keys.shape[1], 2),
    }
    assert all(1 <= measured[f"pgp/{part}"] <= space.shape[1] for part, space in method.spaces.items())
    method.before_task()
    assert model.spaces.keys() == {"prompts", "keys"}


def test_a_later_task_adds_directions_and_loses_none(tiny: Backbone) -> None:
    method, _ = built(tiny, prompts=0.9, keys=0.99)
    method.after_task(batches(tiny), tiny)
    first = dict(method.spaces)

    method.after_task(batches(tiny, 1), tiny)

    for part, space in method.spaces.items():
        used = space[:, space.abs().amax(0) > 0]
        torch.testing.assert_close(used.T @ used, torch.eye(used.shape[1]), rtol=0, atol=1e-5)
        torch.testing.assert_close(used @ (used.T @ first[part]), first[part], rtol=0, atol=1e-5)


def test_components_side_by_side_hold_more_than_their_sum(tiny: Backbone) -> None:
    """Both are kept: what a share near one leaves of a main direction of the prompts is next to nothing."""
    left = {}
    for space in ("sum", "joint"):
        torch.manual_seed(0)
        method = PGP(PGP.Options(**{**SMALL, "space": space, "prompts": 0.999999}))
        model = method.build_model(tiny, build_recipe())
        model.prompts.data *= 10  # as large as all inputs together
        method.after_task(batches(tiny), tiny)
        main = torch.linalg.svd(model.prompts.detach().flatten(0, 1)).Vh[0]
        F = method.spaces["prompts"]
        left[space] = float((main - F @ (F.T @ main)).norm())

    assert left["joint"] < 0.05 < left["sum"]


def test_sizes_are_the_same_without_values(tiny: Backbone) -> None:
    method, _ = built(tiny)
    method.after_task(batches(tiny), tiny)
    method.after_task(batches(tiny, 1), tiny)
    shapes = {part: space.shape for part, space in method.spaces.items()}

    tiny.model.to("meta")
    counted, model = built(tiny)
    model.to("meta")
    for _ in range(2):
        assert counted.after_task([], tiny) == {}

    assert {part: space.shape for part, space in counted.spaces.items()} == shapes
    assert {space.device.type for space in counted.spaces.values()} == {"meta"}


def test_a_state_comes_back(tiny: Backbone, tiny_folder: Path) -> None:
    method, _ = built(tiny)
    method.after_task(batches(tiny), tiny)
    again, model = built(tiny_backbone(tiny_folder))

    again.load_state_dict(method.state_dict())
    again.before_task()

    assert all(torch.equal(model.spaces[part], space) for part, space in method.spaces.items())


def test_without_projection_it_is_l2p_bit_for_bit_and_with_it_from_the_second_task_on_another(
    tiny_folder: Path, tmp_path: Path
) -> None:
    plain = trained("l2p", tiny_folder, tmp_path / "l2p").kept
    off = trained("pgp[prompts=0,keys=0]", tiny_folder, tmp_path / "off").kept
    on = trained("pgp", tiny_folder, tmp_path / "on").kept

    for theirs, ours in zip(plain, off, strict=True):
        assert theirs.keys() == ours.keys()
        assert all(torch.equal(weight, ours[name]) for name, weight in theirs.items())
    assert all(torch.equal(weight, on[0][name]) for name, weight in plain[0].items())
    assert not torch.equal(on[1]["prompts"], plain[1]["prompts"])
    assert not torch.equal(on[1]["keys"], plain[1]["keys"])


def test_prompts_and_keys_move_less_along_what_old_tasks_hold(tiny_folder: Path, tmp_path: Path) -> None:
    """A share of the second task's movement; the optimiser's scaling leaves some."""
    shares = {}
    run = trained("pgp", tiny_folder, tmp_path / "held")
    spaces = {
        "prompts": run.plugins.method.spaces["prompts"][:, :1],
        "keys": run.plugins.method.spaces["keys"][:, :1],
    }
    for text, kept in (("held", run.kept), ("free", trained("l2p", tiny_folder, tmp_path / "free").kept)):
        for part, space in spaces.items():
            moved = (kept[1][part] - kept[0][part]).flatten(0, -2)
            shares[text, part] = float((moved @ space).norm() / moved.norm())

    for part in spaces:
        assert shares["held", part] < shares["free", part]


def test_options_say_what_is_out_of_range() -> None:
    for options in ({"prompts": 1.0}, {"keys": -0.1}, {"top": 11}, {"components": 0}, {"space": "both"}):
        with pytest.raises(ValueError, match="validation error"):
            PGP.Options(**options)
