"""SmolVLM2: tiles and their marks, token for token those of transformers' processor; what it shares with other families is in `test_families`."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from cl_zoo.backbones.backbone import Backbone
from cl_zoo.backbones.smolvlm import AROUND, load
from cl_zoo.batches import IGNORED
from cl_zoo.errors import OptionError
from cl_zoo.planning.sizes import shapes
from cl_zoo.tasks import Sample
from cl_zoo.testing import square, tiny_smolvlm

CPU = torch.device("cpu")
IMAGES = tuple(
    Image.new("RGB", size, (9 * place, 99, 199)) for place, size in enumerate([(16, 16), (40, 12), (9, 50)])
)
MARKS = (AROUND, "<global-img>", *(f"<row_{row}_col_{column}>" for row in (1, 2) for column in (1, 2)))
SAID = "User: Is 12 in it? Answer with a word. Assistant: no, 3 are  left\n\nA red square's side (half)"

SAMPLES = {
    "one image": Sample("0", IMAGES[1], "Is 12 in it?\nAnswer with a word.", "no"),
    "a digit": Sample("1", IMAGES[2], "How many?", "3"),
    "no image": Sample("2", None, "Is it red?", "a red (half) square"),
    "images first": Sample("3", IMAGES[0], "What is left?", "red", more_images=IMAGES[1:]),
    "images in the text": Sample(
        "4", IMAGES[1], "Is <image>\nin <image> or <image>?", "no", more_images=(IMAGES[0], IMAGES[2])
    ),
    "two turns": Sample(
        "5", IMAGES[2], "<image>And this?\n", "left", more_images=IMAGES[:1], before=(("Is it?", "a square"),)
    ),
    "an image of a later turn": Sample("6", IMAGES[0], "Is <image> red?", "no", before=(("Is it?", "no"),)),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_smolvlm(tmp_path_factory.mktemp("smolvlm") / "model")


@pytest.fixture
def backbone(folder: Path) -> Backbone:
    return load(folder, CPU, torch.float32)


@pytest.fixture
def spoken(backbone: Backbone) -> Backbone:
    """With a vocabulary that was learnt as SmolLM2's: digits alone, a space as a part of the word behind it."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    raw.decoder = decoders.ByteLevel()
    marks = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *MARKS, "<image>", "<end_of_utterance>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    raw.train_from_iterator(
        [SAID] * 3, trainers.BpeTrainer(special_tokens=marks, initial_alphabet=alphabet, show_progress=False)
    )
    backbone.tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, bos_token="<|im_start|>", eos_token="<end_of_utterance>", pad_token="<|im_end|>"
    )
    backbone.model.config.image_token_id = backbone.tokenizer.convert_tokens_to_ids("<image>")
    return backbone


def messages(sample: Sample, *, answered: bool) -> list[dict[str, Any]]:
    """A sample as the processor's chat template takes it: images without a mark first."""
    marks = bool(sample.more_images or sample.before)
    texts = [text.split("<image>") if marks else [text] for text in sample.questions]
    first = len(sample.images) - sum(len(parts) - 1 for parts in texts)
    texts[0] = [""] * first + texts[0]
    answers = [text for _, text in sample.before] + ([sample.answer or ""] if answered else [])
    said: list[dict[str, Any]] = []
    for turn, parts in enumerate(texts):
        content: list[dict[str, str]] = []
        for place, part in enumerate(parts):
            content += [{"type": "image"}] * (place > 0) + ([{"type": "text", "text": part}] if part else [])
        said.append({"role": "user", "content": content})
        if turn < len(answers):
            said.append({"role": "assistant", "content": [{"type": "text", "text": answers[turn]}]})
    return said


def processed(backbone: Backbone, sample: Sample, monkeypatch: pytest.MonkeyPatch, *, answered: bool) -> Any:
    """What transformers' own processor and chat template make of a sample."""
    from transformers.models.smolvlm import processing_smolvlm
    from transformers.video_processing_utils import BaseVideoProcessor

    class NoVideo(BaseVideoProcessor):
        def __init__(self) -> None: ...

    monkeypatch.setattr(processing_smolvlm, "num2words", str)  # the words of a video's number of frames
    processor = processing_smolvlm.SmolVLMProcessor(
        copy.deepcopy(backbone.image_processor), backbone.tokenizer, NoVideo(), image_seq_len=4
    )
    text = processing_smolvlm.ProcessorMixin.apply_chat_template(
        processor,
        messages(sample, answered=answered),
        processing_smolvlm.DEFAULT_CHAT_TEMPLATE,
        add_generation_prompt=not answered,
        tokenize=False,
    )
    images = [list(sample.images)] if sample.images else None
    return processor(text=[text], images=images, return_tensors="pt")


@pytest.mark.parametrize("name", sorted(SAMPLES))
def test_a_prompt_is_token_for_token_and_pixel_for_pixel_that_of_the_processor(
    spoken: Backbone, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sample = SAMPLES[name]

    theirs = processed(spoken, sample, monkeypatch, answered=False)
    ours = spoken.batch([sample], answers=False)

    assert ours.inputs["input_ids"].tolist() == theirs["input_ids"].tolist()
    if sample.images:
        made = torch.cat([spoken._pixels(image)["pixel_values"] for image in sample.images])
        assert torch.equal(made[:, 0], theirs["pixel_values"][0])
        assert theirs["pixel_attention_mask"].all()  # every tile is whole: nothing has to be masked


@pytest.mark.parametrize("name", sorted(SAMPLES))
def test_what_is_learnt_is_the_answer_with_its_space_and_its_end_as_in_the_chat_template(
    spoken: Backbone, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sample = SAMPLES[name]

    theirs = processed(spoken, sample, monkeypatch, answered=True)["input_ids"][0].tolist()
    ours = spoken.batch([sample], answers=True)

    line_break = spoken.tokenizer("\n")["input_ids"]
    assert ours.targets is not None
    learnt = ours.targets[0]
    whole = [*ours.inputs["input_ids"][0].tolist(), int(learnt[-1])]
    assert whole + line_break == theirs
    answers = [*(text for _, text in sample.before), sample.answer]
    said = [f" {text}<end_of_utterance>" for text in answers]
    assert spoken.tokenizer.decode(learnt[learnt != IGNORED]) == "".join(said)
    assert spoken.answer_tokens(sample) == int((learnt != IGNORED).sum())


def test_the_space_is_a_part_of_the_word_that_is_answered(spoken: Backbone) -> None:
    """So an answer of one word is one token, where its word alone would be several."""
    word, alone = spoken.tokenizer(" left", add_special_tokens=False), spoken.tokenizer("left")

    assert len(word["input_ids"]) == 1 < len(alone["input_ids"])
    assert spoken.answer_tokens(Sample("0", None, "Where?", "left")) == 2
    assert spoken.decode(torch.tensor([word["input_ids"]])) == ["left"]


def test_a_template_of_ones_own_keeps_its_space_before_an_image(spoken: Backbone) -> None:
    spoken.adjust(template="Ask: {prompt} Say:")

    batch = spoken.batch([Sample("0", square(0)[0], "Red?", "no")], answers=False)

    assert spoken.tokenizer.decode(batch.inputs["input_ids"][0]).startswith(f"Ask: {AROUND}<row_1_col_1>")


@pytest.mark.parametrize(
    ("size", "rows", "columns"),
    [((16, 16), 2, 2), ((300, 300), 2, 2), ((40, 12), 1, 2), ((9, 50), 2, 1), ((300, 1), 1, 2)],
)
def test_an_image_is_scaled_to_tiles_whatever_its_size_and_the_whole_follows(
    backbone: Backbone, size: tuple[int, int], rows: int, columns: int
) -> None:
    """The longer side becomes 32 pixels, two tiles of 16; each has 4 × 4 patches, of which 2 × 2 are a token."""
    batch = backbone.batch([Sample("0", Image.new("RGB", size, (9, 99, 199)), "What ?", "red")], answers=True)

    tiles = rows * columns + 1
    assert batch.spans == (tiles,)
    assert batch.inputs["pixel_values"].shape == (tiles, 1, 1, 16, 16)
    text = backbone.tokenizer.decode(batch.inputs["input_ids"][0])
    assert text.count("<image>") == 4 * tiles
    assert text.count(f"<row_{rows}_col_{columns}>") == 1
    assert text.count(AROUND) == tiles + 1


def test_features_of_an_image_are_the_same_bits_in_any_company(folder: Path) -> None:
    (alone,) = load(folder, CPU, torch.float32).encode(IMAGES[1:2])
    _, together = load(folder, CPU, torch.float32).encode(IMAGES[:2])

    assert torch.equal(alone, together)


def test_tokens_are_not_counted_where_tiles_do_not_fill_the_longer_side(backbone: Backbone) -> None:
    backbone.image_processor.size = {"longest_edge": 40}

    assert backbone.image_tokens(20, 30) is None


def test_the_aspect_of_an_image_is_kept(backbone: Backbone) -> None:
    with pytest.raises(
        OptionError, match=r"--image-aspect pad: backbone smolvlm2 does not do that; known: keep"
    ):
        backbone.adjust(image_aspect="pad")


def test_the_published_model_has_81_tokens_a_tile_and_two_billion_weights() -> None:
    backbone = shapes("smolvlm2-2.2b")

    tokens, patches, _ = backbone.cost(500, 500)
    assert patches == 17 * 27 * 27
    assert tokens == 17 * (81 + 2) - 1
    assert sum(weight.numel() for weight in backbone.model.parameters()) == 2_246_784_880
