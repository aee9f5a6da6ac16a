"""LLaVA: prompts token by token, images as the official recipe frames them, and checkpoints by name."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from torch import nn

from cl_zoo.backbones.backbone import Backbone
from cl_zoo.backbones.checkpoints import backbone_parts
from cl_zoo.backbones.llava import Llava, load, load_7b, load_13b
from cl_zoo.backbones.towers import frame
from cl_zoo.batches import forward
from cl_zoo.errors import BackboneError, DataError, OptionError
from cl_zoo.tasks import Sample
from cl_zoo.testing import square

CPU = torch.device("cpu")

PIECES = """
<unk>=0 <s>=1 </s>=2 <0x0A>=13 ▁t=260 er=261 in=262 ▁a=263 en=264 on=265 ▁th=266 es=267 ▁s=269 ▁d=270 at=271
or=272 an=273 ▁c=274 is=275 it=277 ▁the=278 ar=279 le=280 ▁w=281 ▁p=282 ou=283 al=284 ▁o=288 ▁b=289 ion=291
ing=292 ic=293 as=294 el=295 ▁in=297 ▁h=298 nd=299 et=300 ▁to=304 ct=312 ▁u=318 ▁A=319 ▁and=322 ▁T=323 ol=324
im=326 ▁g=330 ur=332 ig=335 ▁is=338 qu=339 est=342 ce=346 ▁B=350 ag=351 ul=352 he=354 if=361 ▁an=385 ist=391
▁W=399 ▁as=408 ers=414 ant=424 ▁qu=439 iv=440 ▁The=450 ▁or=470 age=482 ile=488 ▁U=501 ▁us=502 ell=514 ▁ch=521
ect=522 ▁im=527 ord=536 oc=542 wer=556 ase=559 ▁ar=564 ite=568 swer=581 estion=602 ial=616 ject=622 ence=663
ous=681 ▁ob=704 we=705 ▁using=773 ▁Wh=806 ific=928 ▁int=938 ER=1001 ▁bet=1010 ular=1070 ▁hel=1081 hr=1092
▁question=1139 eta=1187 ▁object=1203 ▁ass=1223 ▁pol=1248 ST=1254 ful=1319 ▁help=1371 ▁user=1404 ween=1452
▁giv=1517 ▁between=1546 ▁art=1616 ▁What=1724 ▁word=1734 SS=1799 ▁sing=1809 ▁image=1967 AN=2190 ▁single=2323
iled=2356 hat=2455 ious=2738 An=2744 sw=2774 ▁US=3148 ▁cur=3151 ▁gives=4076 ▁questions=5155 What=5618 swers=5956
▁answers=6089 ▁assist=6985 ▁helpful=8444 IST=9047 ellig=9347 etailed=11881 ▁phr=12216 ▁curious=12758
▁intellig=13052 ▁detailed=13173 ▁chat=13563 ANT=13566 ▁phrase=16549 ▁artific=19069 ▁assistant=20255
▁intelligence=21082 Answer=22550 ▁artificial=23116 ▁Bin=27662 ▁=29871 e=29872 t=29873 a=29874 i=29875 n=29876
o=29877 r=29878 s=29879 l=29880 d=29881 h=29882 c=29883 u=29884 m=29885 p=29886 g=29887 f=29888 .=29889 b=29890
,=29892 w=29893 v=29894 :=29901 I=29902 S=29903 A=29909 T=29911 '=29915 E=29923 j=29926 B=29933 R=29934 q=29939
N=29940 W=29956 U=29965 ?=29973
"""
MERGES = """
▁+t e+r i+n ▁+a e+n o+n ▁t+h e+s ▁+s ▁+d a+t o+r a+n ▁+c i+s i+t ▁th+e a+r l+e ▁+w ▁+p o+u a+l ▁+o ▁+b i+on in+g
i+c a+s e+l ▁+in ▁+h n+d e+t ▁t+o c+t ▁+u ▁+A ▁a+nd ▁+T o+l i+m ▁+g u+r i+g ▁+is q+u es+t c+e ▁+B a+g u+l h+e
i+f ▁a+n is+t ▁+W ▁a+s er+s an+t ▁+qu i+v ▁T+he ▁+or ag+e i+le ▁+U ▁u+s el+l ▁c+h e+ct ▁+im or+d o+c w+er as+e
▁a+r it+e s+wer est+ion i+al j+ect en+ce ou+s ▁o+b w+e ▁us+ing ▁W+h if+ic ▁in+t E+R ▁b+et ul+ar ▁h+el h+r
▁qu+estion et+a ▁ob+ject ▁as+s ▁p+ol S+T f+ul ▁hel+p ▁us+er we+en ▁g+iv ▁bet+ween ▁ar+t ▁Wh+at ▁w+ord S+S ▁s+ing
▁im+age A+N ▁sing+le ile+d h+at i+ous A+n s+w ▁U+S ▁c+ur ▁giv+es ▁question+s W+hat sw+ers ▁an+swers ▁ass+ist
▁help+ful I+ST ell+ig eta+iled ▁p+hr ▁cur+ious ▁int+ellig ▁d+etailed ▁ch+at AN+T ▁phr+ase ▁art+ific ▁assist+ant
▁intellig+ence An+swer ▁artific+ial ▁B+in
"""
# fmt: off
HEAD = [
    319, 13563, 1546, 263, 12758, 1404, 322, 385, 23116, 21082, 20255, 29889, 450, 20255, 4076, 8444, 29892, 13173,
    29892, 322, 1248, 568, 6089, 304, 278, 1404, 29915, 29879, 5155, 29889, 3148, 1001, 29901, 29871,
]
TAIL = [
    29871, 13, 5618, 338, 278, 1203, 297, 278, 1967, 29973, 13, 22550, 278, 1139, 773, 263, 2323, 1734, 470, 16549,
    29889, 319, 1799, 9047, 13566, 29901,
]
ANSWER = [
    27662, 542, 1070, 29879,
]
TEXT = [
    319, 13563, 1546, 263, 12758, 1404, 322, 385, 23116, 21082, 20255, 29889, 450, 20255, 4076, 8444, 29892, 13173,
    29892, 322, 1248, 568, 6089, 304, 278, 1404, 29915, 29879, 5155, 29889, 3148, 1001, 29901, 1724, 338, 278, 1203,
    297, 278, 1967, 29973, 13, 22550, 278, 1139, 773, 263, 2323, 1734, 470, 16549, 29889, 319, 1799, 9047, 13566,
    29901,
]
# fmt: on
"""Ids of the system sentence up to the image, from the line break behind the image to `ASSISTANT:`, of `Binoculars`, and of
the same prompt without an image. They were made with the Llama vocabulary by two implementations that agree, each piece of
the text between images on its own, as `tokenizer_image_token` of LLaVA's code has it."""

QUESTION = "What is the object in the image?\nAnswer the question using a single word or phrase."
IMAGE, PAD = 32000, 32001
PATCHES = (336 // 14) ** 2


def vicuna(prefix: str) -> Any:
    """A tokenizer built as Llama's is, with the pieces that the prompt needs at their true ids.

    Args:
        prefix: where the dummy prefix comes from. `normalizer`: before each text between special tokens, as in the files of
            the hub; `first`: before a whole text only, as newer versions build it.
    """
    from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    pieces = {piece: int(number) for piece, _, number in (one.rpartition("=") for one in PIECES.split())}
    merges = [tuple(one.split("+")) for one in MERGES.split()]
    raw = Tokenizer(
        models.BPE(
            {**pieces, "<image>": IMAGE, "<pad>": PAD},
            merges,
            byte_fallback=True,
            fuse_unk=True,
            unk_token="<unk>",
        )
    )
    if prefix == "normalizer":
        raw.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        raw.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=prefix, split=False)
    raw.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    special = ("<unk>", "<s>", "</s>", "<image>", "<pad>")
    raw.add_special_tokens([AddedToken(one, special=True, normalized=False) for one in special])
    return PreTrainedTokenizerFast(
        tokenizer_object=raw, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="<pad>"
    )


def narrow(tokenizer: Any) -> Llava:
    """A random LLaVA with the vocabulary and the image of LLaVA-1.5, and hardly any width."""
    from transformers import (
        CLIPImageProcessor,
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
    )

    slim = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = LlavaForConditionalGeneration(
        LlavaConfig(
            vision_config=CLIPVisionConfig(**slim, image_size=336, patch_size=14),
            text_config=LlamaConfig(**slim, num_key_value_heads=2, vocab_size=32064),
            image_token_id=IMAGE,
            vision_feature_layer=-2,
            vision_feature_select_strategy="default",
        )
    )
    size = {"height": 336, "width": 336}
    return Llava("narrow", model, tokenizer, CLIPImageProcessor(size={"shortest_edge": 336}, crop_size=size))


# Tokens


@pytest.mark.parametrize("prefix", ["normalizer", "first", "always"])
def test_a_training_prompt_is_token_for_token_that_of_the_official_code(prefix: str) -> None:
    """`<s>`, the system sentence, the image, the question, ` ASSISTANT:`; the answer and `</s>` are what is learnt."""
    backbone = narrow(vicuna(prefix))
    samples = [
        Sample("0", Image.new("RGB", (336, 336)), QUESTION, "Binoculars"),
        Sample("1", None, QUESTION, "Binoculars"),
    ]

    batch = backbone.batch(samples, answers=True)

    shown = [1, *HEAD, *[IMAGE] * PATCHES, *TAIL, *ANSWER]
    blind = [1, *TEXT, *ANSWER]
    padding = [PAD] * (len(shown) - len(blind))
    assert batch.inputs["input_ids"].tolist() == [shown, padding + blind]
    assert batch.inputs["attention_mask"][1].tolist() == [0] * len(padding) + [1] * len(blind)
    assert batch.targets is not None
    assert batch.targets.tolist() == [[*ANSWER, 2]] * 2


SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, and "
    "polite answers to the user's questions."
)


def preprocessed(tokenizer: Any, turns: list[tuple[str, str]]) -> tuple[list[int], list[int]]:
    """Ids and labels by the steps of `preprocess_v1` with `tokenizer_image_token` in llava/train/train.py and llava/mm_utils.py.

    https://github.com/haotian-liu/LLaVA at c121f04: a round runs up to `</s>`, whose place is taken by the start token in its
    length; of a round all up to `ASSISTANT:` is masked. An image is one id here, −200 as there.
    """

    def with_image(text: str) -> list[int]:
        chunks = [tokenizer(chunk).input_ids for chunk in text.split("<image>")]
        return [*chunks[0], *(one for chunk in chunks[1:] for one in (-200, *chunk[1:]))]

    text = f"{SYSTEM} " + "".join(f"USER: {asked} ASSISTANT: {answer}</s>" for asked, answer in turns)
    ids = with_image(text)
    labels, place = list(ids), 1
    labels[0] = -100
    for one in text.split("</s>"):
        if not one:
            break
        question = one.partition(" ASSISTANT: ")[0] + " ASSISTANT: "
        masked = len(with_image(question)) - 2  # the start token, and the space that the answer takes
        labels[place : place + masked] = [-100] * masked
        place += len(with_image(one))
    assert place == len(ids)
    return ids, labels


@pytest.mark.parametrize("shown", [True, False])
def test_a_conversation_has_the_tokens_and_labels_of_the_official_trainer(shown: bool) -> None:
    tokenizer = vicuna("normalizer")
    backbone = narrow(tokenizer)
    turns = [(QUESTION, "Binoculars"), ("What is the image?", "The object"), (QUESTION, "Answers")]
    image = Image.new("RGB", (336, 336)) if shown else None
    first = ("<image>\n" if shown else "") + QUESTION
    ids, labels = preprocessed(tokenizer, [(first, turns[0][1]), *turns[1:]])

    sample = Sample("0", image, *turns[-1], before=tuple(turns[:-1]))
    batch = backbone.batch([sample], answers=True)

    assert batch.targets is not None
    read, learnt = batch.inputs["input_ids"][0].tolist(), batch.targets[0].tolist()
    if shown:
        place = ids.index(-200)
        ids[place : place + 1] = [IMAGE] * PATCHES
        labels[place : place + 1] = [-100] * PATCHES
    assert [*read, 2] == ids
    assert [-100] * (len(ids) - len(learnt)) + learnt == labels
    assert sum(one == 2 for one in labels) == 3


def test_a_question_ends_where_the_answer_begins() -> None:
    backbone = narrow(vicuna("normalizer"))

    batch = backbone.batch([Sample("0", Image.new("RGB", (9, 9)), QUESTION, "Binoculars")], answers=False)

    assert batch.inputs["input_ids"].tolist() == [[1, *HEAD, *[IMAGE] * PATCHES, *TAIL]]


def test_an_image_mark_inside_a_prompt_is_refused(tiny: Backbone) -> None:
    with pytest.raises(
        DataError, match="sample '7': its prompt holds <image>, which stands for the image itself"
    ):
        tiny.batch([Sample("7", square(0)[0], "What is <image> ?", "red")], answers=True)


def test_a_template_is_chosen_by_name_or_text(tiny: Backbone) -> None:
    sample = Sample("0", square(0)[0], "What colour is it ?", "red")

    tiny.adjust(template="plain")
    assert text(tiny, sample) == "<image> <image> <image> <image> What colour is it ?"
    tiny.adjust(template="Say {prompt} in short")
    assert text(tiny, sample) == "Say <image> <image> <image> <image> What colour is it ? in short"
    with pytest.raises(OptionError, match=r"known: internvl, .*plain"):
        tiny.adjust(template="plane")


def text(backbone: Backbone, sample: Sample) -> str:
    return str(backbone.tokenizer.decode(backbone.batch([sample], answers=False).inputs["input_ids"][0]))


# Images


def processor(**settings: Any) -> Any:
    return SimpleNamespace(image_mean=[0.5, 0.25, 1.0], resample=3, **settings)


def pixels(image: Image.Image) -> list[list[tuple[int, ...]]]:
    return [[image.getpixel((x, y)) for x in range(image.width)] for y in range(image.height)]


def test_padding_puts_an_image_in_the_middle_of_a_square_of_the_mean_colour() -> None:
    """5 × 2 pixels: ⌊3/2⌋ = 1 row above, 2 below; ⌊255 · mean⌋ is the colour."""
    colour, red = (127, 63, 255), (255, 0, 0)

    padded = frame(Image.new("RGB", (5, 2), red), "pad", processor())
    turned = frame(Image.new("RGB", (2, 5), red), "pad", processor())

    assert pixels(padded) == [[colour] * 5, [red] * 5, [red] * 5, [colour] * 5, [colour] * 5]
    assert pixels(turned) == [[colour, red, red, colour, colour]] * 5


def test_cropping_leaves_the_middle_to_the_processor_or_takes_it_itself() -> None:
    image = Image.new("RGB", (6, 2))
    image.paste((255, 0, 0), (2, 0, 4, 2))

    assert frame(image, "crop", processor(do_center_crop=True)) is image
    assert pixels(frame(image, "crop", processor())) == [[(255, 0, 0)] * 2] * 2


def test_stretching_makes_a_square_of_all_of_it() -> None:
    image = Image.new("RGB", (6, 2), (9, 8, 7))
    crops = processor(do_center_crop=True, crop_size={"height": 4, "width": 4})

    assert frame(image, "stretch", processor()) is image  # a processor with a height and a width does so
    assert pixels(frame(image, "stretch", crops)) == [[(9, 8, 7)] * 4] * 4


def test_each_aspect_shows_another_part_of_a_wide_image_and_the_same_of_a_square(tiny: Backbone) -> None:
    wide = Image.new("RGB", (32, 16), (250, 250, 250))
    wide.paste((220, 30, 30), (0, 0, 8, 16))
    seen = {}
    for aspect in ("pad", "crop", "stretch"):
        tiny.adjust(image_aspect=aspect)
        seen[aspect] = tiny.encode([wide, square(0)[0]])

    assert tiny.batch([Sample("0", wide, "What ?", "red")], answers=True).inputs["pixel_values"].shape[0] == 1
    for one, other in (("pad", "crop"), ("crop", "stretch"), ("pad", "stretch")):
        assert not torch.allclose(seen[one][0], seen[other][0])
        assert torch.equal(seen[one][1], seen[other][1])


def test_an_unknown_aspect_is_named_with_the_known_ones(tiny: Backbone) -> None:
    with pytest.raises(
        OptionError, match=r"--image-aspect padd: .*did you mean 'pad'\? known: crop, pad, stretch"
    ):
        tiny.adjust(image_aspect="padd")
    assert tiny.image_aspect == "pad"


# Checkpoints


@pytest.fixture
def checkpoint(tiny_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_folder / "llava", tmp_path / "checkpoint"))


@torch.no_grad()
def logits(backbone: Backbone) -> torch.Tensor:
    sample = Sample("0", square(0)[0], "What colour is it ?", "red")
    return forward(backbone.model, backbone.batch([sample], answers=True)).logits


def test_the_names_that_weights_have_on_the_hub_are_understood(checkpoint: Path) -> None:
    """Those of the module today, and those of llava-hf's files, from when the language model had its head inside."""
    from safetensors.torch import save_file

    whole = load(checkpoint, CPU, torch.float32)
    parts = {
        "model.language_model.": "language_model.model.",
        "lm_head.": "language_model.lm_head.",
        "model.vision_tower.": "vision_tower.vision_model.",
        "model.multi_modal_projector.": "multi_modal_projector.",
    }
    weights = {whole.hub_name(name): tensor for name, tensor in whole.model.state_dict().items()}
    for naming in (lambda part: part, parts.__getitem__):
        renamed = {}
        for name, tensor in weights.items():
            part = next(part for part in parts if name.startswith(part))
            renamed[naming(part) + name.removeprefix(part)] = tensor
        save_file(renamed, checkpoint / "model.safetensors", {"format": "pt"})

        assert torch.equal(logits(load(checkpoint, CPU, torch.float32)), logits(whole))


def test_a_checkpoint_in_several_files_is_one(checkpoint: Path, tiny_folder: Path) -> None:
    from transformers import LlavaForConditionalGeneration

    model = LlavaForConditionalGeneration.from_pretrained(checkpoint)
    (checkpoint / "model.safetensors").unlink()
    model.save_pretrained(checkpoint, max_shard_size="60KB")
    shards = sorted(file.name for file in checkpoint.glob("*.safetensors"))
    assert len(shards) > 1

    whole = logits(load(tiny_folder / "llava", CPU, torch.float32))
    assert torch.equal(logits(load(checkpoint, CPU, torch.float32)), whole)
    (checkpoint / shards[1]).unlink()
    with pytest.raises(BackboneError, match=f"lacks {shards[1]}, which its other files name"):
        load(checkpoint, CPU, torch.float32)


@pytest.mark.parametrize(
    "config", [{"model_type": "llava_llama"}, {"model_type": "llava", "mm_projector_type": "mlp2x_gelu"}]
)
def test_an_original_checkpoint_is_refused_with_its_conversion(
    tmp_path: Path, config: dict[str, str]
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "pytorch_model.bin").write_bytes(b"")

    for attempt in (lambda: load_7b(tmp_path, CPU, torch.float32), lambda: backbone_parts(str(tmp_path))):
        with pytest.raises(BackboneError, match="original LLaVA checkpoint") as raised:
            attempt()
        for words in ("llava-hf/llava-1.5-7b-hf", "convert_llava_weights_to_hf.py", str(tmp_path)):
            assert words in str(raised.value)


def test_llava_by_name_comes_from_the_hubs_cache(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    kept = tmp_path / "models--llava-hf--llava-1.5-7b-hf"
    shutil.copytree(tiny_folder / "llava", kept / "snapshots" / "abc")
    (kept / "refs").mkdir()
    (kept / "refs" / "main").write_text("abc")

    backbone = load_7b(None, CPU, torch.float32)

    assert (backbone.name, backbone.feature_revision) == ("llava-1.5-7b", "ViT-L-14-336/openai")
    assert backbone.template.startswith("A chat between a curious user")
    assert backbone.image_aspect == "pad"


@pytest.fixture
def interrupted(tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The hub's cache with a checkpoint in several files, of which one and the index have not arrived."""
    from transformers import LlavaForConditionalGeneration

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    kept = tmp_path / "models--llava-hf--llava-1.5-7b-hf"
    folder = Path(shutil.copytree(tiny_folder / "llava", kept / "snapshots" / "abc"))
    (kept / "refs").mkdir()
    (kept / "refs" / "main").write_text("abc")
    model = LlavaForConditionalGeneration.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="60KB")
    shutil.copytree(folder, tmp_path / "whole")
    (folder / "model.safetensors.index.json").unlink()
    return folder


def test_an_interrupted_download_is_taken_up_again(
    interrupted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without its index, and without one of the files that the names of the others tell of."""
    import huggingface_hub

    snapshot, asked = huggingface_hub.snapshot_download, []

    def download(repository: str, **settings: Any) -> str:
        if settings.get("local_files_only"):
            return str(snapshot(repository, **settings))
        asked.append(settings["allow_patterns"])
        shutil.copytree(tmp_path / "whole", interrupted, dirs_exist_ok=True)
        return str(interrupted)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    load_7b(None, CPU, torch.float32)
    assert len(asked) == 1
    assert {"README.md", "LICENSE*"} <= set(asked[0])
    sorted(interrupted.glob("*.safetensors"))[1].unlink()
    (interrupted / "model.safetensors.index.json").unlink()
    load_7b(None, CPU, torch.float32)
    (interrupted / "tokenizer.json").unlink()
    load_7b(None, CPU, torch.float32)
    load_7b(None, CPU, torch.float32)
    assert len(asked) == 3


@pytest.mark.parametrize("offline", [False, True])
def test_an_interrupted_download_without_a_network_says_what_is_missing(
    interrupted: Path, offline: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """huggingface_hub may answer with the old folder where it cannot reach the network."""
    if not offline:
        monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: str(interrupted))
    with pytest.raises(BackboneError) as raised:
        load_7b(None, CPU, torch.float32)

    assert "is in the local cache without model.safetensors.index.json" in str(raised.value)
    assert "run `hf download llava-hf/llava-1.5-7b-hf`" in str(raised.value)


def test_a_folder_without_its_index_is_refused(interrupted: Path) -> None:
    with pytest.raises(BackboneError, match=r"lacks model\.safetensors\.index\.json, which its other files"):
        load(interrupted, CPU, torch.float32)


def test_llava_by_name_that_is_nowhere_says_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)

    with pytest.raises(BackboneError) as raised:
        load_13b(None, CPU, torch.float32)

    assert "run `hf download llava-hf/llava-1.5-13b-hf`" in str(raised.value)
    assert "or pass llava-1.5-13b:FOLDER" in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_named_llava_takes_a_folder(tiny_folder: Path) -> None:
    assert load_7b(tiny_folder / "llava", CPU, torch.float32).name == "llava-1.5-7b"


def test_half_precision_is_kept_but_for_a_projector_that_learns(tiny_folder: Path) -> None:
    backbone = load(tiny_folder / "llava", CPU, torch.bfloat16)
    backbone.train_projector(True)

    assert {weight.dtype for weight in backbone.layers.parameters()} == {torch.bfloat16}
    assert {weight.dtype for weight in backbone.projector.parameters()} == {torch.float32}
    assert isinstance(backbone.projector, nn.Module)


def test_texts_of_a_batch_go_to_the_tokenizer_in_one_call_and_once(tiny: Backbone, monkeypatch) -> None:
    """Two samples of the same template and answer: head, tails and answer are read together, and not again."""
    alone = [tiny._ids(text) for text in ("What colour is it ?", "red", "")]
    calls: list[list[str]] = []
    real = tiny.tokenizer

    class Counting:
        def __getattr__(self, name: str) -> Any:
            return getattr(real, name)

        def __call__(self, text: Any, **settings: Any) -> Any:
            calls.append(text)
            return real(text, **settings)

    monkeypatch.setattr(tiny, "tokenizer", Counting())
    samples = [Sample(str(place), square(place)[0], "What colour is it ?", "red") for place in range(2)]
    first = tiny.batch(samples, answers=True)
    asked = [call for call in calls if isinstance(call, list)]
    assert len(asked) == 1
    assert len(asked[0]) == len(set(asked[0]))
    again = tiny.batch(samples, answers=True)
    assert len([call for call in calls if isinstance(call, list)]) == 1
    assert torch.equal(first.inputs["input_ids"], again.inputs["input_ids"])
    assert [tiny._ids(text) for text in ("What colour is it ?", "red", "")] == alone


def test_tokens_are_those_of_the_tokenizer_that_is_there_now(tiny: Backbone, monkeypatch) -> None:
    before = tuple(tiny._ids("red"))
    tiny._ids("red").append(3)  # what is given out belongs to who asked
    assert tuple(tiny._ids("red")) == before
    monkeypatch.setattr(tiny, "tokenizer", lambda texts, **_: {"input_ids": [[7] for _ in texts]})
    assert tiny._ids("red") == [7]


def test_a_backbone_forgets_texts_beyond_its_limit_and_reads_them_anew(tiny: Backbone, monkeypatch) -> None:
    monkeypatch.setattr("cl_zoo.backbones.wording.KNOWN", 3)
    ids = {text: tiny._ids(text) for text in ("red", "blue", "left", "right", "red")}
    assert len(tiny._known) <= 4
    assert ids["red"] == tiny._ids("red")
