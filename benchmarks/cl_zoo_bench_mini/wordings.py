"""How pre-training asks for each form of an answer, and how it writes options."""

from __future__ import annotations

INSTRUCTIONS: dict[str, tuple[str, ...]] = {
    "plain": ("",),
    "word": (
        "Use one word.",
        "In one word.",
        "One word only.",
        "Reply with one word.",
        "Just say the word.",
        "Keep it to a word.",
        "Answer in one word.",
        "Use a single word.",
        "A word or a phrase.",
        "Answer with a word or phrase.",
        "Answer the question in a word.",
    ),
    "digits": (
        "Use digits.",
        "Reply with digits.",
        "Write the number in digits.",
        "Digits only.",
        "Give a figure.",
        "Answer with digits.",
        "Answer the question with a number in digits.",
    ),
    "spelled": (
        "Spell the number.",
        "Reply with a number word.",
        "Write the number as a word.",
        "Say the number in words.",
        "Answer with a number word.",
    ),
    "exact": (
        "Give the exact name.",
        "Be exact.",
        "Use its exact name.",
        "Reply with the exact name.",
        "What is it exactly?",
        "Answer with the exact name.",
    ),
    "sentence": (
        "Use a sentence.",
        "Reply with a sentence.",
        "Say it in a sentence.",
        "Write a whole sentence.",
        "Answer in a sentence.",
        "Answer the question with a sentence.",
    ),
    "letter": (
        "Reply with the letter.",
        "Give only the letter.",
        "Which letter is right?",
        "Just the letter.",
        "Pick a letter.",
        "Write the letter of the right option.",
        "Say which letter.",
        "Answer with the letter.",
        "Give the option's letter.",
        "Choose the right letter.",
        "Answer the question with a letter.",
    ),
    "caption": (
        "Write one caption.",
        "Give a caption for the picture.",
        "Say it in a caption.",
        "Write a caption without a fault.",
        "Give one caption.\nBe brief.",
        "Write a caption.\nUse few words.",
        "What caption has the picture?",
        "Give the photo a caption.",
    ),
    "both": (
        "Give the letter and the text.",
        "Copy the right option.",
        "Write the letter and what it says.",
        "Reply with the whole option.",
        "Answer with letter and text.",
    ),
    "text": (
        "Leave the letter out.",
        "Give the text of the right option.",
        "Write the right option without its letter.",
        "Say what the right option says.",
        "Answer with the text from the choices.",
    ),
}
"""Ways to ask for each form of an answer."""
LAYOUTS = ("\n{}) {}", " ({}) {}", "\n{}. {}", " {}: {}", "\n({}) {}", " {}) {}")
"""How an option is written: letter, then text."""
