"""Soft prompts: where they stand, that they read as tokens would, and that nobody notices the padding."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from cl_zoo.backbones.backbone import Backbone
from cl_zoo.batches import Batch, answer_losses, forward
from cl_zoo.engine.learning import recompute_activations
from cl_zoo.errors import BackboneError
from cl_zoo.nn.prompts import Prompted, insert, token_rows
from cl_zoo.tasks import Sample
from cl_zoo.testing import tiny_backbone, tiny_benchmark

SHOWN, OTHER = tiny_benchmark().tasks[0].train[:2]
BLIND = Sample("t", None, "Say one colour . Answer with one word in short and what is it ?", "red green")
SHORT = Sample("s", None, "Say", "red")


class Fixed(Prompted):
    """The same learning prompts for every sample."""

    def __init__(self, backbone: Backbone, count: int) -> None:
        super().__init__(backbone)
        torch.manual_seed(0)
        self.own = nn.Parameter(token_rows(backbone, count))
        self.rows = 0

    def prepare(self, batch: Batch) -> None:
        self.rows = len(batch)

    def soft_prompts(self) -> Tensor:
        return self.own.expand(self.rows, -1, -1)


def with_tokens(batch: Batch, tokens: Tensor) -> dict[str, Tensor]:
    """The batch with further token ids written behind each row's first token, row by row; padding stays on the left."""
    ids, mask = [], []
    for row, real in zip(batch.inputs["input_ids"], batch.inputs["attention_mask"], strict=True):
        first = real.tolist().index(1)
        ids.append(torch.cat([row[: first + 1], tokens, row[first + 1 :]]))
        mask.append(torch.cat([real, torch.ones_like(tokens)]).sort().values)
    given = {"input_ids": torch.stack(ids), "attention_mask": torch.stack(mask)}
    return {**batch.inputs, **given, "position_ids": (given["attention_mask"].cumsum(1) - 1).clamp(min=0)}


def test_prompts_stand_behind_the_first_real_token_of_each_row() -> None:
    """Rows 0 0 3 4 and 5 6 7 8 with prompts 11 12 and 21 22 become 0 0 3 11 12 4 and 5 21 22 6 7 8."""
    embedded = torch.tensor([[0.0, 0, 3, 4], [5, 6, 7, 8]])[..., None]
    mask = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])
    prompts = torch.tensor([[11.0, 12], [21, 22]])[..., None]

    longer, real = insert(embedded, mask, prompts)

    assert longer[..., 0].tolist() == [[0, 0, 3, 11, 12, 4], [5, 21, 22, 6, 7, 8]]
    assert real.tolist() == [[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]]


def test_no_prompts_change_nothing() -> None:
    embedded, mask = torch.randn(2, 3, 4), torch.tensor([[0, 0, 1], [0, 1, 1]])

    same, real = insert(embedded, mask, torch.empty(2, 0, 4))

    assert torch.equal(same, embedded)
    assert torch.equal(real, mask)


@pytest.mark.parametrize("samples", [(SHOWN, OTHER), (BLIND, SHORT), (SHOWN, BLIND, OTHER)], ids=len)
@pytest.mark.parametrize("answers", [True, False])
def test_behind_no_prompts_the_logits_are_the_plain_models_bit_for_bit(
    tiny: Backbone, samples: tuple[Sample, ...], answers: bool
) -> None:
    model = Fixed(tiny, 0).eval()
    batch = tiny.batch(samples, answers=answers)
    positions = (batch.inputs["attention_mask"].cumsum(1) - 1).clamp(min=0)

    logits = forward(model, batch).logits

    plain = tiny.model(**{**batch.inputs, "position_ids": positions}, use_cache=False)
    assert torch.equal(logits, plain.logits)


@pytest.mark.parametrize("samples", [(SHOWN, SHORT, BLIND), (SHORT,), (SHOWN, OTHER)], ids=len)
def test_prompts_that_equal_tokens_read_as_these_tokens(tiny: Backbone, samples: tuple[Sample, ...]) -> None:
    """The plain model on ids in which the tokens themselves stand behind the first one."""
    tokens = torch.tensor([7, 12, 9])
    model = Fixed(tiny, 3).eval()
    model.own.data.copy_(tiny.model.get_input_embeddings()(tokens))
    batch = tiny.batch(samples, answers=True)

    outputs = forward(model, batch)

    assert outputs.logits.shape[:2] == batch.targets.shape
    expected = tiny.model(**with_tokens(batch, tokens)).logits
    torch.testing.assert_close(outputs.logits, expected, rtol=0, atol=1e-5)
    assert answer_losses(outputs, batch)[~batch.answer_mask].abs().sum() == 0


def test_the_padding_of_a_row_does_not_matter(tiny: Backbone) -> None:
    model = Fixed(tiny, 4).eval()
    together = tiny.batch([SHORT, SHOWN, BLIND], answers=True)
    logits = forward(model, together).logits
    for row, sample in enumerate(together.samples):
        alone = tiny.batch([sample], answers=True)
        torch.testing.assert_close(
            logits[row][together.answer_mask[row]], forward(model, alone).logits[0], rtol=0, atol=1e-5
        )


@pytest.mark.parametrize("samples", [(SHOWN, SHORT, BLIND), (SHORT, BLIND), (OTHER,)], ids=len)
def test_generating_with_the_cache_gives_what_a_loop_without_it_does(
    tiny: Backbone, samples: tuple[Sample, ...]
) -> None:
    model = Fixed(tiny, 4).eval()
    batch = tiny.batch(samples, answers=False)
    image = tiny.model.config.image_token_id  # in the loop's input it would stand for an image
    model.prepare(batch)

    made = model.generate(
        **batch.inputs,
        max_new_tokens=4,
        do_sample=False,
        pad_token_id=0,
        eos_token_id=None,
        suppress_tokens=[image],
    )

    inputs = dict(batch.inputs)
    for _ in range(4):
        logits = model(**inputs).logits[:, -1]
        logits[:, image] = -torch.inf
        token = logits.argmax(-1, keepdim=True)
        inputs["input_ids"] = torch.cat([inputs["input_ids"], token], 1)
        inputs["attention_mask"] = torch.cat([inputs["attention_mask"], torch.ones_like(token)], 1)
    assert torch.equal(made, inputs["input_ids"])


def test_generation_without_prompts_is_the_plain_models(tiny: Backbone) -> None:
    model = Fixed(tiny, 0).eval()
    batch = tiny.batch([SHOWN, BLIND, SHORT], answers=False)
    end = tiny.tokenizer.eos_token_id
    settings = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "eos_token_id": end}
    model.prepare(batch)

    assert torch.equal(
        model.generate(**batch.inputs, **settings), tiny.model.generate(**batch.inputs, **settings)
    )


def test_an_image_is_read_through_the_projector_as_it_is_now(tiny: Backbone) -> None:
    """Its tokens hold the projected features, patch by patch; prompts stand behind the first token, all others are rows of the table."""
    batch = tiny.batch([BLIND, SHOWN], answers=False)
    model, ids = Fixed(tiny, 2), batch.inputs["input_ids"]
    tiny.projector.linear_2.bias.data.add_(1)
    seen: list[Tensor] = []
    tiny.model.model.language_model.register_forward_pre_hook(
        lambda module, given, named: seen.append(named["inputs_embeds"]), with_kwargs=True
    )

    forward(model, batch)

    (read,) = seen
    table = tiny.model.get_input_embeddings()
    patches = batch.inputs["pixel_values"][0, 1:]  # the first one stands for the whole image and is left out
    for row, first in enumerate(batch.first_tokens.tolist()):
        assert torch.equal(read[row, first + 1 : first + 3], model.own)
        rest = torch.cat([read[row, : first + 1], read[row, first + 3 :]])
        shown = ids[row] == tiny.model.config.image_token_id
        assert int(shown.sum()) == [0, 4][row]
        torch.testing.assert_close(rest[shown], tiny.projector(patches)[: int(shown.sum())])
        assert torch.equal(rest[~shown], table(ids[row])[~shown])


def test_what_the_model_reads_afterwards_is_its_own(tiny: Backbone) -> None:
    """Also where reading the prompts ended in an error."""
    batch = tiny.batch([BLIND, SHOWN], answers=True)
    plain = forward(tiny.model, batch).logits

    model = Fixed(tiny, 2)
    forward(model, batch)
    with pytest.raises(ValueError, match="max_new_tokens"):
        model.generate(**tiny.batch([BLIND, SHOWN], answers=False).inputs, max_new_tokens=0)

    assert torch.equal(forward(tiny.model, batch).logits, plain)


def test_prompts_and_projector_learn_and_nothing_else(tiny: Backbone) -> None:
    model = Fixed(tiny, 2).train()
    tiny.train_projector(True)
    batch = tiny.batch([SHOWN, BLIND], answers=True)

    answer_losses(forward(model, batch), batch).sum().backward()

    learning = {name for name, weight in model.named_parameters() if weight.grad is not None}
    assert {name.split(".")[-2] for name in learning - {"own"}} == {"linear_1", "linear_2"}
    assert model.own.grad is not None
    assert (model.own.grad.abs().sum(1) > 0).all()


def gradient(backbone: Backbone) -> Tensor:
    model = Fixed(backbone, 2).train()
    model.own.data.copy_(backbone.model.get_input_embeddings().weight[4:6])
    batch = backbone.batch([SHOWN, BLIND], answers=True)
    answer_losses(forward(model, batch), batch).sum().backward()
    assert model.own.grad is not None
    return model.own.grad


def test_recomputing_activations_gives_the_same_gradient(tiny_folder: Path) -> None:
    plain, saving = tiny_backbone(tiny_folder), tiny_backbone(tiny_folder)
    recompute_activations(saving.model)

    assert torch.equal(gradient(plain), gradient(saving))


def test_under_bf16_autocast_prompts_keep_their_own_precision(tiny: Backbone) -> None:
    tiny.train_projector(True)
    exact = gradient(tiny)
    with torch.autocast("cpu", torch.bfloat16):
        rough = gradient(tiny)

    assert rough.dtype == torch.float32
    torch.testing.assert_close(rough, exact, rtol=0.1, atol=0.1 * float(exact.abs().max()))


def test_a_half_precision_model_reads_full_precision_prompts(tiny_folder: Path) -> None:
    backbone = tiny_backbone(tiny_folder, dtype=torch.bfloat16)
    model = Fixed(backbone, 2).eval()

    outputs = forward(model, backbone.batch([SHOWN, BLIND], answers=True))

    assert model.own.dtype == torch.float32
    assert outputs.logits.dtype == torch.bfloat16


def test_new_prompts_are_rows_of_the_embedding_table(tiny: Backbone) -> None:
    table = tiny.model.get_input_embeddings().weight
    torch.manual_seed(0)
    first = token_rows(tiny, 5)
    torch.manual_seed(0)
    again = token_rows(tiny, 5)

    assert all(any(torch.equal(row, known) for known in table) for row in first)
    assert torch.equal(first, again)
    first.add_(1)  # copies
    assert not any(torch.equal(row, known) for row in first for known in table)


def test_prompts_of_another_batch_are_refused(tiny: Backbone) -> None:
    model = Fixed(tiny, 2)
    model.prepare(tiny.batch([SHOWN], answers=False))
    with pytest.raises(ValueError, match=r"for 1 samples and the input has 2; call prepare"):
        model(**tiny.batch([SHOWN, BLIND], answers=False).inputs)


def test_a_module_that_chooses_no_prompts_says_so(tiny: Backbone) -> None:
    with pytest.raises(NotImplementedError, match="Prompted chooses no prompts; define soft_prompts"):
        Prompted(tiny).soft_prompts()


def test_a_backbone_may_have_no_place_for_them(tiny: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(tiny), "takes_vectors", False)

    with pytest.raises(
        BackboneError, match="backbone tiny takes no soft prompts; choose another backbone, or a"
    ):
        Prompted(tiny)
