"""The tasks' captions: five sentences of varied wording for each picture, in a style that pre-training does not use.

As people do, a caption leaves something out, puts things in its own order and chooses its own words, so that no single sentence
can agree with all five.
"""

from __future__ import annotations

from collections.abc import Callable

from cl_zoo_bench_mini.scenes import Generator, Outdoors, Photograph, Scene, pick
from cl_zoo_bench_mini.words import exact_name, one

CAPTIONS = 5
_FLAWS = {
    "blurry": ("fuzzy", "blurry", "unclear", "low quality"),
    "dark": ("dim", "dark", "shadowy", "poorly lit"),
    "bright": ("pale", "bright", "overexposed", "faded"),
    "noisy": ("grainy", "noisy", "poor", "low quality"),
}
_GROUNDS = {
    "grass": ("a meadow", "a field", "the grass", "grassy ground"),
    "sand": ("a beach", "the shore", "the sand", "sandy ground"),
    "snow": ("a white field", "snowy ground", "the snow"),
    "water": ("a lake", "the water", "the shore of a lake"),
}
_WEATHER = {
    "clear": ("sunny", "clear", "a sunny day"),
    "cloudy": ("grey", "cloudy", "a grey day"),
    "night": ("night", "dark", "a dark night"),
    "sunset": ("evening", "dusk", "the end of the day"),
}


def photograph_captions(scene: Photograph, rng: Generator) -> tuple[str, ...]:
    """Five different captions of a degraded photograph."""
    return _different(_photograph_caption, scene, rng)


def outdoor_captions(scene: Outdoors, rng: Generator) -> tuple[str, ...]:
    """Five different captions of a scene outdoors."""
    return _different(_outdoor_caption, scene, rng)


def task_captions(scene: Photograph | Outdoors, rng: Generator) -> tuple[str, ...]:
    """Five different captions of either."""
    return photograph_captions(scene, rng) if isinstance(scene, Photograph) else outdoor_captions(scene, rng)


def _different(write: Callable[..., str], scene: Scene, rng: Generator) -> tuple[str, ...]:
    written: dict[str, None] = {}
    while len(written) < CAPTIONS:
        written.setdefault(write(scene, rng))
    return tuple(written)


def _photograph_caption(scene: Photograph, rng: Generator) -> str:
    flaw = pick(rng, _FLAWS[scene.flaw])
    image = pick(rng, ("image", "picture", "photograph", "view"))
    thing = exact_name(scene.thing) if rng.random() < 0.5 else "object"
    name = one(f"{scene.colour} {thing}" if rng.random() < 0.25 else thing)
    desk = one(f"{scene.surface} desk" if rng.random() < 0.35 else pick(rng, ("desk", "desk", "tabletop")))
    wordings = (
        f"{one(flaw)} {image} of {name} on {desk}",
        f"{one(flaw)} {image} of {name}",
        f"{name} on {desk}",
        f"{name} sits on {desk}",
        f"{desk} with {name} on it",
        f"the {image} is {flaw} and shows {name}",
        f"{name} in {one(flaw)} {image}",
        f"this {image} is very {flaw}",
        f"some {scene.colour} object on {desk}",
        f"there appears to be {name} in the {image}",
        f"{name} sits all alone",
    )
    return pick(rng, wordings)


def _outdoor_caption(scene: Outdoors, rng: Generator) -> str:
    person = scene.being in ("man", "woman")
    being = pick(rng, (scene.being, "person" if person else "animal"))
    coloured = f"{being} {pick(rng, ('in', 'wearing', 'dressed in'))} {scene.colour}"
    name = one((coloured if person else f"{scene.colour} {being}") if rng.random() < 0.4 else being)
    ground, beside = pick(rng, _GROUNDS[scene.ground]), one(pick(rng, ("large ", "big ", "")) + scene.beside)
    stands = pick(rng, ("stands", "waits", "rests", "is standing", "is seen"))
    near = pick(rng, ("next to", "near", "beside", "in front of"))
    wordings = (
        f"{name} {stands} {near} {beside} on {ground}",
        f"{name} {stands} {near} {beside}",
        f"{name} {stands} on {ground}",
        f"{name} {pick(rng, ('walks along', 'looks at', 'is out on'))} {ground}",
        f"{beside} and {name} on {ground}",
        f"it is {pick(rng, _WEATHER[scene.sky])} and {name} {stands} {near} {beside}",
        f"a view of {ground} with {name} and {beside}",
        f"{beside} {pick(rng, ('on', 'by'))} {ground} with {name} {near} it",
        f"on {ground} {stands} {name} all alone",
    )
    return pick(rng, wordings)
