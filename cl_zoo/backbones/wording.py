"""A sample as tokens: what every family of backbones does with the text around a prompt, the prompt and its answer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from itertools import zip_longest
from typing import Any, ClassVar, NamedTuple

from torch import Tensor

from cl_zoo.backbones.templates import around, between
from cl_zoo.batches import IGNORED, Row
from cl_zoo.errors import DataError
from cl_zoo.tasks import MARK, Sample

TEXT, IMAGE, ANSWER = "text", "image", "answer"
KNOWN = 2**14
"""Texts whose tokens a backbone remembers; beyond them it begins anew."""


class Piece(NamedTuple):
    """A part of a sample that is tokenized alone, as `Worded._tokens` says.

    Attributes:
        kind: a text, an image, or an answer, behind which its end token stands.
        text: empty for an image.
        learnt: whether it is an answer that is learnt.
    """

    kind: str
    text: str = ""
    learnt: bool = False


def placed(sample: Sample) -> bool:
    """Whether `<image>` in a sample's questions marks a place; in a single question about one image it does not."""
    return bool(sample.images) and bool(sample.more_images or sample.before)


class Worded:
    """The part of a backbone that writes and reads tokens; `Backbone` says what its attributes are."""

    image_frame: ClassVar[tuple[str, str]]
    image_text: ClassVar[str]
    answer_lead: ClassVar[str]
    several_images: ClassVar[bool]
    name: str
    model: Any
    tokenizer: Any
    template: str
    max_tokens: int | None = None
    _words: tuple[Any, dict[str, list[int]]] | None = None

    @property
    def tokens_together(self) -> int | None:
        """How many tokens an image takes whose sample has several; `None` where as many as alone."""
        return None

    def check_prompt(self, prompt: str, whose: str) -> None:
        """That a prompt does not hold the text that stands for an image, which the backbone puts before it.

        Args:
            whose: the subject of the sentence, as in "prompt 3".

        Raises:
            DataError: it does.
        """
        if self.image_text in prompt:
            raise DataError(
                f"{whose} holds {self.image_text}, which stands for the image itself; take it out of the text"
            )

    def misplaced(self, sample: Sample) -> str | None:
        """Why a sample's images cannot be shown, to follow its name and a colon: more than the family was taught, or more marks than
        images, or a text that stands for one; `None` where they can."""
        count = len(sample.images)
        if count > 1 and not self.several_images:
            return f"has {count} images where backbone {self.name} was taught one; choose one of a family that reads several (InternVL, LLaVA-OneVision, Qwen, SmolVLM2), or leave it out of the data"
        marked = placed(sample)
        marks = sum(text.count(MARK) for text in sample.questions) if marked else 0
        if marks > count:
            return f"marks {marks} places of images with {MARK} and has {count}; repair or drop it"
        try:
            for text in sample.questions:
                self.check_prompt(text.replace(MARK, "") if marked else text, "its prompt")
            for text in (*(answer for _, answer in sample.before), sample.answer or ""):
                self.check_prompt(text, "its answer")
        except DataError as error:
            return str(error)
        return None

    def answer_tokens(self, sample: Sample) -> int:
        """How many targets a sample has in a batch: the tokens of each answer that is learnt and the one that ends it."""
        return sum(len(self._ids(self.answer_lead + (answer or ""))) + 1 for answer in sample.learnt)

    def text_tokens(self, texts: Sequence[str]) -> list[int]:
        """How many tokens each text has, as answers and prompts are read: without what a tokenizer puts around them."""
        settings = {
            "add_special_tokens": False,
            "return_attention_mask": False,
            "verbose": False,
        }  # lengths are judged in preflight
        ids = self.tokenizer(list(texts), **settings)["input_ids"]
        return [len(those) if text else 0 for text, those in zip(texts, ids, strict=True)]

    def sample_tokens(self, samples: Sequence[Sample], *, answers: bool) -> list[int]:
        """How many tokens samples take in a batch, those of the images themselves aside.

        Args:
            answers: with their answers and the tokens that end them, as in training.
        """
        pieces = [list(self._pieces(sample, answers)) for sample in samples]
        texts = list(dict.fromkeys(piece.text for those in pieces for piece in those))
        counts = dict(zip(texts, self.text_tokens(texts) if texts else (), strict=True))
        start = len(self._start)
        return [
            start + sum(counts[piece.text] + (piece.kind == ANSWER) for piece in those) for those in pieces
        ]

    def image_width(self, shown: int | str) -> int:
        """How many tokens an image takes that `Backbone.show` gives as their number or as a text."""
        return shown if isinstance(shown, int) else len(self._ids(shown))

    def decode(self, tokens: Tensor) -> list[str]:
        """Generated tokens (batch, n) to answers, without special tokens and outer white space."""
        return [text.strip() for text in self.tokenizer.batch_decode(tokens, skip_special_tokens=True)]

    @cached_property
    def _start(self) -> list[int]:
        """The token that the tokenizer puts before every text, if it does."""
        start = self.tokenizer.bos_token_id
        return [start] if start is not None and self.tokenizer("x")["input_ids"][0] == start else []

    def _ids(self, text: str) -> list[int]:
        if text not in self._known:
            self._read([text])
        return list(self._known[text])

    @property
    def _known(self) -> dict[str, list[int]]:
        """Tokens by text, as the present tokenizer makes them."""
        if self._words is None or self._words[0] is not self.tokenizer:
            self._words = (self.tokenizer, {"": []})
        return self._words[1]

    def _read(self, texts: Iterable[str]) -> None:
        """Tokenize the texts that are not known, all in one call: its overhead is many times the work on a short text."""
        fresh = [text for text in dict.fromkeys(texts) if text not in self._known]
        if len(self._known) + len(fresh) > KNOWN:
            self._words = None
        if fresh:
            made = self.tokenizer(fresh, add_special_tokens=False, verbose=False)["input_ids"]
            self._known.update(zip(fresh, map(list, made), strict=True))

    def _rows(self, samples: Sequence[Sample], shown: Iterator[int | str], answers: bool) -> list[Row]:
        """`_tokens` of each sample; `shown` gives what stands for the images of all of them, one after the other."""
        self._read(piece.text for sample in samples for piece in self._pieces(sample, answers))
        return [self._tokens(sample, [next(shown) for _ in sample.images], answers) for sample in samples]

    def _tokens(self, sample: Sample, images: Sequence[int | str], answers: bool) -> Row:
        """Token ids of a sample, in training with its answer and the end token, and what is learnt of them.

        What stands before and behind the image are texts of their own to the tokenizer, as in LLaVA's code: a SentencePiece
        vocabulary puts its dummy prefix before both, whatever the version of the tokenizer makes of one text with a gap. So are
        each answer and what follows its end token. LLaVA's code puts the one space before an answer itself, so the answers of its
        records begin with none; one that did would be split in another way here than in a whole conversation.

        Args:
            images: how often the image token stands for each image, or the text that does.
        """
        if answers and not all(sample.learnt):
            raise DataError(
                f"sample {sample.id!r} ({sample.prompt[:40]!r}…) has no answer to learn; drop it from the training split"
            )
        row, learning, shown = Row(list(self._start), []), False, iter(images)
        for piece in self._pieces(sample, answers):
            ids = self._image_ids(next(shown)) if piece.kind == IMAGE else self._ids(piece.text)
            if piece.kind == ANSWER:
                ids.append(self.tokenizer.eos_token_id)
            row.ids.extend(ids)
            learning = learning or piece.learnt
            if learning:
                row.targets.extend(ids if piece.learnt else [IGNORED] * len(ids))
        self._check_length(sample, len(row.ids), "its image and answer" if answers else "its image")
        return row

    def _image_ids(self, shown: int | str) -> list[int]:
        return self._ids(shown) if isinstance(shown, str) else [int(self.model.config.image_token_id)] * shown

    def _pieces(self, sample: Sample, answers: bool) -> Iterator[Piece]:
        """What a sample is made of, in its order."""
        head, tail = around(self.template)
        texts = [self._around_images(text) if placed(sample) else [text] for text in sample.questions]
        first = len(sample.images) - sum(len(parts) - 1 for parts in texts)
        texts[0] = [*[""] * first, *texts[0]]  # images without a mark
        answered = [*((text, answers and sample.learns_before) for _, text in sample.before)]
        if answers:
            answered.append((sample.answer or "", True))
        for parts, answer in zip_longest(texts, answered):
            yield from self._asked(head, parts, tail)
            if answer is not None:
                text, learnt = answer
                yield Piece(ANSWER, self.answer_lead + text, learnt)
            head = between(self.template)

    def _asked(self, head: str, parts: Sequence[str], tail: str) -> Iterator[Piece]:
        """A question with an image between any two of its parts."""
        before, behind = self.image_frame
        text = head + parts[0]
        for part in parts[1:]:
            yield Piece(TEXT, text + before)
            yield Piece(IMAGE)
            text = behind + part
        yield Piece(TEXT, text + tail)

    def _around_images(self, text: str) -> list[str]:
        """The parts of a question before, between and behind its marks; a line break that belongs to an image is not written twice."""
        first, *others = text.split(MARK)
        breaks = self.image_frame[1].endswith("\n")
        return [first, *(other.removeprefix("\n") if breaks else other for other in others)]

    @cached_property
    def positions(self) -> int | None:
        """How many tokens the language model can hold; `None` where its configuration does not say."""
        return getattr(self.model.config.get_text_config(), "max_position_embeddings", None)

    def too_long(self, length: int, what: str) -> str | None:
        """Why a sequence of so many tokens is refused, to follow its name in a sentence; `None` where it is not.

        LLaVA's code cuts the end off what is too long, and with it the answer that is to be learnt. Soft prompts that a method
        puts in are not counted.

        Args:
            what: beside the text, as in "its image and answer".
        """
        if self.max_tokens is not None and length > self.max_tokens:
            return f"takes {length} tokens with {what}, more than the recipe's max_tokens {self.max_tokens}; leave it out of the data, or allow more with --set max_tokens={length}"
        if self.positions is not None and length > self.positions:
            return f"takes {length} tokens with {what}, more than the {self.positions} positions of backbone {self.name}; shorten its text or leave it out of the data"
        return None

    def _check_length(self, sample: Sample, length: int, what: str) -> None:
        if says := self.too_long(length, what):
            raise DataError(f"sample {sample.id!r} {says}")
