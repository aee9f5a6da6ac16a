"""The scoring rules: hand-made answers for every trap of the released ones, scored officially and strictly.

In the tables a line is (answer, expected, official, strict), worked out by hand from what the released code does.
"""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from cl_zoo.data.needs import ANSWER, NEEDS
from cl_zoo.scoring.judges import APOSTROPHES, Expected, agreement, iou, never_empty, normalised
from cl_zoo.scoring.rules import RULES, lacking


def points(rule: str, answer: str, expected: str | None = None, **truth: Any) -> tuple[float, float | None]:
    """By the official and by the strict rule."""
    wanted = Expected(expected, (), truth)
    assert lacking(RULES[rule], wanted) is None
    strict = RULES[rule].strict
    return RULES[rule].official(answer, wanted), strict and strict(answer, wanted)


def test_every_rule_says_what_it_does_and_what_is_wrong_with_it():
    for name, rule in RULES.items():
        assert rule.version >= 1, name
        assert len(rule.about) > 40, name
        assert bool(rule.about_strict) is (rule.strict is not None), name
    without = ["exact", "gqa", "caption", "caption-char"]
    assert [name for name, rule in RULES.items() if rule.strict is None] == without


# One text against another


@pytest.mark.parametrize(
    ("answer", "expected", "right"),
    [
        ("b", "B", 1),
        ("B.", "B", 0),
        ("2.0", "2", 0),
        ("", "B", 0),
        ("A", "ARXIV", 0),
        ("a dog", "dog", 0),
        ("straße", "STRASSE", 1),  # the upper case of ß is SS
    ],
)
def test_exact_is_equality_in_upper_case_and_has_no_other_form(answer, expected, right):
    assert points("exact", answer, expected) == (right, None)


@pytest.mark.parametrize(
    ("answer", "expected", "official", "strict"),
    [
        ("b", "B", 1, 1),
        ("", "B", 1, 0),  # the empty text stands in every text
        ("A", "ARXIV", 1, 0),
        ("2", "12", 1, 0),
        ("2.0", "2", 0, 0),
        ("arxiv paper", "ARXIV", 0, 0),  # the other direction does not count
    ],
)
def test_the_printed_substring_rule_counts_what_stands_in_the_expected_text(
    answer, expected, official, strict
):
    assert points("contains", answer, expected) == (official, strict)


@pytest.mark.parametrize(
    ("answer", "expected", "official", "strict"),
    [
        ("tabby cat", "tabby cat", 1, 1),
        ("", "tabby cat", 1, 0),
        ("a", "tabby cat", 1, 0),
        ("a", "otter", 0, 0),  # no a in it
        ("a tabby cat on a mat", "tabby cat", 1, 0),
        ("Tabby cat", "tabby cat", 0, 1),  # the official rule looks at the case
        ("cat", "tabby cat", 1, 0),
        ("tabby", "Tabby", 0, 1),
    ],
)
def test_imagenets_rule_looks_both_ways_and_at_the_case(answer, expected, official, strict):
    assert points("imagenet", answer, expected) == (official, strict)


@pytest.mark.parametrize(
    ("answer", "expected", "official", "strict"),
    [
        ("J. Smith", "j. smith", 1, 1),
        ("J Smith", "J. Smith", 0, 0),
        ("Unanswerable", "Unanswerable", 0, 1),  # the official rule skips it before it compares
        ("unanswerable", "Unanswerable", 1, 1),  # but for the capital letter
        ("The Unanswerable Question", "the unanswerable question", 0, 1),
        ("", "no", 0, 0),
    ],
)
def test_ocr_vqas_rule_counts_what_holds_unanswerable_as_wrong(answer, expected, official, strict):
    assert points("ocrvqa", answer, expected) == (official, strict)


@pytest.mark.parametrize(
    ("answer", "expected", "official"),
    [
        ("yes", "yes", 1),
        ("Yes.", "yes", 1),
        ("YES...", "yes", 1),
        ("yes!", "yes", 0),
        (".yes", "yes", 0),
        ("yes", "Yes", 0),  # the expected text is taken as it is
        ("", "yes", 0),
    ],
)
def test_gqas_rule_drops_full_stops_at_the_end(answer, expected, official):
    assert points("gqa", answer, expected) == (official, None)


@pytest.mark.parametrize(
    ("answer", "expected", "official", "strict"),
    [
        ("No", "no", 1, 1),
        ("nothing", "no", 1, 0),
        ("there is no dog", "no", 1, 0),
        ("no, Unanswerable", "no", 0, 0),
        ("n", "no", 0, 0),  # the other direction does not count
        ("", "no", 0, 0),
    ],
)
def test_the_medical_rule_of_mllm_dcl_looks_for_the_expected_text(answer, expected, official, strict):
    assert points("contains-gold", answer, expected) == (official, strict)


@pytest.mark.parametrize(
    ("answer", "expected", "official", "strict"),
    [
        ("no", "no", 1, 1),
        ("snow", "no", 1, 0),  # one word in one word: no border needed
        ("deep snow", "no", 0, 0),  # neither " no" nor "no " nor "no." nor "no,"
        ("a piano here", "no", 1, 0),  # "no " is enough, one border
        ("I say no, sir", "no", 1, 0),
        ("a red car", "red car", 1, 0),  # several words are looked for as they are
        ("a redcar", "red car", 0, 0),
        ("B is right", "B.", 1, 0),  # full stops of one expected word go: "b "
        ("Unanswerable no", "no", 0, 0),
    ],
)
def test_the_driving_rule_of_mllm_dcl_wants_a_border_on_one_side(answer, expected, official, strict):
    assert points("contains-gold-bounded", answer, expected) == (official, strict)


# Letters of ScienceQA


@pytest.mark.parametrize(
    ("answer", "expected", "official", "strict"),
    [
        ("B", "B", 1, 1),
        ("B. a lake", "B", 1, 1),
        ("B.", "B", 1, 1),
        ("b", "B", 1, 1),
        ("(B)", "B", 1, 1),
        ("The answer is B.", "B", 1, 1),
        ("a dog", "A", 1, 0),  # the article is the first word of one character
        ("It is a lake, so B", "B", 0, 0),  # says A officially, and nothing strictly
        ("I think so", "A", 0, 0),  # I is no option
        ("D", "D", 0, 0),  # beyond the three choices
        ("E. a lake", "C", 0, 0),
        ("lake", "A", 0, 0),
        ("", "A", 0, 0),
    ],
)
def test_coins_letter_is_the_first_word_of_one_character(answer, expected, official, strict):
    assert points("scienceqa", answer, expected, choices=["x", "y", "z"]) == (official, strict)


@pytest.mark.parametrize(
    ("answer", "expected", "official", "strict"),
    [
        ("B", "B", 1, 1),
        ("B. a lake", "B", 1, 1),
        ("B.", "B", 0, 1),  # two characters are no list item, and there is no phrase
        ("b", "B", 0, 1),
        ("(B)", "B", 0, 1),
        ("The answer is B.", "B", 1, 1),
        ("The answer is B", "B", 0, 1),  # a character has to follow
        ("The answer is Bob", "B", 1, 0),  # and any will do
        ("The answer is A. The answer is B.", "A", 0, 0),  # two hits are none
        ("The answer is A. The answer is A.", "A", 0, 1),
        ("the answer is B.", "B", 0, 1),
        ("a dog", "A", 0, 0),
        ("The answer is D.", "D", 0, 0),  # beyond the three choices
        ("", "A", 0, 0),
    ],
)
def test_hides_letter_needs_the_phrase_once_and_a_character_after_it(answer, expected, official, strict):
    assert points("scienceqa-hide", answer, expected, choices=["x", "y", "z"]) == (official, strict)


def test_without_choices_all_five_letters_can_be_right():
    assert points("scienceqa", "E", "E") == points("scienceqa-hide", "E", "E") == (1, 1)
    assert points("scienceqa", "F", "F") == (0, 0)


# Answers of ten people

TEN = ["red", "Red", "red.", "the red", "red", "dark red", "dark red", "blue", "blue", "blue"]


@pytest.mark.parametrize(
    ("answer", "official"), [("red", 1.0), ("Dark red!", 0.6), ("blue", 0.9), ("green", 0.0), ("", 0.0)]
)
def test_textvqas_accuracy_is_that_of_the_hand_calculation(answer, official):
    """In normal form five people say "red", two "dark red", three "blue".

    Leaving out each person once, min(1, agreeing others / 3): for "red" 5 people see 4 others and 5 see 5, all 1.
    For "dark red" the 2 see 1 other (1/3) and 8 see 2 (2/3): (2/3 + 16/3) / 10 = 0.6.
    For "blue" the 3 see 2 others (2/3) and 7 see 3 (1): (2 + 7) / 10 = 0.9.
    """
    assert points("textvqa", answer, answers=TEN) == (pytest.approx(official), pytest.approx(official))


def test_one_of_ten_people_is_worth_three_tenths():
    """One sees nobody else (0), nine see one other (1/3): 9 · 1/3 / 10."""
    assert points("textvqa", "cat", answers=["cat", *"abcdefghi"]) == (
        pytest.approx(0.3),
        pytest.approx(0.3),
    )


def test_an_empty_answer_agrees_officially_with_people_who_say_an_article():
    """ "the" has the empty normal form, so three who say it are worth 0.9 to an empty answer; strictly nothing is."""
    people = ["the", "The", "the.", *"bcdefgh"]

    assert points("textvqa", "", answers=people) == (pytest.approx(0.9), 0.0)
    assert points("textvqa", "the", answers=people)[1] == pytest.approx(0.6)  # "the." is kept as it is


def test_agreement_is_leave_one_out_written_as_its_definition():
    for people in itertools.combinations_with_replacement("xyz", 10):
        leaving_out = [min(1, [*people[:n], *people[n + 1 :]].count("x") / 3) for n in range(10)]
        assert agreement("x", people) == pytest.approx(sum(leaving_out) / 10)


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("The  Dog", "dog"),
        ("none", "0"),
        ("TEN apples", "10 apples"),
        ("eleven", "eleven"),
        ("1,000", "1000"),
        ("2.0", "2.0"),
        ("2.", "2"),
        ("N.Y.", "ny"),
        ("dont", "don't"),
        ("shouldntve", "shouldntve"),  # one apostrophe may be missing, not two
        ("youd've", "you'd've"),
        ("somebody'd", "somebodyd"),
        ("dog's", "dog 's"),
        ("x-ray", "x ray"),  # touches no space, so it becomes one
        ("x -ray", "x ray"),  # touches one, so it goes
        ("a-b - c", "ab c"),  # where one touches a space, all of its kind go
        ("50%", "50%"),
        ("stop! go", "stop go"),
        ("who?", "who"),
        ("a", ""),
        ("", ""),
        ("." * 40, "." * 8),  # a flag stands where the number of full stops belongs: 32
    ],
)
def test_normal_forms_are_evalais(text, normal):
    assert normalised(text) == normal


def test_an_answer_of_articles_alone_keeps_its_text_under_the_strict_rules():
    assert never_empty(" A ") == "a"
    assert never_empty("the dog") == "dog"
    assert never_empty("") == ""


def test_every_shortened_word_is_reached_by_leaving_out_one_apostrophe():
    assert len(APOSTROPHES) == 114  # of EvalAI's table what is in lower case and changes something
    assert APOSTROPHES["ow's'at"] == APOSTROPHES["'ows'at"] == APOSTROPHES["'ow'sat"] == "'ow's'at"
    assert not {"shed", "well", "its", "were", "ill"} & APOSTROPHES.keys()


@pytest.mark.parametrize(
    ("answer", "expected", "official", "strict"),
    [
        ("Yes", "yes", 1, 1),
        ("two", "2", 0, 1),
        ("the dog.", "dog", 0, 1),
        ("2.0", "2", 0, 0),
        ("A", "a", 1, 1),
        ("", "the", 0, 0),  # both have the empty normal form
        ("", "no", 0, 0),
    ],
)
def test_vqav2s_rule_takes_one_wording_and_the_strict_one_the_normal_form(answer, expected, official, strict):
    assert points("vqav2", answer, expected) == (official, strict)


def test_vqav2s_strict_rule_uses_ten_answers_where_they_are_known():
    """Three of ten say "blue": 0.9, though the one answer of the file is "red"."""
    assert points("vqav2", "Blue", "red", answers=TEN) == (0, pytest.approx(0.9))
    assert points("vqav2", "red", "red", answers=TEN[:9]) == (1, 1)  # nine are not ten


# Edit distance


@pytest.mark.parametrize(
    ("answer", "expected", "official", "strict"),
    [
        ("House", "house", 1, 1),
        ("hous", "house", 0.8, 0.8),  # one letter of five
        ("kitten", "sitting", 4 / 7, 4 / 7),  # the textbook's three edits
        ("ab", "ad", 0.5, 0.5),  # one half is kept
        ("cot", "dog", 1 / 3, 0),  # a common letter is not enough
        ("cat", "dog", 0, 0),
        ("", "dog", 0, 0),
    ],
)
def test_likeness_is_that_of_the_hand_calculation(answer, expected, official, strict):
    assert points("anls", answer, expected) == (pytest.approx(official), pytest.approx(strict))


def test_likeness_is_to_the_nearest_of_several_answers():
    assert points("anls", "hous", "dog", answers=["dog", " house "]) == (
        pytest.approx(0.8),
        pytest.approx(0.8),
    )


# Boxes

SQUARE = {"box": [0.1, 0.1, 0.5, 0.5], "size": [640, 480]}
WHOLE = {"box": [0.0, 0.0, 1.0, 1.0], "size": [640, 480]}


@pytest.mark.parametrize(
    ("answer", "truth", "official", "strict"),
    [
        ("[0.10, 0.10, 0.50, 0.50]", SQUARE, 1, 1),
        ("0.10, 0.10, 0.50, 0.50", SQUARE, 1, 1),
        # read as .12, 0.34, 0.56, 0.7: 0.44 · 0.36 of 0.44 · 0.44 are left, 0.82
        ("[0.12, 0.34, 0.56, 0.78]", {**SQUARE, "box": [0.12, 0.34, 0.56, 0.78]}, 1, 1),
        # read as .10, 0.10, 0.30, 0.1: nothing is left
        ("[0.10, 0.10, 0.30, 0.19]", {**SQUARE, "box": [0.10, 0.10, 0.30, 0.19]}, 0, 1),
        # read as .0, 0.0, 1.0, 1.: the whole image, although the box that was said has no width
        ("[1.0, 0.0, 1.0, 1.0]", WHOLE, 1, 0),
        # read as nothing, 0, 1 and nothing: no numbers
        ("[0, 0, 1, 1]", WHOLE, 0, 1),
        # exactly one half is not above it; 0.51 is read as 0.5
        ("[0.00, 0.00, 1.00, 0.50]", WHOLE, 0, 0),
        ("[0.00, 0.00, 1.00, 0.51]", WHOLE, 0, 1),
        ("[0.00, 0.00, 1.00, 0.61]", WHOLE, 1, 1),
        # too few and too many numbers
        ("[0.10, 0.10, 0.50]", SQUARE, 0, 0),
        ("[0.10, 0.10, 0.50, 0.50, 0.90]", SQUARE, 0, 0),
        # no comma, and words around
        ("0.10 0.10 0.50 0.50", SQUARE, 0, 1),
        ("It is at [0.10, 0.10, 0.50, 0.50].", SQUARE, 0, 1),
        ("a dog", SQUARE, 0, 0),
        ("", SQUARE, 0, 0),
        # corners the wrong way round, and what Python reads as numbers
        ("[0.50, 0.50, 0.10, 0.10]", SQUARE, 0, 0),
        ("[nan, nan, nan, nan]", SQUARE, 0, 0),
        ("[ inf, inf, inf, inf ]", SQUARE, 0, 0),
    ],
)
def test_boxes_are_sliced_officially_and_read_strictly(answer, truth, official, strict):
    assert points("grounding", answer, **truth) == (official, strict)


def test_no_pixel_is_added_to_the_sides_of_a_box():
    """5 · 2.4 of 5 · 5 pixels are 0.48; with a pixel more on each side it would be 6 · 3.4 of 6 · 6, 0.57."""
    assert iou([0, 0, 5, 5], [0, 0, 5, 2.4]) == pytest.approx(0.48)
    truth = {"box": [0, 0, 0.5, 0.5], "size": [10, 10]}
    assert points("grounding", "[0.00, 0.00, 0.50, 0.240]", **truth) == (0, 0)


def test_overlap_is_common_area_over_the_area_of_both():
    """Two squares of 4 with 1 in common: 1 / 7."""
    assert iou([0, 0, 2, 2], [1, 1, 3, 3]) == pytest.approx(1 / 7)
    assert iou([0, 0, 1, 1], [2, 2, 3, 3]) == 0
    assert iou([1, 1, 1, 1], [1, 1, 1, 1]) == 0


# What a rule needs


def test_what_a_split_is_checked_for_is_what_the_rules_need():
    assert {name: rule.needs for name, rule in RULES.items() if rule.needs != ANSWER} == NEEDS


@pytest.mark.parametrize(
    ("rule", "expected", "what"),
    [
        ("exact", Expected(None, ("a dog",)), "an 'answer'"),
        ("imagenet", Expected(None), "an 'answer'"),
        ("caption", Expected("a dog"), "'references'"),
        ("textvqa", Expected("red"), "10 texts as 'answers' in its 'truth'"),
        ("textvqa", Expected("red", (), {"answers": ["red"] * 9}), "10 texts as 'answers' in its 'truth'"),
        ("textvqa", Expected("red", (), {"answers": [1] * 10}), "10 texts as 'answers' in its 'truth'"),
        ("grounding", Expected("[0, 0, 1, 1]"), "four numbers as 'box' in its 'truth'"),
        (
            "grounding",
            Expected(None, (), {"box": [0, 0, "1", 1], "size": [4, 4]}),
            "four numbers as 'box' in its 'truth'",
        ),
        ("grounding", Expected(None, (), {"box": [0, 0, 1, 1]}), "two numbers as 'size' in its 'truth'"),
        ("exact", Expected(""), None),
        ("vqav2", Expected("red"), None),
        ("scienceqa", Expected("A"), None),
    ],
)
def test_what_a_sample_lacks_is_said_in_words(rule, expected, what):
    assert lacking(RULES[rule], expected) == what
