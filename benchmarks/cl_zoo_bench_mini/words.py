"""The words of the small world: number words, two names for a thing, plurals, and the whole vocabulary."""

from __future__ import annotations

import re

SPELLED = (
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
)
EXACT_NAMES = {
    "fish": "goldfish",
    "house": "cottage",
    "tree": "oak",
    "star": "starfish",
    "cup": "mug",
    "car": "taxi",
    "boat": "yacht",
    "flower": "daisy",
    "bottle": "flask",
}
"""The more exact name of a thing; a thing that is not listed has one name only."""
LETTERS = ("A", "B", "C", "D")


def plural(noun: str) -> str:
    """The plural of one of the shapes."""
    return noun + ("es" if noun.endswith("s") else "s")


def one(name: str) -> str:
    """A name with its indefinite article."""
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def spelled(number: str) -> str:
    """A number from 0 to 12 as a word."""
    return SPELLED[int(number)]


def exact_name(thing: str) -> str:
    """The exact name of a thing."""
    return EXACT_NAMES.get(thing, thing)


def split_words(text: str) -> list[str]:
    """Text as the tokenizer sees it: words, numbers, single marks and line breaks."""
    return re.findall(r"\n|\w+|[^\w\s]", text)


VOCABULARY = tuple(
    """
0 1 10 11 12 2 3 4 5 6 7 8 9 A a about above against all alone along amount an and animal Answer apart
appears Are are arrow art as at away B background bar bars Based Be be beach been behind belongs
beneath beside between big biggest bird black blue blurry board boat bottle bottom brief bright
brown by C caption car card cartoon category center chart choices Choose circle circles class clear
clock cloudy colour comes Copy corner cottage Count count cross crosses cup D daisy dark day
daylight Describe description desk Digits digits dim directly Do do does dog dots dotted drawing
drawn dressed during dusk E eight eleven empty end equal evening every everything exact exactly
faded fault few field figure filled Find first fish five flask flower focus for four frame free from
front full fuzzy Generate Give given goldfish grainy grass grassy green grey ground hand happening
has have heart heavy height highest hour house How how icon icons Ignore image In in Is is it items
its Just Keep key kind Label label lake large largest last least Leave left less letter lies light
lit little long Look looks low lowest lying man many mark meadow middle missing moon more most mug
Name name near negative next night nine no noisy now number o oak object objects of On on One one
only option or orange out outdoors outlined outnumber outside overexposed painting pale pattern
people person photo photograph phrase Pick picture pin place places plain point pointing points poor
poorly purple quality question Read red remain remaining remains Remove rendition Repeat Reply rest
resting rests right rock s sand sandy Say say says scene second see seen sentence seven shadowy
shape shapes shirt shore short shortest show shown shows side sign single sits sitting six sketch
sky small smallest snow snowy some something speckled Spell square squares standing stands star
starfish starry striped style Subtract sun sunny sunset surface symbol table tabletop Tag Take taken
tall taller tallest taxi ten tent text than that the there thing this three time to too top toy tree
triangle triangles twelve two type unclear under Use using value very view waits walking walks wall
washed water wearing What what Where Which which while white Who who whole with Without without
woman word words Write wrong yacht yellow yes you zero
""".split()
)
"""Every word and number of pre-training and tasks."""
MARKS = ("\n", "'", "(", ")", ",", ".", ":", "?")
"""Every other token of a text."""
