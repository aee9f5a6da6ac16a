"""Several questions about one picture in one sequence, so that picture and its tokens are paid for once.

Every question sees the picture's tokens and itself, and its positions start where the picture ends: for the model each
question is exactly what it would be alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from cl_zoo_bench_mini.network import ASSISTANT, END, IMAGE, PAD, TOKENS, USER
from cl_zoo_bench_mini.questions import Question
from cl_zoo_bench_mini.scenes import PLACES
from cl_zoo_bench_mini.words import split_words

IDS = {token: index for index, token in enumerate(TOKENS)}
PREFIX = [IDS[USER], *[IDS[IMAGE]] * PLACES]
"""What comes before a question: the user's mark and one token for each patch of the picture."""


@dataclass
class Packed:
    """A batch of packed sequences.

    Attributes:
        ids: tokens, [sequence, token].
        positions: position of each token as its question sees it, [sequence, token].
        owners: number of the question that a token belongs to, 0 for the picture and -1 for padding, [sequence, token].
        places: flat indices into [sequence x token] of the tokens that predict an answer's tokens.
        targets: the tokens that they should predict.
        weights: what each of them counts, so that a long answer counts as the root of its length.
        questions: the questions that found a place, in the order of their targets.
    """

    ids: Tensor
    positions: Tensor
    owners: Tensor
    places: Tensor
    targets: Tensor
    weights: Tensor
    questions: list[Question]


def encode(text: str) -> list[int]:
    """Token ids of a text, as the tokenizer gives them."""
    return [IDS[word] for word in split_words(text)]


def pack(batch: list[list[Question]], length: int) -> Packed:
    """One sequence of `length` tokens for each list of questions; questions that no longer fit are left out."""
    ids = np.full((len(batch), length), IDS[PAD])
    positions = np.zeros((len(batch), length), dtype=np.int64)
    owner = np.full((len(batch), length), -1)
    places: list[int] = []
    targets: list[int] = []
    weights: list[float] = []
    packed: list[Question] = []
    start = len(PREFIX)
    for row, asked in enumerate(batch):
        ids[row, :start], positions[row, :start], owner[row, :start] = PREFIX, np.arange(start), 0
        end = start
        for number, question in enumerate(asked, 1):
            answer = [*encode(question.answer), IDS[END]]
            tokens = [IDS["\n"], *encode(question.prompt), IDS[ASSISTANT], *answer]
            if end + len(tokens) > length:
                continue
            span = slice(end, end + len(tokens))
            ids[row, span], positions[row, span], owner[row, span] = (
                tokens,
                start + np.arange(len(tokens)),
                number,
            )
            end += len(tokens)
            places.extend(range(row * length + end - len(answer) - 1, row * length + end - 1))
            targets.extend(answer)
            weights.extend([len(answer) ** -0.5] * len(answer))
            packed.append(question)
    return Packed(
        torch.from_numpy(ids),
        torch.from_numpy(positions),
        torch.from_numpy(owner),
        torch.tensor(places),
        torch.tensor(targets),
        torch.tensor(weights),
        packed,
    )


def visible(owners: Tensor) -> Tensor:
    """Whether a token (third axis) is seen from a token (second axis), [sequence, token, token]."""
    same = owners.unsqueeze(2) == owners.unsqueeze(1)
    picture = (owners == 0).unsqueeze(1)
    return torch.tril(same | picture)
