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
    "grass": ("a meadow", "a meadow", "a field"),
    "sand": ("a beach", "a beach", "the shore"),
    "snow": ("snowy ground", "snowy ground", "a white field"),
    "water": ("a lake", "a lake", "the shore of a lake"),
}
_WEATHER = {"clear": "sunny", "cloudy": "grey", "night": "night", "sunset": "evening"}


def photograph_captions(scene: Photograph, rng: Generator) -> tuple[str, ...]:
    """Five different captions of a degraded photograph."""
    return _different(_photograph_caption, scene, rng)


def outdoor_captions(scene: Outdoors, rng: Generator) -> tuple[str, ...]:
    """Five different captions of a scene outdoors."""
    return _different(_outdoor_caption, scene, rng)


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
    being = scene.being if rng.random() < 0.4 else "person" if person else "animal"
    coloured = f"{being} in {scene.colour}" if person else f"{scene.colour} {being}"
    name = one(coloured if rng.random() < 0.3 else being)
    ground, beside = pick(rng, _GROUNDS[scene.ground]), one(pick(rng, ("large ", "big ", "")) + scene.beside)
    wordings = (
        f"{name} stands next to {beside} on {ground}",
        f"{name} stands next to {beside}",
        f"{name} stands on {ground}",
        f"{beside} and {name} on {ground}",
        f"it is {_WEATHER[scene.sky]} and {name} stands next to {beside}",
        f"a view of {ground} with {name}",
        f"{name} walks along {ground}",
    )
    return pick(rng, wordings)
