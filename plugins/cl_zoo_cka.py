"""CKA: how alike are the representations of two tasks, layer by layer?

Kornblith et al., "Similarity of Neural Network Representations Revisited", ICML 2019 (https://arxiv.org/abs/1905.00414),
as Guo et al. use it to decide which layers of a LLaVA are task-specific (HiDe-LLaVA, 4.1 and Appendix B,
https://arxiv.org/abs/2503.12941). A probe: it measures and changes nothing.

After each task the model reads `samples` of the task's questions; every decoder layer gives X (n, p), one row per sample.
The Gram matrix of every layer is kept and compared with those of all earlier tasks, each under the model as it was after
learning that task:

    K = X Xᵀ  (linear),    K_ij = exp(−‖x_i − x_j‖² / 2σ²), σ² the median of the ‖x_i − x_j‖² > 0  (rbf)
    HSIC(K, L) = tr(K̂ L̂) / (n − 1)²,  K̂ = H K H, H = I − 1/n                                       (B 1, 2; biased)
    CKA = HSIC(K, L) / √(HSIC(K, K) HSIC(L, L))                                                      (B 3)

`estimator=unbiased` puts HSIC₁ in place of HSIC (Song et al., "Feature Selection via Dependence Maximization", JMLR 2012,
https://jmlr.org/papers/v13/song12a.html), with the diagonals of K and L set to zero:

    HSIC₁ = (tr(K L) + 1ᵀK1 · 1ᵀL1 / ((n−1)(n−2)) − 2/(n−2) · 1ᵀK L 1) / (n(n−3))

The biased CKA lies in [0, 1] and nears 1 as p/n grows, whatever the data; the unbiased one lies in [−1, 1] and is about
0 on average for independent data. Streaming: Gram matrices stand for blocks of `block` samples and HSIC is summed over blocks
before the division (Nguyen et al., "Do Wide and Deep Networks Learn the Same Things?", ICLR 2021,
https://arxiv.org/abs/2010.15327), so that no more than a block and a batch of rows are ever held. One block is plain CKA.

    cka/<layer>/<earlier>~<task>             CKA of one layer (from 0, the bottom), and its mean over layers as layer `mean`
    cka/shuffled/<layer>/<earlier>~<task>    the same with the pairing of samples shuffled, mean of `permutations` draws

CKA compares representations of paired rows, but samples of different tasks come in no pairs: the i-th of one meets the
i-th of the other. A value that does not stand out from its shuffled baseline speaks of the two shapes and of n, not of
anything that the tasks share.

Choices the paper leaves open, and ours:
  * A row is the mean over the real tokens of the question, image included; padding never counts. Prompts
    that a method puts before the question or behind its first token are left out, and that token with them.
  * Tasks of unequal size are compared on the samples that both have. A layer that gives one row for all samples has CKA 0.
  * The model is looked at as training leaves it, before its method fuses or prunes anything, in evaluation mode.

Held against:
  paper     arXiv 1905.00414, and arXiv 2503.12941 for its use
  code      Ghy0501/HiDe-LLaVA@4dd0793, test_CKA_sim.py
  verdict   equal: both kernels, both estimators, blocks, the shuffled baseline and the value of the released
            script (tests/oracles/test_cka.py)
  differs   kernel: theirs is rbf, with the linear calls commented out, ours linear as the paper says; other
            values
  differs   layer: theirs is the output of `mlp.down_proj`, which is that of the MLP, ours that of the whole
            layer; the residual stream is not in theirs
  differs   models: theirs are six, each trained on its task alone, ours the one of the stream after each
            task; what was forgotten since is not in either
  differs   questions: theirs are the first 50 of each task's test set, ours the first 64 of its training set;
            a probe sees no test question
  differs   pairs: theirs and ours compare the i-th question of a task with the i-th of another, ours with a
            baseline of shuffled pairs beside it; a reader sees how much of a value is chance
  variants  kernel=rbf, reads=mlp, samples=50, block=50: the released script's measure
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, Literal

import torch
from pydantic import BaseModel, Field
from torch import Tensor, nn

from cl_zoo import Backbone, Batch, Task, forward, hookimpl
from cl_zoo.nn import evaluating

LEAST = {"biased": 2, "unbiased": 4}
"""Samples below which an estimator is not defined."""


class CKA:
    """Measures how alike each decoder layer represents the task just learnt and every earlier one."""

    probe = True

    class Options(BaseModel, frozen=True, extra="forbid"):
        kernel: Literal["linear", "rbf"] = Field("linear", description="K: linear (paper) or rbf (released)")
        estimator: Literal["biased", "unbiased"] = Field(
            "biased", description="HSIC with (n−1)² (paper), or HSIC₁"
        )
        samples: int = Field(64, ge=4, description="samples per task")
        block: int = Field(64, ge=4, description="n: samples per Gram matrix; HSIC is summed over blocks")
        reads: Literal["layer", "mlp"] = Field("layer", description="X: output of the layer, or of its MLP")
        permutations: int = Field(16, ge=0, description="draws of the shuffled baseline; 0 for none")

    def __init__(self, options: Options) -> None:
        self.options = options
        self.grams: dict[str, list[Tensor]] = {}  # task -> X Xᵀ by block, (layers, n, n)

    @hookimpl
    def after_task(
        self, model: nn.Module, task: Task, batches: Sequence[Batch], backbone: Backbone
    ) -> dict[str, float]:
        new = list(grams(model, backbone.layers, batches, self.options))
        label = task.name if task.occurrence == 0 else f"{task.name}#{task.occurrence + 1}"
        measured: dict[str, float] = {}
        for earlier, old in self.grams.items():
            pairs = paired(old, new, self.options.kernel, self.options.estimator)
            if pairs:
                measured |= by_layer("cka", f"{earlier}~{label}", cka(pairs))
            if pairs and self.options.permutations:
                baseline = shuffled(pairs, self.options.permutations)
                measured |= by_layer("cka/shuffled", f"{earlier}~{label}", baseline)
        self.grams[label] = new
        return measured

    def state_dict(self) -> dict[str, Any]:
        return {"grams": self.grams}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.grams = {label: [gram.cpu() for gram in blocks] for label, blocks in state["grams"].items()}


def grams(
    model: nn.Module, layers: Iterable[nn.Module], batches: Sequence[Batch], options: CKA.Options
) -> Iterator[Tensor]:
    """X Xᵀ of every layer, block by block of the task's first samples: (layers, n, n) in fp64 on the CPU.

    Neither weights nor modes of the model change. Every process reads the same samples and gets the same matrices.
    """
    rows: Tensor | None = None  # (layers, up to a block, p)
    left = options.samples
    with evaluating(model):
        for batch in batches:
            if left <= 0:
                break
            batch = batch.rows(range(min(left, len(batch))))
            left -= len(batch)
            new = pooled(model, layers, batch, options.reads)
            rows = new if rows is None else torch.cat([rows, new], 1)
            while rows.shape[1] >= options.block:
                block = rows[:, : options.block]
                yield block @ block.mT
                rows = rows[:, options.block :]
    if rows is not None and rows.shape[1]:
        yield rows @ rows.mT


def pooled(model: nn.Module, layers: Iterable[nn.Module], batch: Batch, reads: str) -> Tensor:
    """The mean of every layer's output over the real tokens of each question, (layers, batch, p) in fp64 on the CPU."""
    tokens = question_tokens(batch)
    means: list[Tensor] = []

    def keep(_module: nn.Module, _inputs: Any, output: Any) -> None:
        states = output[0] if isinstance(output, tuple) else output
        counted = tokens if states.shape[1] == tokens.shape[1] else tokens * (tokens.cumsum(1) > 1)
        here = states[:, -counted.shape[1] :].float() * counted[..., None]
        means.append(here.sum(1) / counted.sum(1, keepdim=True))

    with ExitStack() as hooks:
        for layer in layers:
            read = layer if reads == "layer" else layer.get_submodule("mlp")
            hooks.callback(read.register_forward_hook(keep).remove)
        forward(model, batch)
    return torch.stack(means).cpu().double()


def question_tokens(batch: Batch) -> Tensor:
    """(batch, tokens), one on the real tokens of a question and zero on padding and the tokens of answers that are learnt.

    The last token of the question is the one that predicts the answer's first.
    """
    tokens: Tensor = batch.inputs["attention_mask"].float().clone()
    if batch.targets is not None:
        answers = batch.answer_mask[:, :-1]  # what a position is to predict, the one behind it reads
        tokens[:, tokens.shape[1] - answers.shape[1] :] *= (~answers).float()
    return tokens


def rbf(linear: Tensor) -> Tensor:
    """exp(−‖x_i − x_j‖² / 2σ²) from X Xᵀ (..., n, n); σ² is the median of the squared distances that are not zero."""
    squares = linear.diagonal(dim1=-2, dim2=-1)
    distances = squares[..., :, None] + squares[..., None, :] - 2 * linear
    same = distances <= 1e-12 * squares.amax(-1)[..., None, None]  # up to rounding
    median = distances.masked_fill(same, torch.nan).flatten(-2).nanquantile(0.5, dim=-1)
    median = median.nan_to_num(nan=1.0)[..., None, None]  # all rows are the same: any σ will do
    return torch.exp(-distances.masked_fill(same, 0.0) / (2 * median))


def centred(K: Tensor, estimator: str) -> Tensor:
    """K̂ (..., n, n) such that HSIC(K, L) = Σ K̂ ∘ L̂; zero where centring leaves nothing but rounding.

    biased: H K H / (n − 1). unbiased: with the diagonal set to zero, rows and columns centred over the n − 1 others, and
    divided by √(n(n − 3)); the sum over i ≠ j of the products of two such matrices is HSIC₁ written out.
    """
    n, largest = K.shape[-1], K.abs().amax((-2, -1), keepdim=True)
    if estimator == "biased":
        K = K - K.mean(-1, keepdim=True)
        K, scale = K - K.mean(-2, keepdim=True), n - 1.0
    else:
        diagonal = torch.eye(n, dtype=torch.bool, device=K.device)
        K, scale = K.masked_fill(diagonal, 0.0), (n * (n - 3)) ** 0.5
        rows, columns = K.sum(-1, keepdim=True), K.sum(-2, keepdim=True)
        everything = K.sum((-2, -1), keepdim=True)
        K = K - (rows + columns) / (n - 2) + everything / ((n - 1) * (n - 2))
        K = K.masked_fill(diagonal, 0.0)
    flat = K.abs().amax((-2, -1), keepdim=True) <= 1e-10 * largest
    return K.masked_fill(flat, 0.0) / scale


def paired(
    old: Sequence[Tensor], new: Sequence[Tensor], kernel: str, estimator: str
) -> list[tuple[Tensor, Tensor]]:
    """K̂ and L̂ of every block, each (layers, n, n), on the samples that both tasks have, from blocks of X Xᵀ."""
    pairs = []
    for here, there in zip(old, new, strict=False):
        n = min(here.shape[-1], there.shape[-1])
        if n >= LEAST[estimator]:
            both = (gram[..., :n, :n] for gram in (here, there))
            K, L = (centred(gram if kernel == "linear" else rbf(gram), estimator) for gram in both)
            pairs.append((K, L))
    return pairs


def cka(pairs: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """CKA of every layer, (layers,), with HSIC summed over blocks; 0 where one of the two does not vary."""
    crossed = torch.stack([(K * L).sum((-2, -1)) for K, L in pairs]).sum(0)
    alone = [torch.stack([(M * M).sum((-2, -1)) for M in side]).sum(0) for side in zip(*pairs, strict=True)]
    scale = (alone[0] * alone[1]).sqrt()
    return torch.where(scale > 0, crossed / scale, 0.0).clamp(-1, 1)


def shuffled(pairs: Sequence[tuple[Tensor, Tensor]], permutations: int) -> Tensor:
    """The mean CKA of every layer over random pairings of the same samples, (layers,); the same draws every time."""
    generator = torch.Generator().manual_seed(0)  # of its own: a probe may not change what others draw
    draws = []
    for _ in range(permutations):
        orders = [torch.randperm(L.shape[-1], generator=generator) for _, L in pairs]
        draws.append(
            cka([(K, L[..., order, :][..., order]) for (K, L), order in zip(pairs, orders, strict=True)])
        )
    return torch.stack(draws).mean(0)


def by_layer(name: str, pair: str, values: Tensor) -> dict[str, float]:
    """One measurement per layer, and their mean."""
    measured = {f"{name}/{layer}/{pair}": float(value) for layer, value in enumerate(values)}
    return {**measured, f"{name}/mean/{pair}": float(values.mean())}
