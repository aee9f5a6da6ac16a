"""Small trees of files as the configurations and scripts of TriGap and MLLM-CL name them, for tests to read.

Written with the helpers of `official_files.py`; pictures are tiny, questions and answers are our own.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cl_zoo.names import load

OFFICIAL = Path(__file__).with_name("official_files.py")
conversation, picture, write_json = (
    load("", f"{OFFICIAL}:{name}") for name in ("conversation", "picture", "write_json")
)

TRIGAP = {
    "PMCVQA": ("train_standard_4w", "test_standard_3k"),
    "DocVQA": ("train_converted_sub", "val_converted"),
    "ChartQA": ("train_standard_4w_sub", "test_standard_3k"),
    "IconQA": ("train_sub", "test_3000"),
    "InfographicVQA": ("infographicsVQA_train_converted_sub", "infographicsVQA_val_converted"),
    "ArxivQA": ("train_4w_sub", "test_3000"),
    "Roadside": ("train_standard_4w", "test_standard_3k"),
    "ChemVQA": ("train_standard_4w", "test_standard_3k"),
    "FloodNetVQA": ("train_standard_4w_sub", "test_standard_3k"),
    "CLEVR": ("train_4w_sub", "test_3000"),
}
"""Names of the training and the test file of each task, in order."""
WORDS = ("otter", "Main Street", "12.5", "B", "yes")


def write_trigap(root: Path, *, train: int = 4, test: int = 3) -> Path:
    """The ten tasks under `root`, documents with a list of right answers."""
    for number, (task, files) in enumerate(TRIGAP.items()):
        listed = task in ("DocVQA", "InfographicVQA")
        learn, ask = [], []
        for place in range(train + test):
            name = f"{task}/images/{place:04d}.png"
            picture(root / "TriGap/datasets" / name, 100 * number + place)
            prompt, answer = f"What is written on picture {place}?", WORDS[place % len(WORDS)]
            if place < train:
                learn.append(conversation(prompt, answer, name, id=str(place)))
            else:
                asked: dict[str, Any] = {
                    "question_id": place,
                    "image": name,
                    "text": prompt,
                    "answer": answer,
                }
                ask.append({**asked, "answer": [answer, f"{answer} Inc."]} if listed else asked)
        for file, records in zip(files, (learn, ask), strict=True):
            write_json(root / "TriGap/instructions" / task / f"{file}.json", records)
    return root


# MLLM-CL


def write_domains(root: Path, *, train: int = 4, test: int = 4, folder: str = "MLLM-CL/domain") -> Path:
    """The five domains under `root`; image names start from the domain's own folder, and are the same in each."""
    answers = {
        "RS": ("yes", "urban area"),
        "Med": ("in the cell", "no"),
        "AD": ("Going ahead.", "the red car"),
        "Sci": ("seed", "ohio, utah", "12%", "leaf"),
        "Fin": ("Yes", "A", "No", "C"),
    }
    for number, (task, right) in enumerate(answers.items()):
        learn, ask = [], []
        for place in range(train + test):
            kind = {0: "AI2D_", 1: "MapQA_", 2: "MapQA_", 3: "TQA_"}[place % 4] if task == "Sci" else ""
            name = f"images/{kind}{place:04d}.png"
            picture(root / folder / task / name, 2000 + 100 * number + place)
            prompt = (
                "Which states are red?"
                if place % 4 == 1 and task == "Sci"
                else f"What is it, number {place}?"
            )
            answer = right[place % len(right)]
            if place < train:
                learn.append(conversation(prompt, answer, name, id=str(place)))
            else:
                ask.append({"question_id": place, "image": name, "text": prompt, "answer": answer})
        write_json(root / folder / task / "train.json", learn)
        write_json(root / folder / task / "test.json", ask)
    return root


ACL_LAYOUTS = {
    "readme": ("OCR/train.json", "VP/train.json", "VP_test"),
    "scripts": ("OCR/train_without_dense_caption.json", "tallyqa150k/ty_cl_sft.json", "CV-Benchv2"),
}
"""OCR's training file, that of visual perception, and the folder of its test file, as the README and as the scripts name them."""


def write_abilities(root: Path, *, train: int = 4, test: int = 4, layout: str = "readme") -> Path:
    """OCR and visual perception under `root`; training and test images have the same names in different folders."""
    text, visual, seen = ACL_LAYOUTS[layout]
    kinds = ("Digit String Recognition", "Handwritten Mathematical Expression Recognition")
    for number, (learned, asked) in enumerate(((text, "OCR_test"), (visual, seen))):
        home = root / "MLLM-CL/ability"
        learn, ask = [], []
        for place in range(max(train, test)):
            name = f"images/{place:04d}.png"
            for split, folder in enumerate((Path(learned).parent, Path(asked))):
                picture(home / folder / name, 4000 + 200 * number + 100 * split + place)
            prompt = f"What is number {place}?"
            learn.append(conversation(prompt, str(place), name, id=str(place)))
            record: dict[str, Any] = {"question_id": f"test_{place}", "image": name, "text": prompt}
            if number == 0:
                ask.append({**record, "answer": [f"x ^{place}", str(place)], "answer_type": kinds[place % 2]})
            else:
                ask.append({**record, "answer": str(place), "type": ("2D", "3D")[place % 2], "task": "Count"})
        write_json(home / learned, learn[:train])
        write_json(home / asked / "test.json", ask[:test])
    return root
