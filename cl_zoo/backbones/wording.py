"""A sample as tokens: what every family of backbones does with the text around a prompt, the prompt and its answer."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any, ClassVar

from torch import Tensor

from cl_zoo.backbones.templates import around
from cl_zoo.errors import DataError
from cl_zoo.tasks import Sample


class Worded:
    """The part of a backbone that writes and reads tokens; `Backbone` says what its attributes are."""

    image_frame: ClassVar[tuple[str, str]]
    image_text: ClassVar[str]
    name: str
    model: Any
    tokenizer: Any
    template: str
    max_tokens: int | None = None

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

    def answer_tokens(self, sample: Sample) -> int:
        """How many targets a sample has in a batch: the tokens of its answer and the one that ends it."""
        return len(self._ids(sample.answer or "")) + 1

    def text_tokens(self, texts: Sequence[str]) -> list[int]:
        """How many tokens each text has, as answers and prompts are read: without what a tokenizer puts around them."""
        settings = {
            "add_special_tokens": False,
            "return_attention_mask": False,
            "verbose": False,
        }  # lengths are judged in preflight
        ids = self.tokenizer(list(texts), **settings)["input_ids"]
        return [len(those) if text else 0 for text, those in zip(texts, ids, strict=True)]

    def prompt_tokens(self, prompts: Sequence[str], shown: Sequence[bool]) -> list[int]:
        """How many tokens prompts take in a batch, those of the images themselves aside.

        Args:
            shown: whether each prompt has an image.
        """
        parts = [self._parts(prompt, one) for prompt, one in zip(prompts, shown, strict=True)]
        fronts = {front: len(self._ids(front)) for front in {front for front, _ in parts}}
        behind = self.text_tokens([text for _, text in parts])
        start = len(self._start)
        return [start + fronts[front] + rest for (front, _), rest in zip(parts, behind, strict=True)]

    def decode(self, tokens: Tensor) -> list[str]:
        """Generated tokens (batch, n) to answers, without special tokens and outer white space."""
        return [text.strip() for text in self.tokenizer.batch_decode(tokens, skip_special_tokens=True)]

    @cached_property
    def _start(self) -> list[int]:
        """The token that the tokenizer puts before every text, if it does."""
        start = self.tokenizer.bos_token_id
        return [start] if start is not None and self.tokenizer("x")["input_ids"][0] == start else []

    def _ids(self, text: str) -> list[int]:
        return (
            list(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]) if text else []
        )

    def _tokens(self, sample: Sample, image_tokens: int, answers: bool) -> tuple[list[int], list[int]]:
        """Token ids of the prompt, image tokens repeated, and of the answer with its end token.

        What stands before and behind the image are texts of their own to the tokenizer, as in LLaVA's code: a SentencePiece
        vocabulary puts its dummy prefix before both, whatever the version of the tokenizer makes of one text with a gap. So is
        the answer. LLaVA's code puts the one space before it itself, so the answers of its records begin with none; one that did
        would be split in another way here than in a whole conversation.
        """
        self.check_prompt(sample.prompt, f"sample {sample.id!r}: its prompt")
        front, behind = self._parts(sample.prompt, sample.image is not None)
        shown = [self.model.config.image_token_id] * image_tokens
        prompt = self._start + self._ids(front) + shown + self._ids(behind)
        if not answers:
            self._check_length(sample, len(prompt), "its image")
            return prompt, []
        if not sample.answer:
            raise DataError(
                f"sample {sample.id!r} ({sample.prompt[:40]!r}…) has no answer to learn; drop it from the training split"
            )
        answer = [*self._ids(sample.answer), self.tokenizer.eos_token_id]
        self._check_length(sample, len(prompt) + len(answer), "its image and answer")
        return prompt, answer

    def _parts(self, prompt: str, shown: bool) -> tuple[str, str]:
        """The texts before and behind the image's tokens; nothing and the whole where there is none."""
        head, tail = around(self.template)
        if not shown:
            return "", head + prompt + tail
        before, behind = self.image_frame
        return head + before, behind + prompt + tail

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
