"""The commands that take a finished run's model out: let it answer, write it as files that other programs load."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Annotated, Any

import typer

from cl_zoo.cli.flags import AsJson, Device
from cl_zoo.cli.looking import print_json

RunFolder = Annotated[str, typer.Argument(metavar="RUN", help="Folder of a finished run.")]
Weights = Annotated[
    str | None,
    typer.Option("--backbone", help="NAME:PATH or a folder: another place of the run's own weights."),
]
Encoder = Annotated[
    str | None, typer.Option("--features", help="Another place of the run's own feature encoder.")
]

Trusted = Annotated[
    list[str] | None,
    typer.Option(
        "--trust-plugin",
        metavar="FILE",
        help="A plugin's file that the run names and that may be imported, or an installed plugin that may be newer than the run; repeatable.",
    ),
]


def predict(
    run: RunFolder,
    image: Annotated[
        list[str] | None, typer.Option("--image", help="Image file; repeatable, one per prompt.")
    ] = None,
    prompt: Annotated[
        list[str] | None, typer.Option("--prompt", help="Question and instruction; repeatable.")
    ] = None,
    input_: Annotated[
        str | None,
        typer.Option(
            "--input", help='JSON lines {"image": FILE or null, "prompt": TEXT}; answers come so too.'
        ),
    ] = None,
    max_new_tokens: Annotated[
        int | None,
        typer.Option("--max-new-tokens", min=1, help="Tokens of an answer; default: the run's largest."),
    ] = None,
    batch: Annotated[
        int | None, typer.Option("--batch", min=1, help="Prompts answered at a time; default: the recipe's.")
    ] = None,
    backbone: Weights = None,
    features: Encoder = None,
    device: Device = "auto",
    trust: Trusted = None,
    as_json: AsJson = False,
) -> None:
    """Answer prompts about images with the model of a finished run."""
    from cl_zoo.api import load

    images, prompts = _asked(image or [], prompt or [], input_)
    result = load(run, backbone=backbone, features=features, device=device, trust=trust or ())
    records = _answered(result.restored, images, prompts, max_new_tokens=max_new_tokens, batch=batch)
    if as_json:
        print_json(list(records))
        return
    for record in records:
        print(json.dumps(record, ensure_ascii=False) if input_ else record["answer"], flush=True)


def export(
    run: RunFolder,
    to: Annotated[str, typer.Option("--to", metavar="DIR", help="New folder for the exported model.")],
    merged: Annotated[
        bool, typer.Option("--merged", help="A full checkpoint with the update merged into the weights.")
    ] = False,
    backbone: Weights = None,
    features: Encoder = None,
    device: Device = "auto",
    trust: Trusted = None,
    as_json: AsJson = False,
) -> None:
    """Write the model of a finished run for stock PEFT and transformers."""
    from pathlib import Path

    from cl_zoo.export.writing import export as write

    written = write(
        Path(run),
        Path(to),
        merged=merged,
        backbone=backbone,
        features=features,
        device=device,
        trust=trust or (),
    )
    if as_json:
        print_json(written)
    else:
        print(
            f"wrote {written['folder']}: {written['kind']}, {len(written['files'])} files; see README.md in it"
        )


def _answered(
    restored: Any, images: list[str | None], prompts: list[str], **settings: int | None
) -> Iterator[dict[str, Any]]:
    answers = restored.answers(images, prompts, **settings)
    for image, record in zip(images, answers, strict=True):
        yield {"image": image, **record}


def _asked(images: list[str], prompts: list[str], file: str | None) -> tuple[list[str | None], list[str]]:
    """Images and prompts, from the flags or from the file.

    Raises:
        OptionError: both are given, neither is, or there is not one image per prompt.
    """
    from cl_zoo.data.faults import halved
    from cl_zoo.errors import OptionError

    if file is not None:
        if images or prompts:
            raise OptionError(f"--input {file}: holds images and prompts; leave out --image and --prompt")
        return _lines(file)
    if not prompts:
        raise OptionError("nothing is asked; pass --image FILE --prompt TEXT, or --input FILE.jsonl")
    if images and len(images) != len(prompts):
        raise OptionError(
            f"there are {len(images)} --image and {len(prompts)} --prompt; pass one image per prompt, or none at all"
        )
    for text in prompts:
        if half := halved(text):
            raise OptionError(f"--prompt {text!r}: holds half of a character ({half}); write it in UTF-8")
    return [*images] or [None] * len(prompts), prompts


def _lines(file: str) -> tuple[list[str | None], list[str]]:
    """The records of a file of JSON lines; image paths are relative to the working folder.

    Raises:
        DataError: it cannot be read, or a line is no such record.
    """
    from pathlib import Path

    from cl_zoo.data.faults import halved
    from cl_zoo.data.files import lines
    from cl_zoo.errors import DataError, first_line

    images: list[str | None] = []
    prompts: list[str] = []
    try:
        text = Path(file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"--input {file}: {first_line(error)}; pass a file of JSON lines") from None
    for number, line in lines(text):
        try:
            record = json.loads(line)
        except ValueError as error:
            raise DataError(
                f"--input {file}, line {number}: {first_line(error)}; write one JSON object"
            ) from None
        known = isinstance(record, dict) and isinstance(record.get("prompt"), str)
        if not known or not isinstance(record.get("image"), str | None):
            raise DataError(
                f'--input {file}, line {number}: is no {{"image": FILE or null, "prompt": TEXT}}; give each line both'
            )
        if half := halved(record["prompt"]) or halved(record.get("image") or ""):
            raise DataError(
                f"--input {file}, line {number}: holds half of a character ({half}); repair the line"
            )
        images.append(record.get("image"))
        prompts.append(record["prompt"])
    if not prompts:
        raise DataError(f"--input {file}: holds no line; write one JSON object per prompt")
    return images, prompts
