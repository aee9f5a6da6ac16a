"""Small trees of files in the official formats of UCIT and CoIN, with all their quirks, for tests to read.

Other test files take the writers by path, as a method is taken from a file:

    OFFICIAL = Path(__file__).with_name("official_files.py")
    write_ucit = load("", f"{OFFICIAL}:write_ucit")        # from cl_zoo.names import load

Pictures are tiny and each is another one; questions and answers follow the published examples, nothing is copied from the data.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

WORD = "Answer the question using a single word or phrase."
LETTER = "Answer with the option's letter from the given choices directly."
BRIEF = "Generate a brief caption for the image."
BOX = "Please provide the bounding box coordinate of the region this sentence describes:"
COLOURS = ("red", "green", "blue", "yellow", "black", "white", "purple", "orange")

UCIT_LAYOUTS = ("official", "scripts", "mcit", "flat")
"""`official`: the README's tree. `scripts`: the names in the training and evaluation scripts. `mcit`: `UCIT/<Task>/train.json`.
`flat`: as `official` without the folder `instructions`."""
COIN_VARIANTS = {
    "original": "Instructions_Original",
    "type1": "Instructions_Type1",
    "type2": "Instructions_Type2",
    "diverse": "Instructions_Diverse",
    "10type": "Instructions_10Type",
}

Records = list[dict[str, Any]]


def write_json(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def edit_json(path: Path, change: Callable[[Any], Any]) -> Path:
    """Rewrite a JSON file; `change` alters what it holds in place, or returns something else."""
    content = json.loads(path.read_text(encoding="utf-8"))
    changed = change(content)
    return write_json(path, content if changed is None else changed)


def picture(path: Path, number: int, size: tuple[int, int] = (32, 24)) -> Path:
    """A distinct picture: a disc on a ground, colours and place by number."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("RGB", size, (number * 53 % 256, number * 97 % 256, number * 29 % 256))
    x, y = number * 7 % (size[0] - 10), number * 5 % (size[1] - 10)
    ImageDraw.Draw(image).ellipse((x, y, x + 9, y + 9), fill=COLOURS[number % len(COLOURS)])
    image.save(path)
    return path


def conversation(prompt: str, answer: str, image: str | None = None, **key: Any) -> dict[str, Any]:
    """A training record: `image` and the token only where there is one."""
    record: dict[str, Any] = dict(key)
    if image is not None:
        record["image"] = image
        prompt = f"<image>\n{prompt}"
    record["conversations"] = [{"from": "human", "value": prompt}, {"from": "gpt", "value": answer}]
    return record


def coco(names: list[str], captions: Callable[[int], list[str]], **more: Any) -> dict[str, Any]:
    """COCO captions whose image ids are places in the test file, from 1."""
    images = [{"id": place + 1, "file_name": name} for place, name in enumerate(names)]
    pairs = [(place, text) for place in range(len(names)) for text in captions(place)]
    annotations = [
        {"id": number, "image_id": place + 1, "caption": text} for number, (place, text) in enumerate(pairs)
    ]
    return {"images": images, "annotations": annotations, **more}


def five(place: int) -> list[str]:
    colour = COLOURS[place % len(COLOURS)]
    return [
        f"a {colour} disc on a plain ground",
        f"one {colour} circle",
        f"a round {colour} thing lies there",
        f"a {colour} disc",
        f"the picture shows a {colour} disc",
    ]


# UCIT


def write_ucit(root: Path, *, train: int = 6, test: int = 4, layout: str = "official") -> Path:
    """The six tasks under `root`; returns `root`, what a user passes as `--data`."""
    images = root / ("UCIT/datasets" if layout == "mcit" else "datasets")
    writers = (_imagenet_r, _arxivqa, _vizwiz, _iconqa, _clevr, _flickr)
    for number, write in enumerate(writers):
        write(root, images, layout, train, test, 1000 * number)
    return root


def ucit_folder(root: Path, task: str, layout: str = "official") -> Path:
    """Where a layout keeps a task's instruction files; tasks by their names in the official tree."""
    if layout == "scripts":
        task = {"VizWiz": "VizWiz-caption", "CLEVR": "CLEVR-Math", "Flickr30k": "Flickr30k-cap"}.get(
            task, task
        )
    if layout == "mcit":
        return root / "UCIT" / {"CLEVR": "CLEVR-Math"}.get(task, task)
    return root / task if layout == "flat" else root / "instructions" / task


def ucit_files(root: Path, task: str, layout: str = "official") -> dict[str, Path]:
    """Paths of `train`, `test` and, for captions, `references`."""
    folder, mcit = ucit_folder(root, task, layout), layout == "mcit"
    four = {"ArxivQA": "train_4w.json", "CLEVR": "train_4w.json", "Flickr30k": "train_brief_4w.json"}
    files = {
        "train": folder / ("train.json" if mcit else four.get(task, "train.json")),
        "test": folder / ("test.json" if mcit else "test_3000.json"),
    }
    if task in ("VizWiz", "Flickr30k"):
        files["references"] = folder / "val_coco_type_3000.json"
    return files


def _write(root: Path, layout: str, task: str, train: Records, test: Records, references: Any = None) -> None:
    files = ucit_files(root, task, layout)
    write_json(files["train"], train)
    write_json(files["test"], test)
    if references is not None:
        write_json(files["references"], references)


def _imagenet_r(root: Path, images: Path, layout: str, train: int, test: int, start: int) -> None:
    labels = {"n01443537": "goldfish", "n02783161": "ballpoint pen", "n02841315": "Binoculars"}
    prompt = f"What is the object in the image?\n{WORD}"
    splits: dict[str, Records] = {}
    for split, count, first in (("train", train, start), ("test", test, start + 500)):
        splits[split] = []
        for place in range(count):
            wnid, stem = list(labels)[place % 3], f"art_{place}"
            name = f"ImageNet-R/{split}/{wnid}/{stem}.jpg"
            picture(images / name, first + place)
            if split == "train":
                splits[split].append(conversation(prompt, labels[wnid], name, id=f"{wnid}/{stem}"))
            else:
                splits[split].append(
                    {"question_id": f"{wnid}/{stem}", "image": name, "text": prompt, "answer": labels[wnid]}
                )
    _write(root, layout, "ImageNet-R", **splits)


def _arxivqa(root: Path, images: Path, layout: str, train: int, test: int, start: int) -> None:
    """Two questions about each image, one of two with its rationale; train and test share one folder and an image."""

    def prompt(place: int) -> str:
        options = "\nA) 1\nB) 2\nC) 3\nD) 4"
        rationale = (
            f"\n**Rationale:** Figure {place} shows {place % 4 + 1} branches." if place % 2 == 0 else ""
        )
        return f"Based on figure {place}), how many branches are there?{options}{rationale}\n{LETTER}"

    def name(place: int) -> str:
        return f"ArxivQA/images/1911.{place // 2:05d}_1.jpg"

    for place in range(0, train + test, 2):
        picture(images / name(place), start + place)
    learn = [
        conversation(prompt(place), "ABCD"[place % 4], name(place), id=str(place)) for place in range(train)
    ]
    shared = max(0, train - train % 2 - 2)  # the first test questions are about an image of the training file
    ask = [
        {
            "question_id": str(40_000 + place),
            "image": name(shared + place),
            "text": prompt(90 + place),
            "answer": "ABCD"[(90 + place) % 4],
        }
        for place in range(test)
    ]
    _write(root, layout, "ArxivQA", learn, ask)


def _captions(
    root: Path,
    images: Path,
    layout: str,
    task: str,
    train: int,
    test: int,
    start: int,
    name: Callable[..., str],
) -> tuple[Records, Records, list[str]]:
    """Training ids are image ids and come twice; the references' ids are places."""
    prompt = f"What is happening in the image?\n{BRIEF}"
    learn, ask = [], []
    for place in range(train):
        image = place // 2
        file = f"{task}/train/{name('train', image)}"
        picture(images / file, start + image)
        learn.append(conversation(prompt, five(image)[place % 2], file, question_id=image + 1))
    for place in range(test):
        number = 7 * (test - place)  # neither counting from 1 nor in the order of the file
        file = f"{task}/val/{name('val', number)}"
        picture(images / file, start + 500 + place)
        ask.append({"question_id": number, "image": file, "text": prompt, "answer": five(place)[0]})
    return learn, ask, [name("val", record["question_id"]) for record in ask]


def _vizwiz(root: Path, images: Path, layout: str, train: int, test: int, start: int) -> None:
    def name(split: str, number: int) -> str:
        return f"VizWiz_{split}_{number:08d}.jpg"

    learn, ask, names = _captions(root, images, layout, "VizWiz", train, test, start, name)
    references = coco(names, five, categories=[{"id": 1, "name": "captioning"}])
    _write(root, layout, "VizWiz", learn, ask, references)


def _flickr(root: Path, images: Path, layout: str, train: int, test: int, start: int) -> None:
    def name(split: str, number: int) -> str:
        return f"{2250713748 + number}.jpg"

    learn, ask, names = _captions(root, images, layout, "Flickr30k", train, test, start, name)
    _write(root, layout, "Flickr30k", learn, ask, coco(names, five))


def _iconqa(root: Path, images: Path, layout: str, train: int, test: int, start: int) -> None:
    """Fill-in questions ask for a word, choices are numbered from 0 and ask for a letter all the same."""
    splits: dict[str, Records] = {"train": [], "test": []}
    for split, folder, count, first in (("train", "train", train, 0), ("test", "val", test, 500)):
        for place in range(count):
            fill = place % 2 == 0
            kind = "fill_in_blank" if fill else "choose_txt"
            name = f"IconQA/iconqa_data/iconqa/{folder}/{kind}/{first + place}/image.png"
            picture(images / name, start + first + place)
            options = "" if fill else "\n0. 72\n1. 71\n2. 63"
            prompt = f"How many shapes are there?{options}\n{WORD if fill else LETTER}"
            answer = str(place % 5) if fill else str(place % 3)
            if split == "train":
                splits[split].append(conversation(prompt, answer, name, question_id=first + place))
            else:
                splits[split].append(
                    {"question_id": first + place, "image": name, "text": prompt, "answer": answer}
                )
    _write(root, layout, "IconQA", **splits)


def _clevr(root: Path, images: Path, layout: str, train: int, test: int, start: int) -> None:
    def prompt(place: int) -> str:
        return f"Subtract {place % 3} cyan cylinders. How many objects are left?\n{WORD}"

    learn, ask = [], []
    for place in range(train):
        name = f"CLEVR/images/train/CLEVR_train_{place:06d}.png"
        picture(images / name, start + place)
        learn.append(conversation(prompt(place), str(9 - place % 3), name, id=place // 2 * 2))  # an id twice
    for place in range(test):
        name = f"CLEVR/images/val/CLEVR_val_{place:06d}.png"
        picture(images / name, start + 500 + place)
        ask.append({"question_id": place, "image": name, "text": prompt(place), "answer": str(9 - place % 3)})
    _write(root, layout, "CLEVR", learn, ask)


# CoIN


def write_coin(
    root: Path, *, train: int = 6, test: int = 4, variant: str = "original", prefix: str = "playground"
) -> Path:
    """The eight tasks under `root`, with the files of the original data sets that hold references.

    Args:
        variant: a key of `COIN_VARIANTS`; `type2` and others change the instruction, which is a prompt's last line.
        prefix: folder of the instruction folders, or "".
    """
    folder = root / prefix / COIN_VARIANTS[variant]
    word = {
        "type2": "Express your answer in a single word or a short, descriptive phrase.",
        "diverse": "Summarize your response in a single word or a brief phrase.",
        "10type": "Provide your answer using a single word or a brief phrase.",
    }.get(variant, WORD)
    images = root / "cl_dataset"
    _scienceqa(folder, images, train, test)
    _textvqa(folder, images, train, test, word)
    _imagenet(folder, images, train, test, word)
    _gqa(folder, images, train, test, word)
    _plain(
        folder, images, "VizWiz", "VizWiz/{split}/VizWiz_{split}_{number:08d}.jpg", train, test, word, 5000
    )
    _grounding(folder, images, train, test)
    coco_name = "COCO2014/{split}2014/COCO_{split}2014_{number:012d}.jpg"
    _plain(folder, images, "VQAv2", coco_name, train, test, word, 7000)
    _plain(folder, images, "OCRVQA", "OCR-VQA/images/{number:010d}.jpg", train, test, word, 8000, "test")
    return root


def _pair(folder: Path, task: str, train: Records, test: Records, test_file: str = "test") -> None:
    write_json(folder / task / "train.json", train)
    write_json(folder / task / f"{test_file}.json", test)


def _scienceqa(folder: Path, images: Path, train: int, test: int) -> None:
    """Every other question is a text alone: no `image`, no token."""
    problems, splits = {}, {"train": [], "test": []}
    records: dict[str, Records] = {"train": [], "test": []}
    for split, count, first in (("train", train, 1), ("test", test, 1001)):
        for place in range(count):
            pid, answer = str(first + place), place % 4
            states = ["West Virginia", "Louisiana", "Arizona", "Oklahoma"]
            options = "\n".join(f"{letter}. {state}" for letter, state in zip("ABCD", states, strict=True))
            prompt = f"Which of these states is farthest north?\n{options}\n{LETTER}"
            problems[pid] = {"question": prompt.splitlines()[0], "choices": states, "answer": answer}
            splits[split].append(pid)
            name = None
            if place % 2 == 0:
                name = f"ScienceQA/images/{split}/{pid}/image.png"
                picture(images / name, first + place)
            if split == "train":
                records[split].append(conversation(prompt, "ABCD"[answer], name, question_id=pid))
            else:
                asked = {"question_id": pid, "text": prompt, "answer": "ABCD"[answer]}
                records[split].append(asked if name is None else {**asked, "image": name})
    _pair(folder, "ScienceQA", **records)
    write_json(images / "ScienceQA/problems.json", problems)
    write_json(images / "ScienceQA/pid_splits.json", splits)


def _textvqa(folder: Path, images: Path, train: int, test: int, word: str) -> None:
    """Ten people's answers lie in the file of the original data set."""
    learn, ask, people = [], [], []
    for place in range(train + test):
        number = 34_602 + place
        folder_name = "train_images" if place < train else "test_images"
        name = f"TextVQA/{folder_name}/{number:016x}.jpg"
        question = f"what is written on sign {place}?"
        picture(images / name, 2000 + place)
        if place < train:
            learn.append(conversation(f"{question}\n{word}", f"stop {place}", name, question_id=number))
            continue
        text = f"{question}\n{word}"
        ask.append({"question_id": number, "image": name, "text": text, "answer": f"stop {place}"})
        people.append(
            {
                "question_id": number,
                "image_id": f"{number:016x}",
                "question": question,
                "answers": [f"stop {place}"] * 7 + ["stop"] * 2 + ["sign"],
            }
        )
    _pair(folder, "TextVQA", learn, ask, "val")
    write_json(images / "TextVQA/TextVQA_0.5.1_val.json", {"dataset_name": "textvqa", "data": people})


def _imagenet(folder: Path, images: Path, train: int, test: int, word: str) -> None:
    """Image strings start with `./`; the label is one of the file's."""
    labels = {"n01440764": "tench", "n02102040": "English springer", "n03000684": "chain saw"}
    prompt = f"What is the object in the image?\n{word}"
    learn, ask = [], []
    for place in range(train):
        wnid = list(labels)[place % 3]
        name = f"./ImageNet_withlabel/train/{wnid}/{wnid}_{place}.JPEG"
        picture(images / name, 3000 + place)
        learn.append(conversation(prompt, labels[wnid], name, question_id=f"{wnid}_{place}.JPEG"))
    for place in range(test):
        file = f"ILSVRC2012_val_{place:08d}.JPEG"
        picture(images / "ImageNet_withlabel/val" / file, 3500 + place)
        ask.append(
            {
                "question_id": file,
                "image": f"./ImageNet_withlabel/val/{file}",
                "text": prompt,
                "answer": list(labels.values())[place % 3],
            }
        )
    _pair(folder, "ImageNet", learn, ask)


def _gqa(folder: Path, images: Path, train: int, test: int, word: str) -> None:
    learn, ask, questions = [], [], {}
    for place in range(train + test):
        name, number = f"GQA/images/n{place:06d}.jpg", f"2013072{place:02d}"
        answer = ("yes", "no", "left")[place % 3]
        picture(images / name, 4000 + place)
        prompt = f"Is the disc number {place} to the left?\n{word}"
        if place < train:
            learn.append(conversation(prompt, answer, name, question_id=number))
        else:
            ask.append({"question_id": number, "image": name, "text": prompt, "answer": answer})
            questions[number] = {
                "imageId": f"n{place:06d}",
                "question": prompt.splitlines()[0],
                "answer": answer,
                "types": {"structural": "verify"},
            }
    _pair(folder, "GQA", learn, ask)
    write_json(images / "GQA/testdev_balanced_questions.json", questions)


def _grounding(folder: Path, images: Path, train: int, test: int) -> None:
    """Boxes are texts of four shares of the padded square; a test record names them as `answer_bbox`, with the size."""
    learn, ask = [], []
    for place in range(train + test):
        name = f"COCO2014/train2014/COCO_train2014_{6000 + place:012d}.jpg"
        picture(images / name, 6000 + place, size=(40, 30))
        prompt = f"{BOX}\nthe disc number {place}"
        box = f"[0.{place % 5}0, 0.15, 0.{place % 5 + 4}5, 0.75]"
        if place < train:
            learn.append(conversation(prompt, box, name, question_id=place))
        else:
            asked = {"question_id": place, "image": name, "text": prompt, "answer": box}
            ask.append({**asked, "answer_bbox": box, "size": [40, 30]})
    _pair(folder, "Grounding", learn, ask)


def _plain(
    folder: Path,
    images: Path,
    task: str,
    name: str,
    train: int,
    test: int,
    word: str,
    start: int,
    file: str = "val",
) -> None:
    learn, ask = [], []
    for place in range(train + test):
        split = "train" if place < train else "val"
        path = name.format(split=split, number=start + place)
        picture(images / path, start + place)
        prompt, answer = f"What colour is disc {place}?\n{word}", COLOURS[(start + place) % len(COLOURS)]
        if place < train:
            learn.append(conversation(prompt, answer, path, question_id=start + place))
        else:
            ask.append({"question_id": start + place, "image": path, "text": prompt, "answer": answer})
    _pair(folder, task, learn, ask, file)
