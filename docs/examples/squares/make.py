"""Sixty pictures of a coloured square and two tasks about them: `python make.py FOLDER`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from PIL import Image

COLOURS = {"red": (200, 40, 40), "green": (40, 160, 60), "blue": (50, 60, 200)}
ASK = "What colour is the square?\nAnswer the question using a single word or phrase."
DESCRIBE = "Describe the picture.\nGenerate a brief caption for the image."


def learn(number: int, question: str, answer: str) -> dict[str, object]:
    """A training record in LLaVA's format."""
    turns = [{"from": "human", "value": f"<image>\n{question}"}, {"from": "gpt", "value": answer}]
    return {"id": str(number), "image": f"{number:03}.png", "conversations": turns}


def ask(number: int, question: str, **expected: object) -> dict[str, object]:
    """A test record: a question file's format."""
    return {"question_id": str(number), "image": f"{number:03}.png", "text": question, **expected}


folder = Path(sys.argv[1])
(folder / "pictures").mkdir(parents=True, exist_ok=True)
files: dict[str, list[dict[str, object]]] = {}
for number in range(60):
    colour = list(COLOURS)[number % 3]
    picture = Image.new("RGB", (64, 64), (250, 250 - number, 250))
    picture.paste(COLOURS[colour], (16, 16, 48, 48))
    picture.save(folder / "pictures" / f"{number:03}.png")
    if number < 48:
        files.setdefault("colour_train", []).append(learn(number, ASK, colour))
        files.setdefault("caption_train", []).append(learn(number, DESCRIBE, f"a {colour} square"))
    else:
        sentences = [f"a {colour} square", f"one square that is {colour}"]
        files.setdefault("colour_test", []).append(ask(number, ASK, answer=colour))
        files.setdefault("caption_test", []).append(ask(number, DESCRIBE, references=sentences))
for name, records in files.items():
    (folder / f"{name}.json").write_text(json.dumps(records, indent=1), encoding="utf-8")
