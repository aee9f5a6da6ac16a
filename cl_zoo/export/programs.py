"""`answer.py` of an exported folder: a short program that answers as the run does, without cl_zoo.

It is put together from lines that all kinds of folders share and from those of its own kind, so that a reader finds nothing else in it.
"""

from __future__ import annotations

from collections.abc import Sequence

HEAD = """\"\"\"Answers as the run does, without cl_zoo; needs torch, transformers, safetensors{encoder_needs}.

    python answer.py BASE{encoder_argument} < questions.jsonl     lines {{"image": FILE or null, "prompt": "question\\ninstruction"}}
{encoder_says}\"\"\"
import hashlib, json, sys
from pathlib import Path
import torch{encoder_import}
from PIL import Image
from safetensors.torch import load_file
from torch.nn import functional as F
from transformers import AutoImageProcessor, AutoTokenizer, {model_class}

HERE, BASE, DEVICE = Path(__file__).parent, sys.argv[1], "cuda" if torch.cuda.is_available() else "cpu"
HOW = json.loads((HERE / "export.json").read_text(encoding="utf-8"))
digests = {{name: one["sha256"] for name, one in HOW["files"].items()}} | {{"export.json": HOW.pop("seal")}}
sealed = (json.dumps(HOW, indent=1, sort_keys=True, ensure_ascii=False) + "\\n").encode()
for name, digest in digests.items():
    if hashlib.sha256(sealed if name == "export.json" else (HERE / name).read_bytes()).hexdigest() != digest:
        sys.exit(f"{{name}} is damaged; export the run again")
model = {model_class}.from_pretrained(BASE, dtype=torch.{dtype}).eval().to(DEVICE)
tokenizer, processor = AutoTokenizer.from_pretrained(BASE), AutoImageProcessor.from_pretrained(BASE)
"""

PROJECTOR = """projector = load_file(HERE / "projector.safetensors", DEVICE)
model.get_submodule("{projector}").float().load_state_dict(projector)
"""

OWN_ENCODER = """if not sys.argv[2:]:
    sys.exit(f"say where {HOW['encoder']['name']} lies on this machine, as ENCODER behind BASE")
for name, digest in HOW["encoder"]["files"].items():
    file = %s
    if not file.is_file() or hashlib.sha256(file.read_bytes()).hexdigest() != digest:
        sys.exit(f"{file} is not the encoder's {name} that the run looked through; pass the run's own")
"""
ENCODERS = {
    "name": (
        " [ENCODER]",
        "    ENCODER: a folder of open_clip that holds the encoder, fetched from the hub where it is left out\n",
    ),
    "folder": (" ENCODER", "    ENCODER: the folder of the encoder, which is compared with the run's\n"),
    "file": (
        " ENCODER",
        "    ENCODER: the file of the encoder's weights, which is compared with the run's\n",
    ),
}
"""How the argument stands in the first lines, and what it is, by where the encoder lies."""

READS = {
    "name": """called = f"local-dir:{sys.argv[2]}" if sys.argv[2:] else HOW["encoder"]["model"]
settings = HOW["encoder"]["settings"]
""",
    "folder": OWN_ENCODER % "Path(sys.argv[2], name)"
    + """called, settings = f"local-dir:{sys.argv[2]}", HOW["encoder"]["settings"]
""",
    "file": OWN_ENCODER % "Path(sys.argv[2])"
    + """called, settings = HOW["encoder"]["model"], HOW["encoder"]["settings"] | {"pretrained": sys.argv[2]}
""",
}

ENCODER = """clip, see = open_clip.create_model_from_pretrained(called, device=DEVICE, **settings)
words, clip = open_clip.get_tokenizer(called), clip.eval()
"""

PROMPTS = """kept = load_file(HERE / "prompts.safetensors", DEVICE)

def ready(image, prompt, row):  # puts the prompts of the sample behind the first token
    how, text = HOW["how"], clip.encode_text(words([prompt]).to(DEVICE))
    scores = (how["texts"] if image else how["alone"]) * F.cosine_similarity(text, kept["keys"])
    if image:
        scores += how["images"] * F.cosine_similarity(clip.encode_image(see(image)[None].to(DEVICE)), kept["keys"])
    best = scores.topk(min(how["top"], len(scores))).indices.tolist()
    soft = kept["prompts"][best[::-1] if how["best_last"] else best].flatten(0, 1)[None]
    def put(table, given, read):
        hook.remove()
        return torch.cat([read[:, :1], soft.to(read), read[:, 1 + soft.shape[1] :]], 1)
    hook = model.get_input_embeddings().register_forward_hook(put)
    return row[:1] + [int(HOW["asked"]["image_token"] == 0)] * soft.shape[1] + row[1:]
"""

TAIL = """
def ids(text):
    return tokenizer(text, add_special_tokens=False)["input_ids"] if text else []

for line in map(json.loads, sys.stdin):
    asked, shown = HOW["asked"], {{}}
    image = Image.open(line["image"]).convert("RGB") if line["image"] else None
    head, tail = asked["head"], line["prompt"] + asked["tail"]
    row = asked["start"] + ids(head + (asked["before_image"] if image else tail))
    if image:
        row += [asked["image_token"]] * asked["image_tokens"] + ids(asked["behind_image"] + tail)
{framing}        pixels = processor(images=[{framed}], return_tensors="pt")["pixel_values"]
        shown = {{"pixel_values": pixels.to(DEVICE, model.dtype)}}
    with torch.no_grad():
        row = torch.tensor([ready(image, line["prompt"], row)], device=DEVICE)
        with torch.autocast(DEVICE, torch.bfloat16, enabled=HOW["precision"] == "bf16"):
            made = model.generate(input_ids=row, attention_mask=row * 0 + 1, **shown, **HOW["generate"])
    answer = tokenizer.decode(made[0, row.shape[1] :], skip_special_tokens=True).strip()
    print(json.dumps({{**line, "answer": answer}}, ensure_ascii=False))
"""

PADDED = """        side, mean = max(image.size), tuple(int(255 * one) for one in processor.image_mean)
        square = Image.new("RGB", (side, side), mean)
        square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
"""

ADAPTERS = """layers, anchors, weights = {}, load_file(HERE / "routing.safetensors", DEVICE), []
for name in HOW["how"]["adapters"]:
    config = json.loads((HERE / "adapters" / name / "adapter_config.json").read_text(encoding="utf-8"))
    kept = load_file(HERE / "adapters" / name / "adapter_model.safetensors", DEVICE)
    for layer in config["target_modules"]:
        down, up = (kept[f"base_model.model.{layer}.lora_{side}.weight"] for side in "AB")
        scale = config["alpha_pattern"].get(layer, config["lora_alpha"]) / len(down)
        layers.setdefault(layer, []).append((down, up * scale))

def adding(adapters):
    def add(layer, given, y):
        x = given[0].to(adapters[0][0].dtype)
        return y + sum(w * F.linear(F.linear(x, down), up) for w, (down, up) in zip(weights, adapters)).to(y.dtype)
    return add

for layer, adapters in layers.items():
    model.get_submodule(layer).register_forward_hook(adding(adapters))

def look(view, image, prompt):
    if view == "image":
        return clip.encode_image(see(image)[None].to(DEVICE)) if image else torch.zeros(1, 1, device=DEVICE)
    if view == "text":
        return clip.encode_text(words([prompt]).to(DEVICE))
    tower = getattr(clip, "text", clip)  # the state before its projection
    projection, tower.text_projection = tower.text_projection, None
    state = clip.encode_text(words([prompt.partition(" ASSISTANT")[0]]).to(DEVICE))
    tower.text_projection = projection
    return state

def ready(image, prompt, row):  # weighs the adapters for the sample
    views = HOW["how"]["views"].items()
    near = [one["weight"] * F.cosine_similarity(look(one["view"], image, prompt), anchors[kind]) for kind, one in views]
    weights[:] = (sum(near) / HOW["how"]["temperature"]).softmax(-1).tolist()
    return row
"""

GATES = """kept = load_file(HERE / "gates.safetensors", DEVICE)

def adding(down, up, router):
    def add(layer, given, y):
        x = given[0].to(down.dtype)
        gates = F.linear(x, router).softmax(-1)[..., None]
        z = F.linear(x, down).unflatten(-1, (-1, up.shape[1] // len(router)))  # experts, or one for all, and ranks
        return y + F.linear((gates.to(z) * z).flatten(-2) * HOW["how"]["scale"], up).to(y.dtype)
    return add

for layer in {name.rpartition(".")[0] for name in kept}:
    parts = [kept[f"{layer}.{part}"] for part in ("down", "up", "router")]
    model.get_submodule(layer).register_forward_hook(adding(*parts))

def ready(image, prompt, row):
    return row
"""

KINDS = {"prompts": PROMPTS, "adapters": ADAPTERS, "gates": GATES}


def program(
    kind: str, model_class: str, dtype: str, *, projector: str | None, encoder: str | None, pads: bool
) -> str:
    """The text of the program.

    Args:
        kind: of the folder.
        model_class, dtype: of the base, by name.
        projector: its name in the model, where it was trained.
        encoder: where the feature encoder lies through which samples are looked at: `name`, `folder` or `file`.
        pads: whether an image is put on a square of the processor's mean colour; else the processor takes it as it is.
    """
    argument, says = ENCODERS[encoder] if encoder else ("", "")
    about = {
        "encoder_needs": " and open_clip" if encoder else "",
        "encoder_argument": argument,
        "encoder_says": says,
        "encoder_import": ", open_clip" if encoder else "",
    }
    framing = {"framing": PADDED if pads else "", "framed": "square" if pads else "image"}
    parts: Sequence[str] = (
        HEAD.format(model_class=model_class, dtype=dtype, **about),
        PROJECTOR.format(projector=projector) if projector else "",
        READS[encoder] + ENCODER if encoder else "",
        KINDS[kind],
        TAIL.format(**framing),
    )
    return "".join(parts)
