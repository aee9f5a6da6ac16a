"""Small trees of files as the configurations and scripts of TriGap name them, for tests to read.

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
