"""The scoring rules, by the name that a task gives as its metric.

A rule looks at one answer and at what was expected and says how right it is, 0 to 1. `official` is what the released
evaluation code of a benchmark does, so that scores can be laid beside published ones; `strict` is a correct rule for the
same data, where the official one counts as right what is wrong or the other way round. Both are computed for every
answer and both are stored. Answers are stripped first, as the official code strips what was generated.

Files of the released code are named as REPOSITORY:PATH: `hide` is Ghy0501/HiDe-LLaVA, `coin` zackschen/CoIN (branch CoIN),
`mcit` Ghy0501/MCITlib, `prism` LAMDA-CL/Prism, `mllm` bjzhb666/MLLM-CL, in whose rules of MLLM-CL `mcit` differs by no line.

Not offered: CoIN's reasoning score, for which a model of 32 billion parameters gives each answer 0 to 10 points at
temperature 0.7, the judge of the HiDe code, whose calls are commented out there, and MLLM-CL's mathematics and GUI tasks, which
an OpenAI model and an evaluation server score.
"""

from __future__ import annotations

from dataclasses import dataclass

from cl_zoo.data.needs import ANSWER, NEEDS, lack
from cl_zoo.scoring import domains, judges
from cl_zoo.scoring.judges import Expected, Judge


@dataclass(frozen=True)
class Rule:
    """A rule of scoring.

    Attributes:
        version: changes whenever the same answers would get another score, official or strict.
        about: what the official code does, and where.
        official: `None` for a rule that looks at all answers of a file together, as captions are scored.
        strict: `None` where the official rule has no fault.
        about_strict: what it does, and what was wrong.
        needs: what of `Expected` it reads: `answer`, `references`, or a key of `truth`.
        content: whether an answer is right whatever its form; it counts what `official` refuses for the form alone, and
            changes no score. `None` where the rule minds no form.
        words: how captions are cut into words: `ptb` or `char`.
    """

    version: int
    about: str
    official: Judge | None
    strict: Judge | None = None
    about_strict: str = ""
    needs: str = ANSWER
    content: Judge | None = None
    words: str = "ptb"


def lacking(rule: Rule, expected: Expected) -> str | None:
    """What a sample does not have and the rule needs, in words; `None` where nothing is missing."""
    return lack(rule.needs, expected.answer, expected.references, expected.truth)


def of_files(metric: str) -> bool:
    """Whether a metric is known and looks at all answers of a file together, which takes METEOR's slow start."""
    return metric in RULES and RULES[metric].official is None


# The registry

WRONG_WHEN_EMPTY = "Equality whatever the case; an empty answer is wrong."

RULES = {
    "exact": Rule(
        1,
        "UCIT but for captions: equality in upper case, joined by id (hide:llava/eval/eval_deepseek_r1.py). No letter, "
        "number or punctuation is normalised.",
        judges.equal,
        content=judges.in_content,
    ),
    "contains": Rule(
        1,
        "What the HiDe paper prints for UCIT and its code does not do: the answer in upper case stands in the expected "
        "text. An empty answer is right, and so is A for every text with an A.",
        judges.contained,
        judges.equal_stripped,
        WRONG_WHEN_EMPTY,
        content=judges.in_content,
    ),
    "imagenet": Rule(
        1,
        "CoIN's ImageNet: the label stands in the answer or the answer in the label, case counts "
        "(coin:ETrain/Eval/LLaVA/CoIN/eval_ImagetNet.py, hide:llava/eval/eval_imagenet.py). An empty answer is right, and "
        "so is `a` for most labels. The code joins by line; here answers are joined by id.",
        judges.either_contains,
        judges.equal_stripped,
        WRONG_WHEN_EMPTY,
        content=judges.in_content,
    ),
    "vqav2": Rule(
        1,
        "VQAv2 and VizWiz (questions): equality in upper case with one answer (coin:…/eval_vqav2.py, eval_vizwiz.py).",
        judges.equal,
        judges.by_people_or_equal,
        "VQA accuracy over the ten answers with EvalAI's normal form, where `truth` holds ten; else equality of the normal "
        "forms. The official rule takes one person's wording for the truth.",
        content=judges.in_content,
    ),
    "ocrvqa": Rule(
        1,
        "Equality in lower case; an answer that holds `Unanswerable` is wrong (coin:…/eval_ocrvqa.py).",
        judges.answerable,
        judges.equal_stripped,
        "Equality whatever the case, also where `Unanswerable` is part of the right answer.",
        content=judges.in_content,
    ),
    "textvqa": Rule(
        1,
        "M4C's soft accuracy: the answer's agreement with ten people, leaving out each once, in EvalAI's normal form "
        "(coin:…/m4c_evaluator.py). Articles are dropped, so an empty answer equals `the`.",
        judges.by_people,
        judges.by_people_strictly,
        "The same, but a text of articles and signs alone is kept as it is, and an empty answer is wrong.",
        needs=NEEDS["textvqa"],
    ),
    "gqa": Rule(
        1,
        "In lower case without full stops at the end, equal to the answer of the balanced test-dev questions "
        "(coin:…/convert_gqa_for_eval.py, eval_gqa.py).",
        judges.without_stops,
        content=judges.in_content,
    ),
    "scienceqa": Rule(
        1,
        "CoIN: `B`, or `B. ` and more, else the first word of one character in upper case, so `a dog` says A "
        "(coin:…/eval_science_qa.py). A letter beyond the choices is wrong.",
        judges.letter_by_first_character,
        judges.letter,
        "A letter that stands alone, begins the answer as in a list, or is named by one `answer is`.",
        content=judges.in_content,
    ),
    "scienceqa-hide": Rule(
        1,
        "HiDe: `B`, or `B. ` and more, else exactly one `The answer is X` with a character after it, so `The answer is B` "
        "at the end is wrong and `The answer is Bob` says B (hide:llava/eval/eval_science_qa.py).",
        judges.letter_by_phrase,
        judges.letter,
        "A letter that stands alone, begins the answer as in a list, or is named by one `answer is`.",
        content=judges.in_content,
    ),
    "grounding": Rule(
        1,
        "IoU above 0.5, areas without an added pixel, both boxes times the longer side of the image. Brackets are deleted "
        "and then also the first and the last character of the numbers (hide:llava/eval/eval_grounding.py, "
        "coin:…/eval_grounding.py): `[0.12, 0.34, 0.56, 0.78]` is read as .12, 0.34, 0.56, 0.7 and `1.0` as .0. Another "
        "count of numbers, or one that is none, is wrong.",
        judges.box_sliced,
        judges.box,
        "The same with the four numbers as they stand in the answer, with or without brackets or words.",
        needs=NEEDS["grounding"],
        content=judges.box,
    ),
    "contains-gold": Rule(
        1,
        "MLLM-DCL, medicine: the expected text stands in the answer, whatever the case; an answer that holds "
        "`Unanswerable` is wrong (mcit:LoRA-FT/llava/eval/CoIN/eval_pvqa.py). `no` is right for every `nothing`.",
        judges.contains,
        judges.equal_stripped,
        WRONG_WHEN_EMPTY,
        content=judges.in_content,
    ),
    "contains-gold-bounded": Rule(
        1,
        "MLLM-DCL, remote sensing and driving: as `contains-gold`, but one expected word needs a space, full stop or "
        "comma on one side where the answer has several words (mcit:LoRA-FT/llava/eval/CoIN/eval_ai2d.py).",
        judges.contains_bounded,
        judges.equal_stripped,
        WRONG_WHEN_EMPTY,
        content=judges.in_content,
    ),
    "finvis": Rule(
        1,
        "MLLM-DCL, finance: in lower case without spaces and full stops, equal to the right answer in lower case "
        "(mllm:ETrain/Eval/LLaVA/CoIN/eval_finvis.py). An answer that holds `Unanswerable` is wrong; a right answer with a "
        "space or full stop is never met.",
        domains.equal_bare,
        domains.both_bare,
        "The same with spaces, newlines and full stops taken off on both sides; an empty answer is wrong.",
        content=judges.in_content,
    ),
    "sci-mixed": Rule(
        1,
        "MLLM-DCL, science: equality whatever the case where the name of the image begins with AI2D, TQA, VQA or SciVerse; "
        "else, where the question says `Which states`, the share of the right names that the answer lists, cut at commas with "
        "their spaces; else the right answer stands in the answer. What holds `Unanswerable` is wrong "
        "(mllm:ETrain/Eval/LLaVA/CoIN/eval_sci.py). Names that are listed and wrong cost nothing.",
        domains.by_image,
        domains.by_image_strictly,
        "Equality whatever the case; of lists, the names in both over the names in one of them.",
        needs=NEEDS["sci-mixed"],
    ),
    "contains-bare": Rule(
        1,
        "MLLM-ACL, visual perception: the right answer stands in the answer, both in lower case without spaces, newlines and "
        "full stops (mllm:ETrain/Eval/LLaVA/CoIN/eval_sat.py). `1` is right for every `10`.",
        domains.contains_bare,
        domains.both_bare,
        "Equality in the same form; an empty answer is wrong.",
        content=judges.in_content,
    ),
    "ocrbench": Rule(
        1,
        "MLLM-ACL, text in images: one of the right texts stands in the answer, in lower case without newlines; of handwritten "
        "formulas with case and without spaces (mllm:ETrain/Eval/LLaVA/CoIN/eval_ocr.py). A short text stands in many an answer.",
        domains.contains_any,
        domains.equals_any,
        "The answer is one of the right texts, in the same form; an empty one is wrong.",
        needs=NEEDS["ocrbench"],
    ),
    "anls": Rule(
        1,
        "Documents: 1 minus edits per length of the longer text, the best of the right answers "
        "(prism:backbone/shared/eval/eval_ucit.py). There is no threshold, so a wrong word earns points for common letters.",
        judges.likeness,
        judges.likeness_above_half,
        "The same, but 0 below one half, as the measure is defined.",
    ),
    "caption": Rule(
        1,
        "Mean of BLEU-1 to BLEU-4, METEOR, ROUGE-L and CIDEr, each times 100 (hide:llava/eval/eval_caption.py). All seven "
        "are scores of the whole file. CIDEr alone lies between 0 and 1000, so that a score above 100 is possible. The "
        "code numbers answers from 1 in the order of the file; here they are joined by id.",
        None,
        needs=NEEDS["caption"],
    ),
    "caption-char": Rule(
        1,
        "`caption` for texts without spaces between words: every character of Chinese, Japanese and Korean is a word, where "
        "the PTB tokenizer takes a sentence for one and BLEU, ROUGE-L and CIDEr are 0. No official code; METEOR stays that "
        "of English, so only equal words match.",
        None,
        needs=NEEDS["caption-char"],
        words="char",
    ),
}
"""By name."""
