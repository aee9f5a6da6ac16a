"""What a training step keeps for its backward pass, in bytes, by the shapes of the language model.

Counted from what autograd saves in a forward of transformers' decoders, which `benchmarks/performance/kept.py` counts again. For each token and decoder layer, of width h, inner
width f, a attention heads of d numbers, with b bytes for a number (2 in bf16, 4 in fp32):

    norms        8 h: each of the two keeps its input in fp32
    attention    4 b a d: queries, keys and values as the heads get them, and the answer; 4 a for the sums of the softmax, b T for the mask of T tokens
    heads' norms 4 (a + key heads) d, in models that have them
    inner        3 b f: the gate, its activation, and what is multiplied by it
    adapters     with dropout (b + m) d_in for each adapted linear: its input as dropout leaves it, and a mask of m = 1 byte; without dropout
                 what linears read is kept once for those that read the same; b r for each linear

and once: 4 h of the last norm and 2 b d of the positions for each token, (b + 4) V for each answer token, and where weights in fp32 learn in bf16 a copy of 2 bytes.
On top comes what the backward pass needs where it begins: 20 h (22 h in bf16) at the last norm, or 8 h + b f in the top layer, the larger one.

With checkpointing a layer keeps its input alone, b h, and one layer is there in full when its turn comes, with 8 h + b f of its backward pass; copies of weights are those of one
layer, which is nothing to speak of. Prompts that lengthen a sequence, what old experts in the forward and gates between experts keep, and the projector are left out.
"""

from __future__ import annotations

from dataclasses import dataclass

from cl_zoo.backbones.backbone import Backbone
from cl_zoo.recipe.recipe import Recipe

LINEARS = {"attention": 4, "mlp": 3}
"""Adapted linears of a layer, by the recipe's word."""


@dataclass(frozen=True)
class Decoder:
    """Shapes of a language model's layers.

    Attributes:
        width, inner: h and f.
        heads, key_heads, of_head: numbers of heads, and how wide one is.
        layers: how many.
        vocabulary: words.
        normed: whether queries and keys have norms of their own.
    """

    width: int
    inner: int
    heads: int
    key_heads: int
    of_head: int
    layers: int
    vocabulary: int
    normed: bool = False


def decoder_of(backbone: Backbone) -> Decoder:
    """The shapes of a backbone's language model."""
    config = backbone.model.config.get_text_config()
    heads = config.num_attention_heads
    return Decoder(
        width=config.hidden_size,
        inner=config.intermediate_size,
        heads=heads,
        key_heads=getattr(config, "num_key_value_heads", None) or heads,
        of_head=getattr(config, "head_dim", None) or config.hidden_size // heads,
        layers=config.num_hidden_layers,
        vocabulary=config.vocab_size,
        normed=hasattr(backbone.layers[0].self_attn, "q_norm"),
    )


def activations(
    decoder: Decoder,
    recipe: Recipe,
    *,
    samples: int,
    tokens: float,
    answer: float,
    adapted: bool = True,
    learning: int = 0,
    mask: int = 1,
) -> float:
    """Bytes that are kept when the backward pass has most of them, and of what it needs itself then.

    Args:
        samples: of one forward.
        tokens, answer: of one sample, and of its answer.
        adapted: whether the linears have adapters.
        learning: parameters that learn.
        mask: bytes of a number in dropout's mask: 1 on an accelerator, as many as the number itself has on the CPU.
    """
    size, half = (2, True) if recipe.precision == "bf16" else (4, False)
    width, turn = decoder.width, 8 * decoder.width + size * decoder.inner
    every = samples * tokens
    layer = every * (
        _layer(decoder, size, tokens) + (_adapters(decoder, recipe, size, mask) if adapted else 0)
    )
    once = every * 2 * size * decoder.of_head + samples * answer * (size + 4) * decoder.vocabulary
    if recipe.checkpointing:
        return once + layer + every * (size * width * decoder.layers + turn)
    once += 2 * learning if half else 0
    return once + layer * decoder.layers + every * (4 * width + max((22 if half else 20) * width, turn))


def _layer(decoder: Decoder, size: int, tokens: float) -> float:
    """Of one token in one layer, without adapters."""
    norms = 8 * decoder.width + 8
    if decoder.normed:
        norms += 4 * (decoder.heads + decoder.key_heads) * (decoder.of_head + 1)
    attention = decoder.heads * (4 * size * decoder.of_head + 4) + size * tokens
    return norms + attention + 3 * size * decoder.inner


def _adapters(decoder: Decoder, recipe: Recipe, size: int, mask: int) -> float:
    """Of one token in one layer: what the adapted linears read, and their answers in rank space."""
    adapter, width = recipe.adapter, decoder.width
    apart = {"attention": 3 * width + decoder.heads * decoder.of_head, "mlp": 2 * width + decoder.inner}
    shared = {"attention": width, "mlp": width + decoder.inner}  # the answer of the heads is kept anyway
    places = list(LINEARS) if adapter.targets == "all" else [adapter.targets]
    read = sum((size + mask) * apart[at] if adapter.dropout else size * shared[at] for at in places)
    return read + size * adapter.rank * sum(LINEARS[at] for at in places)
