"""The promises that every method keeps, each a function that raises where it is broken.

The first line of its docstring is the promise. All of them look at the trials of one `Subject`, so that a run is made once
for every promise that needs it. Where a promise cannot be told because another one is broken it is undecided: a method
that draws from an unseeded generator breaks `seeds` and not everything that compares two runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from cl_zoo.contract.plugins import HOOKS, Plugins, load_class
from cl_zoo.engine.ledger import answering_state, own_state, state_tensors, tensors_in
from cl_zoo.engine.trained import Trained
from cl_zoo.errors import OptionError
from cl_zoo.names import Choice
from cl_zoo.testing.conformance.mistakes import unkept
from cl_zoo.testing.conformance.moments import (
    ConformanceError,
    Moment,
    check_states,
    differing,
    far,
    flat,
    weights,
)
from cl_zoo.testing.conformance.subjects import Bare, Reply, Subject, Undecided, agree, asking, filed, said
from cl_zoo.testing.conformance.trials import STREAM, Watched, trial
from cl_zoo.testing.conformance.values import otherwise_answering

Promise = Callable[[Subject], None]


def options(subject: Subject) -> None:
    """an unknown or misspelt option is refused"""
    for place, choice in enumerate(subject.choices):
        fields = getattr(getattr(load_class(choice.name), "Options", None), "model_fields", {})
        for name in ("no_such_option", *(f"{field}_" for field in fields)):
            changed = list(subject.choices)
            changed[place] = replace(choice, options={**choice.options, name: 1})
            try:
                Plugins(changed)
            except OptionError:
                continue
            raise ConformanceError(
                "options", f"{choice.label}: takes the unknown option {name!r}; let Options forbid extra ones"
            )


def seeds(subject: Subject) -> None:
    """the same seed twice gives the same weights, state, answers and measurements, bit for bit"""
    whole = subject.whole
    with suppress(ConformanceError):
        if not unlike(subject.silent, whole):
            return  # a second run, in which even less happens in between
    same(subject.again("same seed again", "seeds"), whole, "seeds", "differs between two runs with one seed")


def streams(subject: Subject) -> None:
    """one task, two tasks and a task seen twice are learnt and answered, and no task is known before it comes"""
    whole = subject.whole
    if subject.protocol != "sequential":
        for order in ("C", "CS"):
            subject.again(f"tasks {order} alone", "streams", order=order)
        return
    needs(subject, seeds)
    short = subject.again("task C alone", "streams", order="C")  # CS begins the whole stream
    changed = differing(short.record.moments[0], whole.record.moments[0])
    changed = changed or differing(short.files, {name: whole.files.get(name) for name in short.files})
    if changed:
        raise ConformanceError(
            "streams", f"{subject.label}, after task 0: {changed} depends on whether more tasks follow"
        )


def terms(subject: Subject) -> None:
    """every term of the objective is finite and depends on a trainable weight, and what asks for a gradient is trained"""
    sequential(subject, "none")
    found = subject.whole.record.terms
    for name, acts in found.items():
        if not acts:
            raise ConformanceError(
                "terms",
                f"{subject.label}, tasks {STREAM}: the term {name!r} never has a gradient; compute it from the weights themselves, without detach() or item(), and compare them with a clone(), not with themselves",
            )
    for choice in subject.choices:
        hooks = {hook for hook in HOOKS if hasattr(load_class(choice.name), hook)}
        if "loss" in hooks <= {"loss", "after_task"} and not found:
            raise ConformanceError(
                "terms", f"{choice.label}, tasks {STREAM}: acts by its loss alone, but returned no term"
            )


def frozen(subject: Subject) -> None:
    """weights that do not require a gradient stay where they are while a task is learnt, the backbone's always"""
    sequential(subject, "none")
    _ = subject.whole  # looked at in every step of it


def modes(subject: Subject) -> None:
    """no hook leaves train/eval mode changed, and only those around a task choose what learns and which experts answer"""
    _ = subject.whole  # looked at around every hook of it


def state(subject: Subject) -> None:
    """state is JSON values and tensors, and a checkpoint holds no pickle"""
    whole = subject.whole
    check_states(whole.plugins.state_dict())
    for file in whole.folder.partial.rglob("*"):
        if file.is_file() and file.suffix not in (".safetensors", ".json", ".jsonl"):
            raise ConformanceError("state", f"{subject.label}: the run's folder holds {file.name}")


def batches(subject: Subject) -> None:
    """an answer depends neither on who else is in the batch, nor on its size or its padding"""
    asked = subject.questions
    groups = [asked, asked[::-1], asked[1::2], asked[::3], *([sample] for sample in asked)]
    seen: dict[str, Reply] = {}
    for group in reversed(groups):  # alone first
        where = f"in a batch of {len(group)}"
        for sample, (row, tokens) in zip(group, subject.replies(group), strict=True):
            alone = seen.setdefault(sample.id, (row, tokens))
            agree(subject, "batches", sample, (row, tokens), alone, f"{where} and alone")


def identity(subject: Subject) -> None:
    """answers come without a task's identity: no id, file name, order of asking or token budget gives it away"""
    run, asked = subject.whole, subject.questions
    halves = [asked[0::2], asked[1::2]]
    plain = {s.id: one for half in halves for s, one in zip(half, subject.replies(half), strict=True)}
    folder = subject.folder("images")
    folder.mkdir()
    renamed = [[replace(s, id=f"{len(asked) - i}") for i, s in enumerate(half)] for half in halves]
    moved = [[filed(s, folder / f"{s.id}.png") for s in half] for half in halves]
    for what, changed in (("sample id", renamed), ("image file name", moved)):
        for half, other in zip(halves, changed, strict=True):
            for sample, one in zip(half, asking(run, other), strict=True):
                agree(subject, "identity", sample, one, plain[sample.id], f"under another {what}")
    with run.answering() as model:
        for half in (*halves, *reversed(halves), halves[0]):
            for sample, one in zip(half, asking(run, half, model), strict=True):
                agree(subject, "identity", sample, one, plain[sample.id], "when asked in another order")
    with run.answering() as model:
        for half in halves:
            for sample, tokens in zip(half, said(model, run.backbone, half, 2), strict=True):
                if tokens != plain[sample.id][1][:2]:
                    raise ConformanceError(
                        "identity",
                        f"{subject.label}: the first tokens of {sample.prompt!r} depend on max_new_tokens",
                    )


def answering(subject: Subject) -> None:
    """answering leaves weights, state, modes and what learns as they were, and learning goes on as without it"""
    whole = subject.whole
    needs(subject, seeds)
    silent = subject.silent
    for done, (here, there) in enumerate(zip(silent.record.moments, whole.record.moments, strict=True)):
        if changed := differing(weights(here), weights(there)):
            raise ConformanceError(
                "answering",
                f"{subject.label}, after {done + 1} tasks: {changed} depends on whether answers were asked in between",
            )
    last = {name: content for name, content in silent.files.items() if name in whole.files}
    if changed := differing(last, {name: whole.files[name] for name in last}):
        raise ConformanceError(
            "answering", f"{subject.label}: {changed} depends on whether answers were asked before"
        )


def saving(subject: Subject) -> None:
    """a saved and loaded method gives the same answers"""
    sequential(subject, "none")
    loaded = subject.again("saved and loaded", "saving", root=subject.copied("saved"), run=False)
    try:
        loaded.restore()
        answers = [asking(loaded, [sample])[0] for sample in subject.questions]
    except Exception as error:
        raise ConformanceError(
            "saving", f"{subject.label}, saved and loaded: {subject.told(error)}"
        ) from error
    lost = unkept(subject.whole.plugins.instances)
    for sample, one in zip(subject.questions, answers, strict=True):
        agree(subject, "saving", sample, one, subject.replies([sample])[0], f"after saving and loading{lost}")


def resuming(subject: Subject) -> None:
    """stopping after any task, or within one, and going on later ends as if nothing had happened, bit for bit"""
    sequential(subject, "none")
    needs(subject, seeds, saving)
    whole, last = subject.whole, len(subject.whole.lessons) - 1
    stops = [{"stop": done} for done in range(1, last + 1)]
    resumed = stopping(subject, [*stops[:1], {"within": (min(1, last), 2)}, *stops[1:], {}])
    if not unlike(resumed, whole):
        return
    between = stopping(subject, [*stops, {}])
    same(between, whole, "resuming", f"differs after stopping and resuming{unkept(whole.plugins.instances)}")
    same(
        resumed,
        whole,
        "resuming",
        "differs after stopping within a task and resuming; keep what loss or forward change in state_dict, and make in before_task what they only read",
    )


def sharing(subject: Subject) -> None:
    """options that answers alone read change nothing that is learnt, and a training taken over answers as an own one, bit for bit"""
    if Plugins(subject.choices).watch_answers:
        raise Undecided(f"{subject.label} looks at answers, so that it shares no training")
    choices, what = otherwise_answering(subject.choices)
    if not what:
        raise Undecided(f"{subject.label} says of no option that answers alone read it")
    whole, folder = subject.whole, subject.folder("shared")
    needs(subject, seeds, saving)
    other = subject.again(f"with {what}", "sharing", choices=choices, trained=Trained(folder, keep=True))
    if learnt := unlike(other, whole, answers=False):
        raise ConformanceError(
            "sharing",
            f"{subject.label}{learnt} differs with {what}; let answering name only what build_inference_model alone reads",
        )
    taken = subject.again("with a training taken over", "sharing", trained=Trained(folder, keep=False))
    same(taken, whole, "sharing", "differs when another run's training is taken over")


def micro_batches(subject: Subject) -> None:
    """two micro-batches give the gradients and the statistics of one batch (dropout 0, relative 2e-4)"""
    sequential(subject, "none")
    follows(subject, "micro_batches", "micro-batches of 3 and 1", micro_batch=3)


def checkpointing(subject: Subject) -> None:
    """gradient checkpointing changes no gradient (dropout 0, relative 2e-4)"""
    sequential(subject, "none")
    follows(subject, "checkpointing", "gradient checkpointing", checkpointing=True)


def ledger(subject: Subject) -> None:
    """the ledger counts what is there: what learns, what is stored, and nothing it leaves out takes part in an answer"""
    run = subject.whole
    for done, (cost, learning) in enumerate(zip(run.ledger.tasks, run.record.trainable, strict=True)):
        if sum(cost.trained.values()) != sum(learning.values()):
            raise ConformanceError(
                "ledger",
                f"{subject.label}, task {done}: says {sum(cost.trained.values())} parameters learn, but {sum(learning.values())} do",
            )
    kept = sum(t.numel() for t in own_state(run.model, run.backbone).values())
    kept += tensors_in(run.plugins.state_dict(probes=False))
    if stored(run, "continuing") != kept:
        raise ConformanceError(
            "ledger",
            f"{subject.label}: says {stored(run, 'continuing')} parameters are stored for continuing, but {kept} are",
        )
    if run.ledger.active > stored(run, "inference"):
        raise ConformanceError(
            "ledger",
            f"{subject.label}: says {run.ledger.active} parameters are active in an answer, but only {stored(run, 'inference')} are stored",
        )
    uncounted(subject)


def probe(subject: Subject) -> None:
    """a probe leaves weights and answers as they are without it, bit for bit"""
    rest = [choice for choice in subject.choices if not choice.probe]
    if len(rest) == len(subject.choices):
        raise Undecided(f"{subject.label} is no probe")
    whole = subject.whole
    needs(subject, seeds)
    bare = trial(rest or [Choice(f"{Bare.__module__}:{Bare.__name__}")], subject.folder("bare"))
    for done, (here, there) in enumerate(zip(whole.record.moments, bare.record.moments, strict=True)):
        if changed := differing(weights(here), weights(there)):
            raise ConformanceError(
                "probe", f"{subject.label}, after {done + 1} tasks: the probe changed {changed}"
            )
    if changed := differing(whole.files, bare.files):
        raise ConformanceError("probe", f"{subject.label}: the probe changed the answers in {changed}")


# --- what they share ------------------------------------------------------------------------------------------------


def sequential(subject: Subject, *others: str) -> None:
    """For sequential methods, and not for those of the given protocols.

    Raises:
        Undecided: the subject has one of them.
    """
    if subject.protocol in others:
        raise Undecided(f"{subject.label} has protocol {subject.protocol!r}")


def needs(subject: Subject, *promises: Promise) -> None:
    """Go on only where these hold.

    Raises:
        Undecided: one of them is broken.
    """
    for promise in promises:
        verdict = subject.verdict(promise)
        cause = verdict.cause if isinstance(verdict, Undecided) else verdict
        if cause is not None:
            raise Undecided.behind(cause)


def stopping(subject: Subject, ends: Iterable[Mapping[str, Any]]) -> Watched:
    """A run that ended and went on as often as it is told, see `trial`; the last of the trials, with the moments of all."""
    root, moments = subject.folder("resumed"), list[Moment]()
    for end in ends:
        resumed = subject.again("stopped and resumed", "resuming", root=root, **end)
        moments += resumed.record.moments
    resumed.record.moments = moments
    return resumed


def same(run: Watched, other: Watched, promise: str, sentence: str) -> None:
    """All that two runs learnt, answered and measured is equal, bit for bit."""
    if what := unlike(run, other):
        raise ConformanceError(promise, f"{run.label}{what} {sentence}")


def unlike(run: Watched, other: Watched, *, answers: bool = True) -> str:
    """What two runs first learnt, answered or measured differently, as part of a sentence; of a silent one, its answers only.

    Args:
        answers: whether their answers should be the same, too.
    """
    for done, (here, there) in enumerate(zip(run.record.moments, other.record.moments, strict=True)):
        if name := differing(here, there):
            return f", after {done + 1} tasks: {name}"
    asked = run.files if run.silent else other.files
    if answers and (name := differing(run.files, {name: other.files.get(name) for name in asked})):
        return f": the answers in {name}"
    name = differing(flat(run.measured, "measured"), flat(other.measured, "measured"))
    return f": {name}" if name else ""


def follows(subject: Subject, promise: str, what: str, **recipe: Any) -> None:
    """Another way to compute one global batch has the same gradients, terms and statistics, up to rounding."""
    needs(subject, seeds)
    whole = subject.silent
    if subject.recut is not None and not strays(subject.recut, whole):
        return  # where all ways together change nothing, none of them does
    other = subject.again(what, promise, follow=whole.record.gradients, silent=True, **recipe)
    if off := strays(other, whole):
        raise ConformanceError(promise, f"{subject.label}, {what}{off}")


def strays(run: Watched, other: Watched) -> str:
    """Where a run is first too far from the one that it follows, as part of a sentence; empty where it is not."""
    if run.record.apart:
        return f", {run.record.apart.removeprefix(f'{run.label}, ')}"
    for index, (here, there) in enumerate(zip(run.record.reported, other.record.reported, strict=True)):
        if off := far(here, there, floor=1e-5):
            return f", task {index}: the term {off}"
    for done, (mine, theirs) in enumerate(zip(run.record.moments, other.record.moments, strict=True)):
        if off := far(mine, theirs):
            return f", after {done + 1} tasks: {off}"
    return ""


def uncounted(subject: Subject) -> None:
    """Answers stay the same when all tensors that the ledger counts for continuing only are spoilt, plugins' own too."""
    run, asked = subject.whole, subject.questions
    plain = subject.replies(asked)
    kept = {**own_state(run.model, run.backbone), **state_tensors(run.plugins.state_dict(probes=False))}
    with run.answering() as model:
        counted = {tensor.data_ptr() for tensor in answering_state(model, run.backbone).values()}
        with spoilt({name: tensor for name, tensor in kept.items() if tensor.data_ptr() not in counted}):
            spoilt_answers = asking(run, asked, model)
    for sample, here, there in zip(asked, spoilt_answers, plain, strict=True):
        agree(
            subject,
            "ledger",
            sample,
            here,
            there,
            "without the tensors that are not counted as stored for inference",
        )


def stored(run: Watched, use: str) -> int:
    """Parameters that the ledger says are stored for a use."""
    return sum(run.ledger.stored[use].values())


@contextmanager
def spoilt(tensors: Mapping[str, Tensor]) -> Iterator[None]:
    """The tensors hold NaN inside, and their values again afterwards."""
    kept = {name: tensor.detach().clone() for name, tensor in tensors.items() if tensor.is_floating_point()}
    try:
        for name in kept:
            tensors[name].detach().fill_(torch.nan)
        yield
    finally:
        for name, value in kept.items():
            tensors[name].detach().copy_(value)


PROMISES: dict[str, Promise] = {
    promise.__name__: promise
    for promise in (
        options,
        seeds,
        streams,
        terms,
        frozen,
        modes,
        state,
        batches,
        identity,
        answering,
        saving,
        resuming,
        sharing,
        micro_batches,
        checkpointing,
        ledger,
        probe,
    )
}
"""By name, in the order in which they are checked."""
