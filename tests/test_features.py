"""Frozen features: computed once per image or text, the same in any company."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cl_zoo.errors import BackboneError
from cl_zoo.features import FeatureEncoder, Remembered, image_key
from cl_zoo.testing import square


@pytest.fixture
def encoder(tiny_folder: Path) -> FeatureEncoder:
    return FeatureEncoder(str(tiny_folder / "clip"))


def test_features_are_those_of_open_clip(encoder: FeatureEncoder, tiny_folder: Path) -> None:
    import open_clip

    model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{tiny_folder / 'clip'}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{tiny_folder / 'clip'}")
    model.eval()
    texts = ["What colour is it ?", "a red square"]
    with torch.no_grad():
        images = model.encode_image(torch.stack([transform(square(i)[0]) for i in range(2)]))
        words = model.encode_text(tokenizer(texts))

    torch.testing.assert_close(encoder.images([square(0)[0], square(1)[0]]), images)
    torch.testing.assert_close(encoder.texts(texts), words)
    assert not torch.allclose(words[0], words[1])


def test_loading_an_encoder_draws_nothing(tiny_folder: Path) -> None:
    """What a hook draws next does not depend on whether it was the first to look, as it is after a resume."""
    before = torch.get_rng_state()
    FeatureEncoder(str(tiny_folder / "clip"))

    assert torch.equal(torch.get_rng_state(), before)


def test_a_sample_without_an_image_has_zeros(encoder: FeatureEncoder) -> None:
    rows = encoder.images([None, square(0)[0], None])

    assert rows[[0, 2]].abs().sum() == 0
    assert rows[1].abs().sum() > 0
    torch.testing.assert_close(rows[1], encoder.images([square(0)[0]])[0])


def test_a_long_text_is_cut_at_the_context(encoder: FeatureEncoder) -> None:
    assert encoder.texts(["red " * 200]).shape == (1, 8)


def test_features_stay_fp32_inside_autocast(encoder: FeatureEncoder, tiny_folder: Path) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        inside = encoder.images([square(0)[0]]), encoder.texts(["a red square"])
    fresh = FeatureEncoder(str(tiny_folder / "clip"))

    assert torch.equal(inside[0], fresh.images([square(0)[0]]))
    assert torch.equal(inside[1], fresh.texts(["a red square"]))


def test_nothing_in_the_encoder_learns(encoder: FeatureEncoder) -> None:
    assert not encoder.images([square(0)[0]]).requires_grad
    assert not encoder.texts(["red"]).requires_grad


@given(
    st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=6), min_size=1, max_size=8), st.integers(0, 200)
)
@settings(max_examples=100, deadline=None)
def test_memory_gives_the_right_row_for_every_key_whatever_it_has_dropped(
    requests: list[list[int]], limit: int
) -> None:
    memory: Remembered[int] = Remembered(limit)
    for keys in requests:

        def compute(places: list[int], keys: list[int] = keys) -> torch.Tensor:
            assert len({keys[place] for place in places}) == len(places)
            return torch.tensor([[float(keys[place])] * 4 for place in places])

        assert memory.rows(keys, compute)[:, 0].tolist() == keys
        assert (
            sum(row.numel() * row.element_size() for row in memory._kept.values()) == memory._bytes <= limit
        )


def test_what_is_remembered_is_not_computed_again() -> None:
    memory, computed = Remembered[str](), []

    def compute(places: list[int]) -> torch.Tensor:
        computed.append(places)
        return torch.zeros(len(places), 1)

    memory.rows(["a", "b", "a"], compute)
    memory.rows(["b", "a"], compute)
    memory.rows(["b", "c"], compute)

    assert computed == [[0, 1], [1]]


def test_images_of_equal_bytes_but_another_shape_or_mode_differ() -> None:
    from PIL import Image

    wide, high = Image.new("RGB", (4, 2)), Image.new("RGB", (2, 4))
    grey = Image.new("L", (8, 3))
    rgb = Image.new("RGB", (8, 1))

    assert len({image_key(one) for one in (wide, high, grey, rgb)}) == 4
    assert image_key(wide) == image_key(wide.copy())


def test_an_unknown_encoder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BackboneError, match="--features ViT-Z: neither a folder nor a model"):
        FeatureEncoder("ViT-Z")
    with pytest.raises(BackboneError, match=r"no open_clip_config\.json"):
        FeatureEncoder(str(tmp_path))
    (tmp_path / "open_clip_config.json").write_text("{")
    with pytest.raises(BackboneError, match="check the folder or the network"):
        FeatureEncoder(str(tmp_path))
