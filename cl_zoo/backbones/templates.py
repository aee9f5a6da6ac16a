"""Text around a prompt, as each model family was taught to converse.

`{prompt}` stands for the question with its instruction. The image is put right before it by the backbone, which knows how its
family marks an image; the answer and the end token follow the template. In a conversation of several turns the next question
follows that end token: behind `AGAIN` for templates that are known by name, behind all that stands before `{prompt}` for others.
"""

from __future__ import annotations

from cl_zoo.errors import OptionError, nearest

PLACE = "{prompt}"

TEMPLATES = {
    # LLaVA-1.5, `conv_vicuna_v1` in llava/conversation.py of https://github.com/haotian-liu/LLaVA
    "vicuna_v1": (
        "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, "
        "and polite answers to the user's questions. USER: {prompt} ASSISTANT:"
    ),
    "plain": PLACE,
    # transformers' conversion of InternVL, `chat_template` in models/internvl/convert_internvl_weights_to_hf.py
    "internvl": "<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n",
    # the chat template of Qwen2-VL's and Qwen2.5-VL's processors, with the system sentence that it puts first by default
    "qwen2.5-vl": (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        "<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n"
    ),
    # the chat template of Qwen3-VL's processor, which puts no system sentence first
    "qwen3-vl": "<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n",
    # the chat template of SmolVLM2's processor; an answer begins with a space behind it, an image with none before it
    "smolvlm2": "<|im_start|>User: {prompt}<end_of_utterance>\nAssistant:",
    # LLaVA-1.6 with Mistral, `conv_mistral_instruct` in llava/conversation.py of https://github.com/haotian-liu/LLaVA
    "mistral_instruct": "[INST] {prompt} [/INST]",
}
"""Templates by name."""
AGAIN = {
    "vicuna_v1": "USER: ",
    "plain": "",
    "internvl": "\n<|im_start|>user\n",
    "qwen2.5-vl": "\n<|im_start|>user\n",
    "qwen3-vl": "\n<|im_start|>user\n",
    "smolvlm2": "\nUser: ",
    "mistral_instruct": "[INST] ",
}
"""What stands between the end token of an answer and the next question: the system sentence stands once."""


def resolve(template: str) -> str:
    """The text of a template that is given by name or as a text with `{prompt}`.

    Raises:
        OptionError: neither.
    """
    if template in TEMPLATES:
        return TEMPLATES[template]
    count = template.count(PLACE)
    if count > 1:
        raise OptionError(f"--template {template!r}: holds {PLACE} {count} times; write it once")
    if count == 0:
        raise OptionError(
            f"--template {template!r}: neither a text with {PLACE} nor the name of a template{nearest(template, TEMPLATES)}"
        )
    return template


def around(template: str) -> tuple[str, str]:
    """The text before and behind the prompt."""
    head, _, tail = template.partition(PLACE)
    return head, tail


def between(template: str) -> str:
    """The text between the end token of an answer and the next question of its conversation."""
    known = {TEMPLATES[name]: text for name, text in AGAIN.items()}
    return known.get(template, around(template)[0])
