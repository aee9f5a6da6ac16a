"""The commands that take a finished run's model out: let it answer, write it as files that other programs load."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cl_zoo.cli.flags import AsJson, Device
from cl_zoo.cli.looking import print_json
from cl_zoo.videos import FRAMES

if TYPE_CHECKING:
    from cl_zoo.cli.asking import Question

Images = Annotated[
    list[str] | None,
    typer.Option("--image", help="Image file; repeatable: all of one prompt, or one per prompt."),
]
Videos = Annotated[list[str] | None, typer.Option("--video", help="Video file; repeatable, one per prompt.")]
Frames = Annotated[
    int, typer.Option("--frames", min=1, help="Images that stand for a video, at equal distances.")
]
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
    image: Images = None,
    video: Videos = None,
    frames: Frames = FRAMES,
    prompt: Annotated[
        list[str] | None, typer.Option("--prompt", help="Question and instruction; repeatable.")
    ] = None,
    input_: Annotated[
        str | None,
        typer.Option(
            "--input",
            help='JSON lines {"image": FILE, FILES or null, "video": FILE, "prompt": TEXT}; answers come so too.',
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
    """Answer prompts about images and videos with the model of a finished run."""
    from cl_zoo.api import load
    from cl_zoo.cli.asking import asked

    questions = asked(image or [], video or [], prompt or [], input_)
    result = load(run, backbone=backbone, features=features, device=device, trust=trust or ())
    records = _answered(result.restored, questions, frames, max_new_tokens=max_new_tokens, batch=batch)
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
    restored: Any, questions: list[Question], frames: int, **settings: int | None
) -> Iterator[dict[str, Any]]:
    images = [one.shown(frames) for one in questions]
    answers = restored.answers(images, [one.prompt for one in questions], **settings)
    for one, record in zip(questions, answers, strict=True):
        yield {**one.told, **record}
