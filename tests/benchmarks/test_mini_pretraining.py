"""Pre-training of the base model: its questions, how they are packed, and that an interruption changes nothing."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from cl_zoo_bench_mini.batches import Place, Steps
from cl_zoo_bench_mini.language import draw_batch
from cl_zoo_bench_mini.network import Shape, build_model, build_tokenizer
from cl_zoo_bench_mini.packing import IDS, PREFIX, encode, pack, visible
from cl_zoo_bench_mini.questions import BINDING, BROAD, MIXED, SAYINGS, Mix, Question, questions
from cl_zoo_bench_mini.scenes import SCENES
from cl_zoo_bench_mini.tasks import CAPTION, CAPTION_QUESTION, LETTER, ONE_WORD, task_data
from cl_zoo_bench_mini.train_base import (
    Plan,
    Stage,
    broad_optimizers,
    train_language,
    train_sayings,
    train_vision,
    warm_and_fall,
)
from cl_zoo_bench_mini.wordings import INSTRUCTIONS
from cl_zoo_bench_mini.words import split_words
from safetensors.torch import load_file

TINY = Shape(width=16, layers=1, heads=2, inner=16, vision_width=16, vision_layers=1, vision_heads=2)
SHORT = Plan(
    vision_steps=3,
    stages=(Stage(2, BROAD), Stage(4, BINDING), Stage(6, MIXED)),
    sayings_steps=4,
    sayings_pictures=1,
    pictures=2,
    length=80,
    every=2,
    held_out=1,
)


def drawn(count: int, mix: Mix = BROAD) -> list[Question]:
    rng = np.random.default_rng(11)
    return [
        q for place in range(count) for q in questions(SCENES[place % len(SCENES)].draw(rng), rng, 6, mix)
    ]


def test_pre_training_never_asks_as_a_task_does():
    prompts = {question.prompt for mix in (BROAD, SAYINGS) for question in drawn(1500, mix)}
    for sentence in (ONE_WORD, LETTER, CAPTION, CAPTION_QUESTION):
        assert not any(sentence in prompt for prompt in prompts)
        assert not any(sentence in wording for wordings in INSTRUCTIONS.values() for wording in wordings)
    first_lines = {task.train[index].prompt.splitlines()[0] for task in task_data() for index in range(40)}
    assert not first_lines & {line for prompt in prompts for line in prompt.splitlines()}


def test_every_word_of_pre_training_is_in_the_vocabulary():
    for question in (*drawn(600), *drawn(600, SAYINGS)):
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
    assert [warm_and_fall(step, 200, 1000, 0.6) for step in (0, 200, 599, 600, 800)] == pytest.approx(
        [1 / 200, 1, 1, 1, 0.5]
    )


def test_muon_takes_every_matrix_of_the_layers_and_adamw_the_rest():
    model = build_model(TINY, 0)
    optimizers = broad_optimizers(model, SHORT)
    owned = {
        name: sum(len(group["params"]) for group in one.param_groups) for name, one in optimizers.items()
    }
    assert owned == {"muon": 7, "adamw": len(list(model.parameters())) - 7}


def test_a_batch_is_the_same_whoever_draws_it():
    steps = Steps(partial(draw_step, SHORT), 3, 6)
    alone, helped = (list(Place("cpu", workers).each(steps)) for workers in (0, 1))
    assert [step for step, _ in alone] == [step for step, _ in helped] == [3, 4, 5]
    for (_, (images, packed)), (_, (same, again)) in zip(alone, helped, strict=True):
        assert torch.equal(images, same)
        assert torch.equal(packed.ids, again.ids)
        assert packed.questions == again.questions


def draw_step(plan: Plan, step: int):
    return draw_batch((9, step), plan.pictures, plan.length)


def test_the_last_phase_holds_the_tower_and_asks_for_captions_in_the_tasks_wordings(tmp_path: Path):
    captions = [q for q in drawn(300, SAYINGS) if q.form == "caption"]
    assert captions
    assert all(question.answer in question.accepted for question in captions)
    assert {question.prompt for question in captions} <= set(INSTRUCTIONS["caption"])
    train(tmp_path, ())
    broad, base = (load_file(tmp_path / name / "model.safetensors") for name in ("broad", "base"))
    moved = {name for name in broad if not torch.equal(broad[name], base[name])}
    assert not any("vision_tower" in name for name in moved)
    assert any("language_model" in name for name in moved)


def test_an_interrupted_training_ends_where_an_uninterrupted_one_does(tmp_path: Path):
    for name, stops in (("through", ()), ("stopped", (1, 3))):
        train(tmp_path / name, stops)
    through, stopped = (
        load_file(tmp_path / name / "base/model.safetensors") for name in ("through", "stopped")
    )
    assert all(torch.equal(through[name], stopped[name]) for name in through)


def train(work: Path, stops: tuple[int, ...]) -> None:
    work.mkdir(exist_ok=True)
    train_vision(SHORT, TINY, 0, work)
    for stop in (*stops, None):
        train_language(SHORT, TINY, 0, work, until=stop)
    for stop in (*stops, None):
        train_sayings(SHORT, 0, work, until=stop)


def _hidden(model, packed):
    embedded = model.model.get_input_embeddings()(packed.ids)
    mask = torch.zeros(visible(packed.owners).shape).masked_fill_(~visible(packed.owners), -1e4).unsqueeze(1)
    return model.model.language_model(
        inputs_embeds=embedded, attention_mask=mask, position_ids=packed.positions, use_cache=False
    ).last_hidden_state
