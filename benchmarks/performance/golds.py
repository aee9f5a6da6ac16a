"""Right answers put through their own rule: how quickly, and what comes of odd ones, for every rule of scoring.

    python benchmarks/performance/golds.py [--records 200000] [--odd 10000] [--rules textvqa exact] --json FILE

`records_per_second` is how many golds of a kind that benchmarks hold (labels of one to three words, letters, boxes, ten people's answers,
five captions) are looked at by `cl_zoo.scoring.golds`, by the process's own processor time.

The other columns are counts over `--odd` golds in any writing: other cases, spaces, signs, letters of other scripts, letters beyond the options, boxes
without area, people who disagree. `full` score full marks as they are, by the official rule itself; `mend` are findings with a remedy, `ceiling` are less than full
marks that nothing in the data mends (people who disagree, slips of official rules). `silent` is what must be 0: less than full marks and nothing said, or the
reverse. A caption has no full marks: `full` is a ROUGE-L of 100 for its first reference with a word.
"""

from __future__ import annotations

import argparse
import random
import string
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from results import given, machine, options, positive, versions, write

from cl_zoo.scoring.captions import Captions, characters, tokenize
from cl_zoo.scoring.domains import FORMULAS
from cl_zoo.scoring.golds import Golds, golds
from cl_zoo.scoring.judges import Expected
from cl_zoo.scoring.rules import RULES

BUDGET = 64
"""`max_new_tokens`, which no gold here is longer than."""
WRITINGS = "left Left LEFT B b (B) B. F no yes the a 2 2.0 two U.S. Unanswerable Paris. don't İ ß 猫 . ? ?! + 🙂 &quot;".split()
SPACES = ("", "", "", " ", "\n", "\u00a0")
SYLLABLES = "ka lo mi ter sun ble gra o en vi da quo ri pla".split()
KINDS: dict[str, tuple[dict[str, str], ...]] = {
    "sci-mixed": tuple(
        {"image": image, "text": text}
        for image in ("AI2D_1.png", "MapQA_1.png")
        for text in ("Which states are red?", "Is it red?")
    ),
    "ocrbench": ({"answer_type": "Digit String Recognition"}, {"answer_type": FORMULAS}),
}
"""What rules read of a record beside its answer."""
COLUMNS = ("records_per_second", "full", "mend", "ceiling", "silent")


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print and write; returns the exit code, 1 where anything stayed silent."""
    asked = _parse(arguments)
    asked.json.parent.mkdir(parents=True, exist_ok=True)  # before minutes are spent
    rules = {}
    print(f"{'rule':24}" + "".join(f"{column:>20}" for column in COLUMNS))
    for metric in asked.rules:
        rules[metric] = found = {**speed(metric, asked.records), **counts(metric, asked.odd)}
        print(f"{metric:24}" + "".join(f"{found[column]:>20,}" for column in COLUMNS), flush=True)
    result = {
        "command": asked.command,
        "rules": rules,
        "setting": {"records": asked.records, "odd": asked.odd, "max_new_tokens": BUDGET},
        "machine": machine(),
        "versions": versions(("cl-zoo",)),
    }
    write(asked.json, result)
    return int(any(found["silent"] for found in rules.values()))


def speed(metric: str, records: int) -> dict[str, Any]:
    """Golds of a usual kind, looked at one by one as preflight and `cl-zoo data check` do."""
    draw = random.Random(0)
    labels = [_label(draw) for _ in range(1000)]
    asked = [_usual(metric, draw, labels) for _ in range(records)]
    through, began = Golds(metric, BUDGET), time.process_time()
    for place, one in enumerate(asked):
        through.mismatch(place, one)
    through.wordless()
    seconds = time.process_time() - began
    return {"records_per_second": round(records / seconds), "cpu_seconds": round(seconds, 3)}


def counts(metric: str, records: int) -> dict[str, int]:
    """What comes of odd golds; the rule itself is asked besides."""
    draw = random.Random(1)
    asked = [_odd(metric, draw) for _ in range(records)]
    through, found = Golds(metric, BUDGET), Counter[str]()
    said = [through.mismatch(place, one) for place, one in enumerate(asked)]
    silent = set(through.wordless())
    for place, (wrong, full) in enumerate(zip(said, _full(metric, asked), strict=True)):
        kind = "mend" if place in silent or (wrong and wrong.remedy) else "ceiling" if wrong else "none"
        found["full"] += full
        found[kind] += 1
        found["silent"] += full is (kind != "none")
    return {column: found[column] for column in COLUMNS[1:]}


def _full(metric: str, asked: Sequence[Expected]) -> list[bool]:
    """Whether the best gold of each sample scores full marks when it is said, stripped as answers are."""
    judge = RULES[metric].official
    if judge is not None:
        return [any(judge(text.strip(), one) >= 1 for text in golds(metric, one)) for one in asked]
    from pycocoevalcap.rouge.rouge import Rouge

    groups = [{str(place): list(one.references) for place, one in enumerate(asked)}]
    [cut] = characters(groups) if RULES[metric].words == "char" else tokenize(groups)
    worded: Captions = {place: [text for text in texts if text] for place, texts in cut.items()}
    there = {place: texts for place, texts in worded.items() if texts}
    _, scores = Rouge().compute_score(there, {place: texts[:1] for place, texts in there.items()})
    best = dict(zip(there, scores, strict=True))
    return [bool(best.get(str(place), 0) >= 1) for place in range(len(asked))]


def _usual(metric: str, draw: random.Random, labels: Sequence[str]) -> Expected:
    """What is expected of one sample, as benchmarks hold it."""
    if RULES[metric].official is None:
        return Expected(None, tuple(" ".join(draw.choices(labels, k=6)) for _ in range(5)))
    if metric == "grounding":
        left, top = draw.random() / 2, draw.random() / 2
        box = [left, top, left + 0.01 + draw.random() / 2, top + 0.01 + draw.random() / 2]
        return Expected(None, (), {"box": [round(side, 2) for side in box], "size": [640, 480]})
    if metric.startswith("scienceqa"):
        choices = draw.choices(labels, k=draw.randint(2, 5))
        return Expected(draw.choice("ABCDE"[: len(choices)]), (), {"choices": choices})
    return _by_people(metric, draw, lambda: draw.choice(labels))


def _odd(metric: str, draw: random.Random) -> Expected:
    """The same in any writing."""
    if RULES[metric].official is None:
        return Expected(None, tuple(_writing(draw) for _ in range(draw.randint(1, 3))))
    if metric == "grounding":
        box = [round(draw.uniform(-0.1, 1.1), 2) for _ in range(4)]
        return Expected(None, (), {"box": box, "size": [640, 480]})
    if metric.startswith("scienceqa"):
        truth = draw.choice(({}, {"choices": ["x", "y"]}, {"choices": list("vwxyz")}))
        return Expected(draw.choice((draw.choice("ABCDEFabc"), _writing(draw))), (), truth)
    return _by_people(metric, draw, lambda: _writing(draw))


def _by_people(metric: str, draw: random.Random, text: Callable[[], str]) -> Expected:
    """One text as the answer, and for rules that read them those of ten people, who give one to ten different ones."""
    said = [text() for _ in range(draw.choice((1, 1, 2, 3, 5, 10)))]
    people = metric in ("textvqa", "vqav2", "anls", "ocrbench")
    truth: dict[str, object] = {"answers": draw.choices(said, k=10)} if people else {}
    if metric in KINDS:
        truth |= draw.choice(KINDS[metric])
    return Expected(said[0], (), truth)


def _label(draw: random.Random) -> str:
    words = ("".join(draw.choices(SYLLABLES, k=draw.randint(1, 4))) for _ in range(draw.randint(1, 3)))
    return " ".join(words)


def _writing(draw: random.Random) -> str:
    """A text that is not of spaces alone."""
    if draw.random() < 0.5:
        words = " ".join(draw.choices(WRITINGS, k=draw.choice((1, 1, 2))))
        return f"{draw.choice(SPACES)}{words}{draw.choice(SPACES)}"
    signs = string.printable + "éßİ猫。？½🙂\u00a0\u0301"
    while not (text := "".join(draw.choices(signs, k=draw.randint(1, 12)))).strip():
        pass
    return text


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = options(__doc__)
    parser.add_argument("--records", type=positive, default=200_000, help="golds of a usual kind")
    parser.add_argument("--odd", type=positive, default=10_000, help="golds in any writing")
    parser.add_argument("--rules", nargs="+", choices=list(RULES), default=list(RULES))
    return given(parser, "golds.py", arguments)


if __name__ == "__main__":
    raise SystemExit(main())
