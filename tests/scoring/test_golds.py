"""Golds put through their own rule: what no model can answer rightly is found, for every rule and for any text."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cl_zoo.scoring.captions import characters, tokenize
from cl_zoo.scoring.domains import FORMULAS
from cl_zoo.scoring.golds import Golds, Mismatch, golds
from cl_zoo.scoring.judges import Expected
from cl_zoo.scoring.rules import RULES
from cl_zoo.scoring.scorer import score_file

WORDS = st.sampled_from(
    ["left", "Left", "B", "b", "(B)", "B.", "F", "the", "Unanswerable", "U.S.", "2.0", ".", "?", "İ", "ß"]
)
SPACE = st.sampled_from(["", " ", "\n", "\u00a0"])
TEXTS = st.one_of(
    st.builds(lambda *parts: "".join(parts), SPACE, WORDS, SPACE, WORDS | st.just(""), SPACE),
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12),
).filter(lambda text: text.strip())
SIDES = st.floats(-0.1, 1.1, allow_nan=False).map(lambda side: round(side, 2))


def mismatch(metric: str, expected: Expected, max_new_tokens: int | None = None) -> Mismatch | None:
    return Golds(metric, max_new_tokens).mismatch(0, expected)


def truths(metric: str) -> st.SearchStrategy[dict[str, Any]]:
    """What a record may hold beside its answer, as the rule needs it."""
    if metric == "textvqa":
        return st.fixed_dictionaries({"answers": st.lists(TEXTS, min_size=10, max_size=10)})
    if metric == "grounding":
        return st.fixed_dictionaries(
            {"box": st.lists(SIDES, min_size=4, max_size=4), "size": st.just([640, 480])}
        )
    if metric in ("scienceqa", "scienceqa-hide"):
        return st.fixed_dictionaries(
            {}, optional={"choices": st.sampled_from([list("ABC"), list("ABCDEFG")])}
        )
    if metric == "sci-mixed":
        images = st.sampled_from(["images/AI2D_1.png", "MapQA/map_7.png", "images/TQA_2_b.png"])
        return st.fixed_dictionaries(
            {"image": images, "text": st.sampled_from(["Which states are red?", "Is it red?"])}
        )
    if metric == "ocrbench":
        kinds = st.sampled_from(["Digit String Recognition", FORMULAS])
        several = st.lists(TEXTS, min_size=1, max_size=3)
        return st.fixed_dictionaries({"answer_type": kinds}, optional={"answers": several})
    if metric in ("vqav2", "anls"):
        return st.fixed_dictionaries({}, optional={"answers": st.lists(TEXTS, min_size=10, max_size=10)})
    return st.just({})


@pytest.mark.parametrize("metric", [name for name, rule in RULES.items() if rule.official is not None])
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_gold_without_a_finding_scores_full_marks_from_its_file(
    tmp_path_factory: pytest.TempPathFactory, metric: str, data: st.DataObject
):
    """Through the files as a run scores them: 100 exactly where nothing is said; below, what is said is the best there is."""
    answer, truth = data.draw(TEXTS), data.draw(truths(metric))
    folder = tmp_path_factory.mktemp("golds")
    wanted = folder / "expected.jsonl"
    wanted.write_text(json.dumps({"id": "7", "answer": answer, "truth": truth}))
    expected = Expected(answer, (), truth)

    def scored(text: str) -> float:
        (folder / "answers.jsonl").write_text(json.dumps({"id": "7", "answer": text}))
        return score_file(folder / "answers.jsonl", wanted, metric).value

    best = max(scored(one) for one in golds(metric, expected))
    found = mismatch(metric, expected)

    assert (best == 100) is (found is None)
    if found is not None:
        assert found.ceiling == pytest.approx(best / 100)


@pytest.mark.parametrize("metric", [name for name, rule in RULES.items() if rule.official is not None])
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_what_a_remedy_writes_scores_full_marks(metric: str, data: st.DataObject):
    truth = data.draw(truths(metric))
    found = mismatch(metric, Expected(data.draw(TEXTS), (), truth))
    if found is not None and found.remedy.startswith("write '"):
        better = Expected(found.remedy.removeprefix("write '").removesuffix("'"), (), truth)

        if better.text.isascii() and better.text.isprintable() and "\\" not in better.text:
            assert mismatch(metric, better) is None


@pytest.mark.parametrize(
    ("metric", "answer", "truth", "says", "remedy"),
    [
        ("exact", "left ", {}, "'left ' scores 0.00 by the rule exact when a model says it, as by", "write 'left'"),
        ("gqa", "Left", {}, "'Left' scores 0.00 by the rule gqa", "write 'left'"),
        ("gqa", "left.", {}, "'left.' scores 0.00 by the rule gqa", "write 'left'"),
        ("scienceqa", "b", {}, "'b' scores 0.00 by the rule scienceqa", "write 'B'"),
        ("scienceqa", "B.", {}, "'B.' scores 0.00", "write 'B'"),
        ("scienceqa-hide", "(B)", {}, "'(B)' scores 0.00", "write 'B'"),
        ("scienceqa", "C", {"choices": ["A", "B"]}, "'C' scores 0.00", "write one capital of the 2 options"),
        ("scienceqa", "F", {}, "'F' scores 0.00", "write one capital, A to E"),
        ("contains-gold", "no ", {}, "'no ' scores 0.00", "write 'no'"),
        ("contains-gold-bounded", "U.S.", {}, "which is a slip of the official script (strict: 1.00)", ""),
        ("grounding", None, {"box": [0.5, 0.5, 0.5, 0.9], "size": [9, 9]}, "scores 0.00", "write the box as"),
        ("grounding", None, {"box": [0.5, 0.5, 0.55, 0.55], "size": [9, 9]}, "slip of the official", ""),
        ("textvqa", None, {"answers": list("abcdefghij")}, "no answer scores more than 0.30, since people", ""),
    ],
)  # fmt: skip
def test_what_nothing_can_match_is_said_with_what_to_write(
    metric: str, answer: str | None, truth: dict[str, Any], says: str, remedy: str
):
    found = mismatch(metric, Expected(answer, (), truth))

    assert found is not None
    assert says in found.says
    assert found.remedy.startswith(remedy)
    assert bool(found.remedy) is bool(remedy)


def test_a_gold_of_more_words_than_tokens_is_too_long():
    gold = Expected("a very long answer", ("one two three four", "one two three"))

    assert mismatch("exact", gold, 4) is None
    found = mismatch("exact", gold, 3)
    assert found is not None
    assert found.says == "its answer has 4 words, which no 3 tokens (max_new_tokens) can say"
    assert mismatch("caption", gold, 3) is None
    assert mismatch("caption", gold, 2) is not None


@pytest.mark.parametrize("metric", ["caption", "caption-char"])
def test_the_golds_of_captions_are_their_references_whatever_cuts_them(metric: str):
    expected = Expected(None, ("one two three", "one two"))

    assert golds(metric, expected) == expected.references
    found = Golds(metric, 1).mismatch(0, expected)
    assert found is not None
    assert found.says == "its answer has 2 words, which no 1 tokens (max_new_tokens) can say"


def test_nothing_is_said_of_an_unknown_rule_and_of_what_lacks_more():
    assert mismatch("exakt", Expected("Left ")) is None
    assert mismatch("textvqa", Expected("a")) is None


def test_equal_golds_are_looked_at_once_and_different_ones_are_told_apart():
    through = Golds("scienceqa", 16)
    asked = [Expected("C"), Expected("C", truth={"choices": ["x", "y"]}), Expected("c"), Expected("C")]

    first, short, small, again = (through.mismatch(place, one) for place, one in enumerate(asked))

    assert first is None
    assert again is None
    assert short is not None
    assert short.remedy == "write one capital of the 2 options"
    assert small is not None
    assert small.remedy == "write 'C'"
    assert through.mismatch(4, Expected("c")) is small


WORDED = {
    "a dog": "ptb char",
    "!a": "ptb char",
    "1": "ptb char",
    "½": "ptb char",
    "é": "ptb char",
    "猫": "ptb char",
    "?!": "ptb",
    "“”": "ptb",
    "!!": "ptb",
    "( )": "ptb",
    "+": "ptb",
    "#": "ptb",
    "。": "ptb",
    "&quot;": "char",
    "&ndash; &nbsp;": "char",
    "\U00020000": "char",
    "...": "",
    "- -": "",
    "--": "",
    "''": "",
    "!": "",
    "? !": "",
    "“ ”": "",
    "🙂": "",
}
"""Captions, and for which tokenizers each holds a word."""


@pytest.mark.parametrize("metric", ["caption", "caption-char"])
def test_captions_without_a_word_are_those_of_which_the_scorer_has_nothing_left(metric: str):
    """The PTB tokenizer keeps some signs together (`?!`): an answer of them matches, so that they are words."""
    through, words = Golds(metric, 16), RULES[metric].words
    for place, text in enumerate(WORDED):
        assert through.mismatch(place, Expected(None, (text, "..."))) is None

    groups = [{text: [text] for text in WORDED}]
    [cut] = characters(groups) if words == "char" else tokenize(groups)

    silent = [text for text, of in WORDED.items() if words not in of.split()]
    assert [list(WORDED)[place] for place in through.wordless()] == silent
    assert [text for text, [left] in cut.items() if not left] == silent


# The performance script


def test_the_performance_script_finds_nothing_silent_for_any_rule(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Golds in any writing: who score full marks as they are, by the rule itself, are those of whom nothing is said."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks" / "performance"))
    file = tmp_path / "golds.json"

    assert (
        importlib.import_module("golds").main(["--records", "50", "--odd", "300", "--json", str(file)]) == 0
    )
    rules = json.loads(file.read_text())["rules"]
    assert set(rules) == set(RULES)
    for metric, found in rules.items():
        assert found["full"] + found["mend"] + found["ceiling"] == 300, metric
        assert found["silent"] == 0
    assert [metric for metric, found in rules.items() if found["full"] == 300] == [
        *("contains", "imagenet", "contains-bare", "ocrbench", "anls")
    ]
    assert [metric for metric, found in rules.items() if found["ceiling"]] == [
        "textvqa", "grounding", "contains-gold-bounded", "finvis"
    ]  # fmt: skip
