"""Pre-training of the base model: its questions, how they are packed, and that an interruption changes nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from cl_zoo_bench_mini.network import Shape, build_model, build_tokenizer
from cl_zoo_bench_mini.packing import IDS, PREFIX, encode, pack
from cl_zoo_bench_mini.questions import BINDING, BROAD, GAMES, Question, questions
from cl_zoo_bench_mini.scenes import SCENES
from cl_zoo_bench_mini.tasks import CAPTION, CAPTION_QUESTION, LETTER, ONE_WORD, task_data
from cl_zoo_bench_mini.train_base import (
    Plan,
    Stage,
    language_rate,
    stage_optimizers,
    train_language,
    train_vision,
)
from cl_zoo_bench_mini.wordings import INSTRUCTIONS
from cl_zoo_bench_mini.words import split_words
from safetensors.torch import load_file

TINY = Shape(width=16, layers=1, heads=2, inner=16, vision_width=16, vision_layers=1, vision_heads=2)
STAGES = (Stage(2, BROAD, 1e-3), Stage(4, BINDING, 1e-3, from_mean=True), Stage(6, GAMES, 1e-3, 1e-3))
SHORT = Plan(
    vision_steps=3, vision_batch=2, stages=STAGES, pictures=1, length=80, falls=5, every=2, held_out=1
)


def drawn(count: int) -> list[Question]:
    rng = np.random.default_rng(11)
    return [q for place in range(count) for q in questions(SCENES[place % len(SCENES)].draw(rng), rng, 6)]


def test_pre_training_never_asks_as_a_task_does():
    prompts = {question.prompt for question in drawn(1500)}
    for sentence in (ONE_WORD, LETTER, CAPTION, CAPTION_QUESTION):
        assert not any(sentence in prompt for prompt in prompts)
        assert not any(sentence in wording for wordings in INSTRUCTIONS.values() for wording in wordings)
    first_lines = {task.train[index].prompt.splitlines()[0] for task in task_data() for index in range(40)}
    assert not first_lines & {line for prompt in prompts for line in prompt.splitlines()}


def test_every_word_of_pre_training_is_in_the_vocabulary():
    for question in drawn(600):
        for text in (question.prompt, question.answer, *question.accepted):
            assert [word for word in split_words(text) if word not in IDS] == []


def test_an_answer_is_among_its_accepted_ones_and_spaces_do_not_matter():
    assert all(question.accepts(question.answer) for question in drawn(100))
    assert Question("s", "both", "?", "B) red").accepts("B ) red")
    assert not Question("s", "letter", "?", "B").accepts("A")


def test_an_option_question_is_answered_by_what_its_form_asks_for():
    for question in drawn(300):
        if question.form == "letter":
            assert question.answer in "ABCD"
        if question.form == "both":
            assert question.answer[:3] in ("A) ", "B) ", "C) ", "D) ")
            assert question.answer[3:] in question.prompt


def test_packing_and_the_tokenizer_agree_on_words():
    tokenizer = build_tokenizer()
    for question in drawn(50):
        text = f"USER: <image>\n{question.prompt} ASSISTANT: {question.answer}</s>"
        packed = [PREFIX[0], IDS["<image>"], IDS["\n"], *encode(question.prompt), IDS["ASSISTANT:"]]
        assert tokenizer(text)["input_ids"] == [*packed, *encode(question.answer), IDS["</s>"]]


def test_a_packed_question_sees_the_picture_and_itself_only():
    pair = [
        Question("s", "word", "How many dots are there?", "two"),
        Question("s", "word", "Read the clock.", "six"),
    ]
    both, alone = pack([pair], 64), pack([pair[1:]], 64)
    model = build_model(TINY, 0).eval()
    hidden = [_hidden(model, packed) for packed in (both, alone)]
    last = [torch.from_numpy(np.asarray(packed.places))[-2:] for packed in (both, alone)]
    torch.testing.assert_close(hidden[0][0, last[0]], hidden[1][0, last[1]], atol=1e-6, rtol=1e-5)


def test_questions_that_do_not_fit_are_left_out():
    question = Question("s", "word", "How many dots are there?", "two")
    packed = pack([[question] * 9], 50)
    assert len(packed.questions) == (50 - len(PREFIX)) // (1 + 6 + 1 + 2)
    assert len(packed.targets) == 2 * len(packed.questions)


def test_a_long_answer_counts_as_the_root_of_its_length():
    long = Question("s", "sentence", "Read the clock.", "the clock shows six")
    packed = pack([[long]], 64)
    assert float(packed.weights.sum()) == pytest.approx(5**0.5)


def test_the_learning_rate_warms_up_is_held_and_falls():
    plan = Plan(stages=(Stage(1000, BROAD, 1.0),), falls=600)
    assert [language_rate(step, plan) for step in (0, 200, 599, 600, 800)] == pytest.approx(
        [1 / 200, 1, 1, 1, 0.5]
    )


def test_a_stage_with_muon_gives_it_every_matrix_of_the_layers_and_adamw_the_rest():
    model = build_model(TINY, 0)
    optimizers = stage_optimizers(model, STAGES[2], SHORT)
    owned = {
        name: sum(len(group["params"]) for group in one.param_groups) for name, one in optimizers.items()
    }
    assert owned == {"muon": 7, "adamw": len(list(model.parameters())) - 7}


def test_an_interrupted_training_ends_where_an_uninterrupted_one_does(tmp_path: Path):
    for folder, stops in (("through", (None,)), ("stopped", (2, 5, None))):
        work = tmp_path / folder
        work.mkdir()
        train_vision(SHORT, TINY, 0, work)
        for stop in stops:
            train_language(SHORT, TINY, 0, work, until=stop)
    through, stopped = (
        load_file(tmp_path / name / "language" / "mean.safetensors") for name in ("through", "stopped")
    )
    assert all(torch.equal(through[name], stopped[name]) for name in through)


def _hidden(model, packed):
    embedded = model.model.get_input_embeddings()(packed.ids)
    mask = torch.zeros(packed.visible.shape).masked_fill_(~packed.visible, -1e4).unsqueeze(1)
    return model.model.language_model(
        inputs_embeds=embedded, attention_mask=mask, position_ids=packed.positions, use_cache=False
    ).last_hidden_state
