"""Frozen features: computed once per image or text, the same in any company."""

from __future__ import annotations

import json
import os
import shutil
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from cl_zoo.errors import BackboneError, DataError
from cl_zoo.features.encoder import FeatureEncoder, Remembered, content_key, encoders, image_key, open_image
from cl_zoo.features.loading import encoder_revision, files_hash
from cl_zoo.features.shelves import Shelf
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


def test_widths_are_known_before_anything_is_encoded(encoder: FeatureEncoder) -> None:
    assert (encoder.width, encoder.text_width) == (8, 16)
    assert encoder.images([square(0)[0]]).shape == (1, encoder.width)
    assert encoder.texts(["red"]).shape == (1, encoder.width)
    assert encoder.text_states(["red"]).shape == (1, encoder.text_width)


def test_text_states_are_the_normalised_last_states_at_the_end_token(encoder: FeatureEncoder) -> None:
    """The end token has the highest id of a text; what CLIP projects to its text feature stands at its place."""
    texts, kept = ["What colour is it ?", "a red square </s>", "red </s> green blue"], []
    watch = encoder._model.ln_final.register_forward_hook(lambda module, args, out: kept.append(out))
    states = encoder.text_states(texts)
    watch.remove()
    places = [max(range(24), key=row.__getitem__) for row in encoder._tokenizer(texts).tolist()]

    expected = torch.stack([kept[0][row, place] for row, place in enumerate(places)])
    torch.testing.assert_close(states, expected)
    torch.testing.assert_close(states @ encoder._model.text_projection, encoder.texts(texts))
    assert len(set(places)) > 1


def test_asking_for_states_leaves_the_projection_in_place(
    encoder: FeatureEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = encoder.texts(["red"])
    encoder.text_states(["red", "green"])
    with monkeypatch.context() as broken:
        broken.setattr(encoder, "_tokenizer", lambda texts: torch.zeros(1, 3, dtype=torch.long))
        with pytest.raises(RuntimeError):
            encoder.text_states(["blue"])

    assert torch.equal(FeatureEncoder(encoder.name).texts(["red"]), before)
    torch.testing.assert_close(encoder.texts(["green"]), FeatureEncoder(encoder.name).texts(["green"]))


def test_states_of_a_text_are_computed_once(encoder: FeatureEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    first = encoder.text_states(["red", "green"])
    monkeypatch.setattr(encoder, "_tokenizer", None)

    assert torch.equal(encoder.text_states(["green", "red"]), first[[1, 0]])


def test_a_text_tower_without_a_projection_has_no_states_before_it(encoder: FeatureEncoder) -> None:
    encoder._model.text_projection = None

    with pytest.raises(BackboneError, match="no projection to stop before"):
        encoder.text_states(["red"])
    with pytest.raises(BackboneError, match=r"--features .*clip"):
        _ = encoder.text_width


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
    """What stands behind the context, here 24 tokens, is not read."""
    assert encoder.texts(["red " * 200]).shape == (1, 8)
    for look in (encoder.texts, encoder.text_states):
        assert torch.equal(look(["red " * 24 + "green blue"]), look(["red " * 24]))
        assert not torch.allclose(look(["red " * 23 + "green"]), look(["red " * 24]))


def test_features_stay_fp32_inside_autocast(encoder: FeatureEncoder, tiny_folder: Path) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        inside = encoder.images([square(0)[0]]), encoder.texts(["a red square"])
        states = encoder.text_states(["a red square"])
    fresh = FeatureEncoder(str(tiny_folder / "clip"))

    assert torch.equal(inside[0], fresh.images([square(0)[0]]))
    assert torch.equal(inside[1], fresh.texts(["a red square"]))
    assert torch.equal(states, fresh.text_states(["a red square"]))


def test_nothing_in_the_encoder_learns(encoder: FeatureEncoder) -> None:
    assert not encoder.images([square(0)[0]]).requires_grad
    assert not encoder.texts(["red"]).requires_grad
    assert not encoder.text_states(["red"]).requires_grad


@given(
    st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=6), min_size=1, max_size=8), st.integers(0, 200)
)
@settings(max_examples=100, deadline=None)
def test_memory_gives_the_right_row_for_every_key_whatever_it_has_dropped(
    requests: list[list[int]], limit: int
) -> None:
    memory: Remembered[int] = Remembered(limit)
    for keys in requests:

        def compute(places: list[int], keys: list[int] = keys) -> list[Tensor]:
            assert len({keys[place] for place in places}) == len(places)
            return [torch.full((4,), float(keys[place])) for place in places]

        assert [row[0] for row in memory.rows(keys, compute)] == keys
        assert (
            sum(row.numel() * row.element_size() for row in memory._kept.values()) == memory._bytes <= limit
        )


def test_what_is_remembered_is_not_computed_again() -> None:
    memory, computed = Remembered[str](), []

    def compute(places: list[int]) -> list[Tensor]:
        computed.append(places)
        return [torch.zeros(1)] * len(places)

    memory.rows(["a", "b", "a"], compute)
    memory.rows(["b", "a"], compute)
    memory.rows(["b", "c"], compute)

    assert computed == [[0, 1], [1]]


def test_images_of_equal_bytes_but_another_shape_or_mode_differ() -> None:
    wide, high = Image.new("RGB", (4, 2)), Image.new("RGB", (2, 4))
    grey = Image.new("L", (8, 3))
    rgb = Image.new("RGB", (8, 1))

    assert len({image_key(one) for one in (wide, high, grey, rgb)}) == 4
    assert image_key(wide) == image_key(wide.copy())


def test_an_image_in_memory_goes_by_what_the_model_is_shown_of_it() -> None:
    """The pixels of a palette image are numbers of colours; which colours is another part of it."""
    red, blue = Image.new("P", (4, 4)), Image.new("P", (4, 4))
    red.putpalette([255, 0, 0])
    blue.putpalette([0, 0, 255])
    assert red.tobytes() == blue.tobytes()

    for key in (image_key, content_key):
        assert key(red) != key(blue)
        assert key(red) == key(red.convert("RGB"))


def test_a_file_goes_by_its_place_its_size_and_its_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "a.png"
    square(0)[0].save(file)
    before = image_key(file)
    monkeypatch.chdir(tmp_path)
    assert image_key(Path("a.png")) == before

    os.utime(file, (1, 1))
    changed = image_key(file)
    file.write_bytes(file.read_bytes() + b" ")
    os.utime(file, (1, 1))
    assert len({before, changed, image_key(file)}) == 3
    for wrong in (tmp_path / "gone.png", tmp_path / "nul\0.png"):
        assert str(wrong) in image_key(wrong)
        with pytest.raises(DataError, match="check the data folder"):
            open_image(wrong)


def test_a_file_that_was_overwritten_is_looked_at_again(encoder: FeatureEncoder, tmp_path: Path) -> None:
    file = tmp_path / "a.png"
    square(0)[0].save(file)
    before = encoder.images([file])
    square(1)[0].save(file)
    os.utime(file, (1, 1))

    torch.testing.assert_close(encoder.images([file]), encoder.images([square(1)[0]]))
    assert not torch.allclose(encoder.images([file]), before)


@pytest.mark.parametrize(
    "error", [SyntaxError("broken PNG"), struct.error("unpack"), ValueError("bad"), EOFError(), KeyError(3)]
)
def test_whatever_pillow_makes_of_a_broken_file_is_one_sentence(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr("PIL.Image.Image.convert", fail)
    square(0)[0].save(tmp_path / "a.png")

    with pytest.raises(DataError, match=r"image .*a\.png: not a readable image; check the data folder"):
        open_image(tmp_path / "a.png")
    with pytest.raises(DataError, match="image in memory: not a readable image"):
        open_image(square(0)[0])


def test_an_image_of_too_many_pixels_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    square(0)[0].save(tmp_path / "a.png")
    monkeypatch.setattr("PIL.Image.MAX_IMAGE_PIXELS", 100)  # 16 × 16 is more than twice that

    with pytest.raises(DataError, match=r"a\.png: has more than the 200 pixels that Pillow opens; check"):
        open_image(tmp_path / "a.png")


def test_a_lack_of_memory_is_nobodys_broken_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr("PIL.Image.Image.convert", fail)
    square(0)[0].save(tmp_path / "a.png")

    with pytest.raises(MemoryError):
        open_image(tmp_path / "a.png")


# Files as a hash


def checkpoint(file: Path, **changed: float) -> str:
    """The hash of a file of three tensors of one shape, all zeros but for `changed`."""
    from safetensors.torch import save_file

    tensors = {name: torch.zeros(3, 5000) for name in ("a", "b", "c")}
    for name, value in changed.items():
        tensors[name][:] = value
    save_file(tensors, file)
    return files_hash([file])


def test_every_tensor_of_a_large_checkpoint_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two checkpoints that were merged from adapters of one base differ neither in size nor in their first and last bytes."""
    monkeypatch.setattr(encoders, "LARGE", 1000)
    file = tmp_path / "model.safetensors"
    before = checkpoint(file)

    assert len({before, *(checkpoint(file, **{name: 0.5}) for name in "abc")}) == 4
    assert checkpoint(file) == before
    content = file.read_bytes()
    assert (content.count(b'"a"'), content.count(b'"c"')) == (1, 1)
    file.write_bytes(content.replace(b'"a"', b'"d"'))
    assert files_hash([file]) != before


def test_a_large_file_of_another_kind_is_read_whole_and_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, content = tmp_path / "tokenizer.json", bytearray(b"{" + b" " * 50_000 + b"}")
    file.write_bytes(content)
    small = files_hash([file])
    monkeypatch.setattr(encoders, "LARGE", 1000)
    before = files_hash([file])
    assert before != small
    content[20_000] = ord("1")
    file.write_bytes(content)
    os.utime(file, (1, 1))
    assert files_hash([file]) != before

    for header in (b'{"a": {"data_offsets": [-9, 4]}}', b'{"a": {"data_offsets": [0, 999999]}}', b"[]"):
        broken = len(header).to_bytes(8, "little") + header + bytes(5000)
        (tmp_path / "broken.safetensors").write_bytes(broken)
        assert files_hash([tmp_path / "broken.safetensors"])
    monkeypatch.setattr("hashlib.file_digest", None)
    assert files_hash([file]) != before


def test_an_unknown_encoder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BackboneError, match="--features ViT-Z: neither a folder nor a model"):
        FeatureEncoder("ViT-Z")
    with pytest.raises(BackboneError, match=r"no open_clip_config\.json"):
        FeatureEncoder(str(tmp_path))
    (tmp_path / "open_clip_config.json").write_text("{")
    with pytest.raises(BackboneError, match="check the folder or the network"):
        FeatureEncoder(str(tmp_path))


def test_openais_weights_get_the_activation_they_were_trained_with(monkeypatch: pytest.MonkeyPatch) -> None:
    """The model's name says plain GELU, the tag says QuickGELU; open_clip alone would only warn."""
    asked: dict[str, Any] = {}

    def create(model: str, **settings: Any) -> Any:
        asked[model] = settings["pretrained"], settings["force_quick_gelu"]
        raise RuntimeError("far enough")

    monkeypatch.setattr("open_clip.create_model_from_pretrained", create)
    for name in ("ViT-L-14-336/openai", "ViT-B-16/laion2b_s34b_b88k"):
        with pytest.raises(BackboneError, match="far enough"):
            FeatureEncoder(name)

    assert asked == {"ViT-L-14-336": ("openai", True), "ViT-B-16": ("laion2b_s34b_b88k", False)}


def test_an_encoder_without_weights_is_refused(tiny_folder: Path, tmp_path: Path) -> None:
    """Random features would route at random, and nobody would see it."""
    folder = tmp_path / "clip"
    shutil.copytree(tiny_folder / "clip", folder)
    (folder / "open_clip_model.safetensors").unlink()

    with pytest.raises(BackboneError, match=rf"--features {folder}: .*; check the folder or the network"):
        FeatureEncoder(str(folder))
    with pytest.raises(
        BackboneError, match="--features ViT-L-14: names a model without weights; write ViT-L-14/TAG"
    ):
        FeatureEncoder("ViT-L-14")


# On disk


def test_an_image_goes_by_what_it_holds_wherever_it_lies(tmp_path: Path) -> None:
    first, second, other = tmp_path / "a.png", tmp_path / "b" / "c.png", tmp_path / "d.png"
    second.parent.mkdir()
    square(0)[0].save(first)
    shutil.copy(first, second)
    square(1)[0].save(other)

    assert content_key(first) == content_key(second) != content_key(other)
    assert content_key(square(0)[0]) == content_key(square(0)[0].copy()) != content_key(square(1)[0])
    before = content_key(first)
    shutil.copy(other, first)
    os.utime(first, (1, 1))
    assert content_key(first) == content_key(other) != before


def test_images_in_memory_of_another_shape_or_mode_have_another_key() -> None:
    images = [
        Image.new("RGB", (4, 2)),
        Image.new("RGB", (2, 4)),
        Image.new("L", (8, 3)),
        Image.new("RGB", (8, 1)),
    ]

    assert len({content_key(one) for one in images}) == 4


def test_an_image_that_cannot_be_read_has_no_key(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"image .*gone\.png: no such file; check the data folder"):
        content_key(tmp_path / "gone.png")
    with pytest.raises(DataError, match="is a folder; name the file of a picture"):
        content_key(tmp_path)


def test_memory_asks_the_shelf_before_it_computes(tmp_path: Path) -> None:
    """Two memories on one shelf: what the first computes the second only reads, also after it was dropped."""
    computed: list[list[int]] = []

    def compute(places: list[int]) -> list[Tensor]:
        computed.append(places)
        return [torch.full((3,), float(place)) for place in places]

    first: Remembered[bytes] = Remembered(2**10, Shelf(tmp_path, "tower"))
    second: Remembered[bytes] = Remembered(0, Shelf(tmp_path, "tower"))
    first.rows([b"a", b"b"], compute)
    for _ in range(2):
        rows = second.rows([b"b", b"a", b"b"], compute)
    second.rows([b"b", b"c"], compute)

    assert computed == [[0, 1], [1]]
    assert [row.tolist() for row in rows] == [[1.0] * 3, [0.0] * 3, [1.0] * 3]
    assert [memory.knows(key) for memory in (first, second) for key in (b"a", b"c", b"d")] == [
        True,
        True,
        False,
    ] * 2


def test_memory_alone_knows_what_it_has_not_dropped() -> None:
    memory: Remembered[str] = Remembered(12)
    memory.rows(["a"], lambda places: [torch.zeros(3)])
    assert (memory.knows("a"), memory.knows("b")) == (True, False)
    memory.rows(["b"], lambda places: [torch.zeros(3)])

    assert (memory.knows("a"), memory.knows("b")) == (False, True)


def test_changed_code_does_not_serve_what_older_code_computed(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def shelves() -> set[str]:
        FeatureEncoder(str(tiny_folder / "clip"), cache=tmp_path).texts(["red"])
        return {file.name for file in tmp_path.iterdir()}

    assert len(shelves()) == len(shelves()) == 2
    monkeypatch.setattr("cl_zoo.features.encoder.source_hash", lambda *files: "0123456789abcdef")
    assert len(shelves()) == 4


def test_an_encoder_with_a_cache_looks_at_each_image_once_in_all_processes(
    tiny_folder: Path, tmp_path: Path
) -> None:
    folder, cache = str(tiny_folder / "clip"), tmp_path / "cache"
    file = tmp_path / "red.png"
    square(0)[0].save(file)
    images = [file, square(1)[0], None]
    plain = FeatureEncoder(folder)
    first = FeatureEncoder(folder, cache=cache)
    for look in (first.images(images), first.texts(["red"]), first.text_states(["red"])):
        assert look.dtype == torch.float32
    second = FeatureEncoder(folder, cache=cache)
    second._model = None  # type: ignore[assignment]
    images[0] = tmp_path / "the same elsewhere.png"
    file.rename(images[0])

    assert torch.equal(second.images(images), first.images(images))
    torch.testing.assert_close(second.images(images), plain.images(images))
    assert torch.equal(second.texts(["red"]), plain.texts(["red"]))
    files = sorted(path.name for path in cache.iterdir())
    assert [file.partition(".")[2] for file in files] == ["data", "index"]
    assert all(file.startswith(f"features-{encoder_revision(folder)}-cpu-") for file in files)


def test_a_text_and_its_states_are_two_entries(tiny_folder: Path, tmp_path: Path) -> None:
    encoder = FeatureEncoder(str(tiny_folder / "clip"), cache=tmp_path)

    assert encoder.texts(["red"]).shape == (1, 8)
    assert encoder.text_states(["red"]).shape == (1, 16)


# Weights in a local file


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP that open_clip knows by the name `tiny-clip`, and its weights in a file."""
    import open_clip
    from safetensors.torch import save_file

    folder = tmp_path_factory.mktemp("weights")
    config = {
        "embed_dim": 8,
        "vision_cfg": {"image_size": 16, "patch_size": 8, "width": 16, "layers": 1, "head_width": 8},
        "text_cfg": {"context_length": 24, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
    }
    (folder / "tiny-clip.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        save_file(open_clip.CLIP(**config).state_dict(), folder / "open_clip_model.safetensors")
    return folder / "open_clip_model.safetensors"


def test_weights_may_lie_in_a_local_file(weights: Path) -> None:
    import open_clip

    encoder = FeatureEncoder(f"tiny-clip:{weights}")
    model, transform = open_clip.create_model_from_pretrained("tiny-clip", pretrained=str(weights))
    with torch.no_grad():
        image = model.eval().encode_image(transform(square(0)[0])[None])
        text = model.encode_text(open_clip.get_tokenizer("tiny-clip")(["a red square"]))

    torch.testing.assert_close(encoder.images([square(0)[0]]), image)
    torch.testing.assert_close(encoder.texts(["a red square"]), text)
    assert (encoder.width, encoder.text_width) == (8, 16)


def test_an_encoders_revision_is_its_weights_and_not_their_place(weights: Path, tmp_path: Path) -> None:
    copied = tmp_path / weights.name
    shutil.copy(weights, copied)
    revision = encoder_revision(f"tiny-clip:{weights}")
    content = bytearray(copied.read_bytes())

    assert encoder_revision(f"tiny-clip:{copied}") == revision
    assert str(weights.parent) not in revision
    content[-1] ^= 1
    copied.write_bytes(content)
    assert encoder_revision(f"tiny-clip:{copied}") != revision
    assert encoder_revision("ViT-L-14-336/openai") == "ViT-L-14-336/openai"
    with pytest.raises(BackboneError, match=r"No such file or directory; pass a \.safetensors file"):
        encoder_revision("tiny-clip:gone.safetensors")


def test_a_local_file_sees_as_the_published_weights_of_its_name_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All weights of ViT-L-14-336 are OpenAI's, so QuickGELU is certain; those of ViT-B-16 differ, so their tag has to be named."""
    asked: list[tuple[bool, tuple[float, ...]]] = []

    def create(model: str, **settings: Any) -> Any:
        asked.append((settings["force_quick_gelu"], settings["image_mean"]))
        raise RuntimeError("far enough")

    monkeypatch.setattr("open_clip.create_model_from_pretrained", create)
    file = tmp_path / "model.safetensors"
    file.touch()
    for name in ("ViT-L-14-336", "ViT-B-16/openai", "ViT-B-16/laion2b_s34b_b88k"):
        with pytest.raises(BackboneError, match="far enough"):
            FeatureEncoder(f"{name}:{file}")

    openai = (0.48145466, 0.4578275, 0.40821073)
    assert asked == [(True, openai), (True, openai), (False, openai)]
    with pytest.raises(
        BackboneError,
        match=r"weights of ViT-B-16 differ in activation .*; write ViT-B-16/TAG:.*, TAG one of openai, ",
    ):
        FeatureEncoder(f"ViT-B-16:{file}")
    with pytest.raises(BackboneError, match="ViT-B-16 has no weights 'openia'; did you mean 'openai'"):
        FeatureEncoder(f"ViT-B-16/openia:{file}")


def test_pickled_weights_are_refused_with_what_to_take_instead(tmp_path: Path, tiny_folder: Path) -> None:
    file = tmp_path / "ViT-L-14-336px.pt"
    file.touch()
    remedy = r"pass a \.safetensors file, such as open_clip_model\.safetensors of timm/vit_large_patch14_clip_336\.openai"

    with pytest.raises(BackboneError, match=rf"{file}: \.pt may hold pickled code; {remedy}"):
        FeatureEncoder(f"ViT-L-14-336:{file}")
    with pytest.raises(BackboneError, match=rf"no such file; {remedy}"):
        FeatureEncoder("ViT-L-14-336:/nowhere/model.safetensors")
    folder = tmp_path / "clip"
    shutil.copytree(tiny_folder / "clip", folder)
    (folder / "open_clip_model.safetensors").rename(folder / "open_clip_pytorch_model.bin")
    with pytest.raises(BackboneError, match=r"no \*\.safetensors, and pickled weights are not read"):
        FeatureEncoder(str(folder))


def test_weights_of_another_model_are_named(tmp_path: Path, weights: Path) -> None:
    with pytest.raises(BackboneError, match=rf"--features ViT-B-16/openai:{weights}: .*; check the folder"):
        FeatureEncoder(f"ViT-B-16/openai:{weights}")
