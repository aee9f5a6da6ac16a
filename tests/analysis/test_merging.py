"""What sums of LoRAs keep of tasks learnt apart, on tiny runs, and where in a model own LoRAs are needed."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import cl_zoo
from cl_zoo.analysis.apart import Apart, Asked, everywhere, kept, loras, nobody
from cl_zoo.analysis.layered import SEQUENCE, as_rows, grouped, layered, within
from cl_zoo.analysis.layered import questions_to as layered_questions
from cl_zoo.analysis.merging import means, merging, shares
from cl_zoo.analysis.merging import questions_to as merged_questions
from cl_zoo.cli.main import app
from cl_zoo.errors import OptionError

NAMES = ("chart", "icon", "map")
TINY: dict[str, Any] = {
    "benchmark": "cl_zoo.testing:load_tiny",
    "recipe": {"lr.adapters": 2e-2, "epochs": 8, "adapter.rank": 4},
    "device": "cpu",
}
ORDERS = {"t0": ["colour"], "t1": ["side"], SEQUENCE: ["colour", "side"]}


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def apart(out: Path) -> Apart:
    return Apart("finetune", ORDERS, out=out, **TINY)


def scored(pair: float, whole: float) -> dict[Any, float]:
    """The base has 20 and each task alone 100, but the map, which learnt nothing; pairs and the sum of all have what is said."""
    scores: dict[Any, float] = {("base", n): 20.0 for n in range(3)}
    scores |= {("alone", n): (25.0 if n == 2 else 100.0) for n in range(3)}
    scores |= {("pair", *two): pair for two in itertools.permutations(range(3), 2)}
    return scores | {("all", n, factor): factor * whole for n in range(3) for factor in (1.0, 0.5)}


def test_a_share_of_the_gain_is_counted_from_the_base() -> None:
    rows = shares(scored(pair=80.0, whole=60.0), NAMES, (1.0, 0.5))

    assert means(rows) == {("pair", 1.0): 75.0, ("all", 1.0): 50.0, ("all", 0.5): 12.5}


def test_a_task_that_learnt_nothing_alone_has_no_share() -> None:
    rows = shares(scored(pair=80.0, whole=60.0), NAMES, (1.0, 0.5))

    assert {row["kept"] for row in rows if row["task"] == "map"} == {None}
    assert [row["kept"] for row in rows if row["with"] == "map"] == [75.0, 75.0]
    assert kept(15.0, 10.0, 20.0) == 50.0
    assert kept(15.0, 10.0, 19.0) is None


def test_layers_are_grouped_as_equally_as_may_be() -> None:
    assert grouped(3) == [range(1), range(1, 2), range(2, 3)]
    assert [len(part) for part in grouped(32)] == [4] * 8
    assert grouped(5, 2) == [range(2), range(2, 5)]
    for wrong in (0, 6):
        with pytest.raises(OptionError, match="choose 1 to 5"):
            grouped(5, wrong)


def test_a_lora_is_what_its_run_adds_to_each_layer(out: Path, apart: Apart) -> None:
    """s · B A of the run's own model, and of the expert in the bank beside the others."""
    result = cl_zoo.run(
        "finetune", out=out, **{**TINY, "recipe": {**TINY["recipe"], "projector": "frozen"}}, order="C"
    )
    bank: Any = result.restored.model
    found = loras(result)

    for layer in bank.layers:
        down, up = found[layer.path]
        beside = next(one for one in apart.bank.layers if one.path == layer.path)
        assert float(layer.delta().abs().max()) > 0
        torch.testing.assert_close(up @ down, layer.delta())
        torch.testing.assert_close(beside.delta(["t0"]), layer.delta())


def test_alone_an_expert_scores_what_its_run_scores_and_a_sequence_its_last_row(
    out: Path, apart: Apart
) -> None:
    settings = {**TINY, "recipe": {**TINY["recipe"], "projector": "frozen"}, "out": out}
    runs = [cl_zoo.run("finetune", order=order, **settings) for order in ("C", "S", "CS")]
    base = cl_zoo.run("zeroshot", **settings)

    scores = apart.scores(layered_questions(apart.tasks, grouped(2), 1.0))

    assert [scores["own", 0], scores["own", 1]] == [runs[0].matrix.last, runs[1].matrix.last]
    assert [scores[SEQUENCE, n] for n in (0, 1)] == list(runs[2].matrix.scores[-1])
    assert [scores["base", n] for n in (0, 1)] == list(base.matrix.scores[-1])
    assert scores["own", 1] > scores["base", 1]


def test_each_layer_answers_with_the_chosen_experts_times_the_factor(apart: Apart) -> None:
    apart.choose(within(range(1, 2), "t1", ["t0", "t1"], 0.5))
    x = torch.randn(2, apart.bank.layers[0].in_features)

    for layer in (one for one in apart.bank.layers if one.in_features == x.shape[1]):
        delta = layer.delta(["t1"]) if layer.depth == 1 else 0.5 * layer.delta(["t0", "t1"])
        torch.testing.assert_close(layer(x) - layer.base_layer(x), x @ delta.T, rtol=1e-4, atol=1e-5)


def test_questions_may_be_fewer_than_the_test_split_has(out: Path) -> None:
    few = Apart("finetune", {"t0": ["colour"]}, questions=2, out=out, **TINY)

    assert [len(task.test) for task in few.tasks] == [2]
    assert few.scores([Asked("base", nobody, few.tasks[0])])["base"] in (0.0, 50.0, 100.0)


def test_the_sum_of_one_is_its_own(apart: Apart) -> None:
    """Added up with nothing beside it, or times 1, a LoRA keeps all."""
    (task, *_) = apart.tasks
    asked = [
        Asked(n, choose, task)
        for n, choose in enumerate((everywhere(["t0"]), within(range(2), "t0", ["t1"], 1.0)))
    ]

    assert len(set(apart.scores(asked).values())) == 1


def test_runs_are_remembered_and_told(out: Path, apart: Apart) -> None:
    heard: list[dict[str, Any]] = []
    found = merging("finetune", scales=(1.0,), watch=heard.append, out=out, **TINY)

    assert not [event for event in heard if event.get("phase") == "train"]
    assert [event["event"] for event in heard if event["event"] != "progress"] == ["finished", "finished"]
    assert len(found.rows) == 2 * 4
    assert {(row["sum"], row["scale"]) for row in found.rows} == {
        ("base", 1.0),
        ("alone", 1.0),
        ("pair", 1.0),
        ("all", 1.0),
    }
    # of two tasks the sum of both is the sum of all
    assert [row["score"] for row in found.rows if row["sum"] == "pair"] == [
        row["score"] for row in found.rows if row["sum"] == "all"
    ]
    assert len(found.figure().axes) == 2


def test_layers_are_told_by_group_and_way(out: Path) -> None:
    found = layered("finetune", groups=1, out=out, **TINY)

    by_way = {(row["task"], row["way"]): row["score"] for row in found.rows}
    assert by_way["side", "own here"] == by_way["side", "own"]  # one group holds all layers
    assert "layers 0 to 1, the top" in found.sentence
    assert len(found.figure().axes[0].lines) == 6


def test_rows_of_layers_keep_shares_of_the_gain() -> None:
    asked = {("base", 0): 10.0, ("own", 0): 90.0, ("merged", 0): 50.0, (SEQUENCE, 0): 30.0}
    rows = as_rows({**asked, ("own here", 0, 0): 70.0, ("foreign", 0, 0): 10.0}, ["chart"], [range(4, 6)])

    assert [(row["way"], row["low"], row["high"], row["kept"]) for row in rows] == [
        ("base", None, None, None),
        ("own", None, None, 100.0),
        ("merged", None, None, 50.0),
        (SEQUENCE, None, None, 25.0),
        ("own here", 4, 5, 75.0),
        ("foreign", 4, 5, 0.0),
    ]


def test_every_pair_and_every_factor_is_asked_about(apart: Apart) -> None:
    asked = merged_questions(apart.tasks, (1.0, 0.5))
    answering = {one.key: one.choose(apart.bank.layers[0]) for one in asked}

    assert len(asked) == len(answering) == 2 * (2 + 1 + 2)
    assert answering["base", 1] == ((), 1.0)
    assert answering["alone", 1] == (["t1"], 1.0)
    assert answering["pair", 1, 0] == (["t1", "t0"], 1.0)
    assert answering["all", 1, 0.5] == (["t0", "t1"], 0.5)
    assert [one.task.name for one in asked if one.key[1] == 1] == ["side"] * 5


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda out: merging("finetune", order="C", out=out, **TINY), "name two or more"),
        (lambda out: merging("moelora", out=out, **TINY), "decides for each input how it mixes"),
    ],
    ids=["one task", "no lora"],
)
def test_what_cannot_be_added_up_is_refused(out: Path, call: Callable[[Path], Any], says: str) -> None:
    with pytest.raises(OptionError, match=says):
        call(out)


def test_the_commands_print_json(out: Path, apart: Apart) -> None:
    flags = ["--benchmark", TINY["benchmark"], "--out", str(out), "--device", "cpu", "--json"]
    for key, value in TINY["recipe"].items():
        flags += ["--set", f"{key}={value}"]

    merge = CliRunner().invoke(app, ["analyze", "merge", "finetune", "--scale", "0.5", *flags])
    layers = CliRunner().invoke(app, ["analyze", "layers", "finetune", "--groups", "1", *flags])

    assert merge.exit_code == layers.exit_code == 0, merge.output + layers.output
    assert {row["scale"] for row in json.loads(merge.stdout)["rows"] if row["sum"] == "all"} == {0.5}
    assert {row["way"] for row in json.loads(layers.stdout)["rows"]} >= {"own here", "foreign"}
