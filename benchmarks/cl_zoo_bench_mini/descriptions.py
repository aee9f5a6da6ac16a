"""Pre-training's descriptions: labels, short and long sentences about every kind of scene, each in several wordings."""

from __future__ import annotations

from cl_zoo_bench_mini.scenes import (
    Board,
    Chart,
    Clock,
    Frame,
    Generator,
    Outdoors,
    Photograph,
    Portrait,
    Scene,
    pick,
)
from cl_zoo_bench_mini.words import one, spelled

REQUESTS: dict[str, tuple[str, ...]] = {
    "label": (
        "Label the picture.",
        "Give it a label.",
        "Write a label.",
        "Tag the picture.",
        "Give the image a label.",
    ),
    "short": (
        "Describe it in short.",
        "Describe the picture.\nUse few words.",
        "Write something short about the picture.",
        "Give a short description.",
        "What does the image show?\nBe brief.",
        "Give a brief description of the image.",
        "Write a brief caption.",
    ),
    "long": (
        "Describe the picture.\nUse a whole sentence.",
        "Describe everything.",
        "Write a long sentence about the picture.",
        "Say all that is to be seen.",
        "Give a long description.",
        "What is happening?\nUse a sentence.",
        "Generate a description of the image.",
        "Write a caption for the image.",
        "Describe what is happening.",
    ),
}


def describe(scene: Scene, rng: Generator) -> tuple[str, str, tuple[str, ...]]:
    """A kind of description (`label`, `short`, `long`), a request for it, and all sentences that fulfil it."""
    kind = pick(
        rng,
        ("label", "short", "long", "long")
        if isinstance(scene, (Photograph, Outdoors))
        else ("label", "short"),
    )
    return kind, pick(rng, REQUESTS[kind]), sentences(scene)[kind]


def sentences(scene: Scene) -> dict[str, tuple[str, ...]]:
    """Every description of a scene, by kind."""
    if isinstance(scene, Photograph):
        return _photograph(scene)
    if isinstance(scene, Outdoors):
        return _outdoors(scene)
    if isinstance(scene, Portrait):
        name = f"{scene.colour} {scene.thing}"
        return {
            "label": (f"{name} , {scene.style}",),
            "short": (f"{one(scene.style)} {name}", f"this is {one(name)} , drawn {scene.style}"),
        }
    if isinstance(scene, Board):
        count = spelled(str(scene.count()))
        return {
            "label": (f"board , {count}",),
            "short": (f"a board with {count} shapes", f"{count} shapes on a board"),
        }
    if isinstance(scene, Chart):
        return _chart(scene)
    if isinstance(scene, Clock):
        hour = spelled(str(scene.hour))
        return {
            "label": (f"clock , {hour}",),
            "short": (f"a clock that shows {hour}", f"{one(scene.colour)} hand points to {hour}"),
        }
    if isinstance(scene, Frame):
        count = spelled(str(scene.count))
        return {
            "label": (f"dots , {count}",),
            "short": (f"a frame with {count} {scene.colour} dots", f"{count} {scene.colour} dots"),
        }
    raise TypeError(f"no description is known for a scene of type {type(scene).__name__}")


def _chart(scene: Chart) -> dict[str, tuple[str, ...]]:
    top, count = scene.ranked()[0].colour, spelled(str(len(scene.bars)))
    least, front, behind = scene.ranked()[-1].colour, scene.bars[0].colour, scene.bars[-1].colour
    return {
        "label": (f"chart , {count}",),
        "short": (
            f"a chart of {count} bars , {top} is the tallest",
            f"{count} bars and the tallest is {top}",
            f"the most is {top} and the least is {least}",
            f"in front is {front} and behind is {behind}",
        ),
    }


def _photograph(scene: Photograph) -> dict[str, tuple[str, ...]]:
    name, table, flaw = f"{scene.colour} {scene.thing}", f"{scene.surface} table", scene.flaw
    return {
        "label": (f"{name} , {flaw}",),
        "short": (f"{one(name)} on a {table}", f"a {flaw} photo of a {scene.thing}", f"there is {one(name)}"),
        "long": (
            f"there is {one(name)} on a {table} and the photo is {flaw}",
            f"the photo is {flaw} and shows {one(name)} on a {table}",
            f"on a {table} is {one(name)} , the photo is {flaw}",
            f"a {flaw} photo with {one(name)} that lies on a {table}",
        ),
    }


def _outdoors(scene: Outdoors) -> dict[str, tuple[str, ...]]:
    name, beside, ground, sky = f"{scene.colour} {scene.being}", scene.beside, scene.ground, scene.sky
    side = "left" if scene.left else "right"
    return {
        "label": (f"{name} , {beside} , {ground}",),
        "short": (
            f"{one(name)} beside a {beside}",
            f"a {scene.being} on the {ground}",
            f"there is {one(name)} outside",
        ),
        "long": (
            f"there is {one(name)} beside a {beside} on the {ground} , the sky is {sky}",
            f"under a {sky} sky {one(name)} is on the {ground} with a {beside}",
            f"{one(name)} at the {side} and a {beside} , on the {ground} , {sky} sky",
            f"on the {ground} is {one(name)} near a {beside} , and the sky is {sky}",
        ),
    }
