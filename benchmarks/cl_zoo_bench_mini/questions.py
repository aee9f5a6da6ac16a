"""Pre-training's questions: every fact can be asked in many wordings and answered in many forms.

The form of an answer follows from the instruction alone (a word, digits, a spelled number, an exact name, a sentence, a letter,
a letter with its text, a text without its letter), so the base learns to tell *what* is asked from *how* it is to be answered.
None of the sentences that close a task's prompts is used here, but all their words are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from cl_zoo_bench_mini.captions import task_captions
from cl_zoo_bench_mini.descriptions import describe
from cl_zoo_bench_mini.facts import HOURS, NUMBERS, YES_NO, Fact
from cl_zoo_bench_mini.render import THINGS
from cl_zoo_bench_mini.scene_facts import facts
from cl_zoo_bench_mini.scenes import COLOUR_NAMES, Generator, Outdoors, Photograph, Scene, pick, some
from cl_zoo_bench_mini.wordings import INSTRUCTIONS, LAYOUTS
from cl_zoo_bench_mini.words import EXACT_NAMES, LETTERS, VOCABULARY, exact_name, one, spelled


@dataclass(frozen=True)
class Question:
    """One question of pre-training.

    Attributes:
        skill: what accuracy is reported by.
        form: the form of the answer.
        prompt: question and instruction.
        answer: the text to learn.
        accepted: all descriptions that are right, where one is asked for; empty where one answer alone is.
    """

    skill: str
    form: str
    prompt: str
    answer: str
    accepted: tuple[str, ...] = ()

    def accepts(self, answer: str) -> bool:
        """Whether an answer is right, up to the spaces between its words."""
        given = answer.replace(" ", "")
        return any(given == right.replace(" ", "") for right in self.accepted or (self.answer,))


@dataclass(frozen=True)
class Mix:
    """How often what is asked.

    Attributes:
        games: share of questions about words alone.
        descriptions: share of descriptions.
        options: share of the facts that are asked with options.
        chains: share of the games that bind many letters at once.
        captions: share of the descriptions of photographs and of scenes outdoors that are captions as the tasks write them.
    """

    games: float
    descriptions: float
    options: float
    chains: float
    captions: float = 0.0


BROAD = Mix(games=0.15, descriptions=0.15, options=0.5, chains=0.0)
BINDING = Mix(games=0.4, descriptions=0.08, options=0.65, chains=0.6)
MIXED = Mix(games=0.15, descriptions=0.15, options=0.45, chains=0.35)
SAYINGS = Mix(games=0.1, descriptions=0.35, options=0.4, chains=0.3, captions=0.75)
"""The mixes: everything; mostly binding letters to options, the hardest skill; everything again; and many captions in the wordings
of the tasks, asked for by other instructions than theirs."""


def questions(scene: Scene, rng: Generator, count: int, mix: Mix = BROAD) -> list[Question]:
    """`count` questions about a scene, some of them about words alone."""
    known = facts(scene, rng)
    asked: list[Question] = []
    for place in range(count):
        draw = rng.random()
        if draw < mix.games * mix.chains:
            asked.append(_chain(rng))
        elif draw < mix.games:
            asked.append(pick(rng, WORD_GAMES)(rng))
        elif draw < mix.games + mix.descriptions:
            asked.append(_description(scene, rng, mix.captions))
        else:
            asked.append(ask(known[place % len(known)], rng, mix.options))
    return asked


def ask(fact: Fact, rng: Generator, options: float) -> Question:
    """A question about one fact, in a form and wording drawn at random; a share of them with options."""
    question = pick(rng, fact.asks)
    if rng.random() < options:
        return _with_options(fact, question, rng)
    form = pick(rng, _forms(fact))
    answer = _in_form(fact, form)
    return Question(fact.skill, form, _prompt(question, pick(rng, INSTRUCTIONS[form]), rng), answer)


def _forms(fact: Fact) -> tuple[str, ...]:
    if fact.answer in NUMBERS:
        return ("plain", "digits", "digits", "spelled", "sentence")
    if fact.pool is YES_NO:
        return ("plain", "word")
    if fact.pool is THINGS:
        return ("plain", "word", "exact", "exact", "sentence")
    return ("plain", "word", "word", "sentence")


def _in_form(fact: Fact, form: str) -> str:
    number = fact.answer in NUMBERS
    if form == "sentence":
        return fact.sentence.format(spelled(fact.answer) if number else fact.answer)
    if form == "exact":
        return exact_name(fact.answer)
    return spelled(fact.answer) if number and form == "spelled" else fact.answer


def _with_options(fact: Fact, question: str, rng: Generator) -> Question:
    others = [item for item in fact.pool if item != fact.answer]
    items = some(rng, [fact.answer, *some(rng, others, int(rng.integers(1, 4)))], 4)
    right = items.index(fact.answer)
    if fact.answer in NUMBERS and rng.random() < 0.4:
        items = [spelled(item) for item in items]
    elif fact.pool is THINGS and rng.random() < 0.3:
        items = [exact_name(item) for item in items]
    return _options(fact.skill, question, items, right, rng)


def _options(skill: str, question: str, items: list[str], right: int, rng: Generator) -> Question:
    layout = pick(rng, LAYOUTS)
    form = pick(rng, ("letter", "letter", "letter", "both", "text"))
    listed = "".join(layout.format(letter, item) for letter, item in zip(LETTERS, items, strict=False))
    answer = {"letter": LETTERS[right], "both": f"{LETTERS[right]}) {items[right]}", "text": items[right]}[
        form
    ]
    return Question(skill, form, _prompt(question + listed, pick(rng, INSTRUCTIONS[form]), rng), answer)


def _prompt(question: str, instruction: str, rng: Generator) -> str:
    if not instruction:
        return question
    return f"{question}\n{instruction}" if rng.random() < 0.75 else f"{instruction}\n{question}"


def _description(scene: Scene, rng: Generator, captions: float) -> Question:
    if isinstance(scene, (Photograph, Outdoors)) and rng.random() < captions:
        written = task_captions(scene, rng)
        return Question(
            "caption " + scene.kind, "caption", pick(rng, INSTRUCTIONS["caption"]), written[0], written
        )
    form, request, sentences = describe(scene, rng)
    return Question("describe " + scene.kind, form, request, pick(rng, sentences), sentences)


def _say(rng: Generator) -> Question:
    words = " ".join(some(rng, VOCABULARY, int(rng.integers(1, 4))))
    ask = pick(rng, ("Say: {}", "Repeat: {}", "Write this: {}", "{}\nRepeat that."))
    return Question("say", "text only", ask.format(words), words)


def _figures(rng: Generator) -> Question:
    number = pick(rng, NUMBERS)
    if rng.random() < 0.5:
        return Question(
            "figures",
            "text only",
            _prompt(f"Write {spelled(number)}.", pick(rng, INSTRUCTIONS["digits"]), rng),
            number,
        )
    return Question(
        "figures",
        "text only",
        _prompt(f"Write {number}.", pick(rng, INSTRUCTIONS["spelled"]), rng),
        spelled(number),
    )


def _names(rng: Generator) -> Question:
    thing = pick(rng, tuple(EXACT_NAMES))
    if rng.random() < 0.5:
        return Question("names", "text only", f"What is the exact name of {one(thing)}?", exact_name(thing))
    return Question("names", "text only", f"What kind of thing is {one(exact_name(thing))}?", thing)


def _letters(rng: Generator) -> Question:
    """Options without anything to see: find the letter of a text or the text of a letter."""
    items = some(rng, pick(rng, (COLOUR_NAMES, HOURS, THINGS, VOCABULARY)), int(rng.integers(2, 5)))
    right = int(rng.integers(len(items)))
    if rng.random() < 0.6:
        return _options(
            "letters",
            pick(rng, ("Find {}.", "Where is {}?", "Choose {}.", "Look for {}.")).format(items[right]),
            items,
            right,
            rng,
        )
    listed = "".join(
        pick(rng, LAYOUTS).format(letter, item) for letter, item in zip(LETTERS, items, strict=False)
    )
    asks = pick(rng, ("What stands at {}?", "Read option {}.", "What does {} say?")).format(LETTERS[right])
    return Question("letters", "text only", f"{asks}{listed}", items[right])


def _chain(rng: Generator) -> Question:
    """Many letters, many texts or many pairs of one list of options, in a given order."""
    items = some(rng, pick(rng, (COLOUR_NAMES, HOURS, THINGS, VOCABULARY)), int(rng.integers(2, 5)))
    layout = pick(rng, LAYOUTS)
    listed = "".join(layout.format(letter, item) for letter, item in zip(LETTERS, items, strict=False))
    order = [int(place) for place in rng.permutation(len(items))]
    letters, texts = " ".join(LETTERS[place] for place in order), " ".join(items[place] for place in order)
    draw = rng.random()
    asks: tuple[str, ...]
    if draw < 0.4:
        asks, given, answer = ("Find {}.", "Where is {}?", "Choose {}."), texts, letters
    elif draw < 0.8:
        asks, given, answer = (
            ("Label {}.", "Tag {}."),
            texts,
            " ".join(f"{items[p]} {LETTERS[p]}" for p in order),
        )
    else:
        asks, given, answer = ("Read {}.", "What does {} say?"), letters, texts
    question = pick(rng, asks).format(given)
    prompt = question + listed if rng.random() < 0.6 else f"{listed.strip()}\n{question}"
    return Question("chain", "text only", prompt, answer)


WORD_GAMES: tuple[Callable[[Generator], Question], ...] = (
    _say,
    _figures,
    _names,
    _letters,
    _letters,
    _letters,
)
