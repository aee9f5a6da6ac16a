"""The contract with plugins: signatures, composition of stacks, parts, protocol, state.

`contract.txt` holds every signature a plugin may rely on. Signatures only grow: change the file when you add an argument
with a default or a name, never to rename or to remove one.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from pydantic import BaseModel, Field
from torch import nn

import cl_zoo
from cl_zoo import batches, hookimpl
from cl_zoo import nn as nn_names
from cl_zoo.backbones.backbone import Backbone
from cl_zoo.contract.ablations import FIGURES, KEYS
from cl_zoo.contract.classes import PROTOCOLS
from cl_zoo.contract.hookspecs import HookSpecs
from cl_zoo.contract.plugins import HOOKS, Plugins, load_class
from cl_zoo.engine.learning import assign_parts
from cl_zoo.errors import OptionError, PluginError, RunError
from cl_zoo.names import METHODS, Choice, installed
from cl_zoo.nn.placing import adapters
from cl_zoo.recipe.recipe import Recipe
from cl_zoo.tasks import Benchmark, Sample, Task, TaskData

CONTRACT = Path(__file__).parent / "contract.txt"
BUNDLED = [one.name for one in installed(METHODS) if one.distribution == "cl-zoo"]
TASK = Task(0, "colour", "Answer with one word .", 12)
BACKBONE: Any = None
"""These plugins do not look at it."""


# The signatures


def signature(function: Any, *, drop: tuple[str, ...] = ("self",)) -> str:
    """Names, annotations as written and defaults: `(model: nn.Module, task: Task) -> None`."""
    made = inspect.signature(function)
    written, star = [], False
    for name, parameter in made.parameters.items():
        if name in drop:
            continue
        if parameter.kind is parameter.KEYWORD_ONLY and not star:
            written, star = [*written, "*"], True
        default = "" if parameter.default is parameter.empty else f" = {shown(parameter.default)}"
        stars = {parameter.VAR_KEYWORD: "**", parameter.VAR_POSITIONAL: "*"}.get(parameter.kind, "")
        written.append(f"{stars}{name}: {parameter.annotation}{default}")
    return f"({', '.join(written)}) -> {made.return_annotation}"


def shown(default: Any) -> str:
    return "…" if callable(default) else repr(default)


def contract() -> Iterator[str]:
    """Everything that a plugin or a caller of the Python interface may rely on, a line each."""
    yield "[hooks]"
    for hook in HOOKS:
        only = "  first result" if getattr(HookSpecs, hook).cl_zoo_spec["firstresult"] else ""
        yield f"{hook}{signature(getattr(HookSpecs, hook))}{only}"
    yield f"protocols: {', '.join(PROTOCOLS)}"
    yield f"ablations: {', '.join(KEYS)}; published: {', '.join(FIGURES)}"
    yield "[cl_zoo]"
    yield from cl_zoo.__all__
    for function in (
        cl_zoo.task_loss,
        cl_zoo.answer_losses,
        cl_zoo.share,
        cl_zoo.draw_rows,
        cl_zoo.total,
        cl_zoo.run,
        cl_zoo.compare,
        cl_zoo.load,
    ):
        yield f"{function.__name__}{signature(function)}"
    for record in (batches.Batch, Sample, Task, TaskData, Benchmark):
        yield f"[{record.__name__}]"
        for field in dataclasses.fields(record):
            default = "" if field.default is field.default_factory is dataclasses.MISSING else " = …"
            yield f"{field.name}: {field.type}{default}"
        for name, member in vars(record).items():
            if name.startswith("_"):
                continue
            if isinstance(member, property):
                yield f"{name} -> {inspect.signature(member.fget).return_annotation}"
            elif inspect.isfunction(member):
                yield f"{name}{signature(member)}"
    yield "[cl_zoo.nn]"
    for name in nn_names.__all__:
        made = getattr(nn_names, name)
        if dataclasses.is_dataclass(made):  # of its own fields: a base class may be somebody else's
            yield f"{name}({', '.join(made.__annotations__)})"
        elif not inspect.isclass(made):
            yield f"{name}{signature(made)}"
        else:
            yield f"{name}{signature(vars(made)['__init__']) if '__init__' in vars(made) else ''}"
    yield "[Plugins]"
    for name, member in vars(Plugins).items():
        if inspect.isfunction(member) and not name.startswith("_"):
            yield f"{name}{signature(member)}"


def test_the_signatures_are_those_of_the_contract():
    written = CONTRACT.read_text(encoding="utf-8").splitlines()

    assert list(contract()) == written


def test_hooks_are_the_nine_of_the_design_in_the_order_in_which_they_are_called():
    assert HOOKS == (
        "build_model",
        "before_task",
        "rehearse",
        "loss",
        "before_step",
        "after_step",
        "after_task",
        "build_inference_model",
        "after_answers",
    )


@pytest.mark.parametrize("name", BUNDLED)
def test_bundled_hooks_annotate_their_arguments_as_the_specification_does(name: str):
    """pluggy compares the names of arguments only."""
    plugin = load_class(name)
    for hook in HOOKS:
        if hasattr(plugin, hook):
            wanted = inspect.signature(getattr(HookSpecs, hook)).parameters
            for argument, parameter in inspect.signature(getattr(plugin, hook)).parameters.items():
                assert parameter.annotation == wanted[argument].annotation, (hook, argument)


@pytest.mark.parametrize("name", BUNDLED)
def test_every_option_says_what_it_is(name: str):
    """Options are frozen, refuse unknown names, and each has a description; numbers have a bound."""
    options = getattr(load_class(name), "Options", None)
    for key, field in options.model_fields.items() if options else ():
        assert field.description, key
        if field.annotation in (int, float):
            assert field.metadata, f"{name}.{key} has no bound"


@pytest.mark.parametrize("name", BUNDLED)
def test_no_method_has_an_option_for_what_the_engine_owns(name: str):
    owned = {
        "lr",
        "learning_rate",
        "epochs",
        "rank",
        "batch",
        "batch_size",
        "seed",
        "precision",
        "device",
        "clip",
    }
    options = getattr(load_class(name), "Options", None)

    assert not owned & set(options.model_fields if options else ())


# Stacks


class Measures:
    """Returns one loss term and one measurement, by names of its own."""

    @hookimpl
    def loss(self, model: nn.Module) -> dict[str, torch.Tensor]:
        return {"one": torch.tensor(1.0)}

    @hookimpl
    def after_task(self, task: Task) -> dict[str, float]:
        return {"size": float(task.size)}


class SameNames(Measures):
    """The names of `Measures` once more."""


class OtherNames:
    @hookimpl
    def loss(self) -> dict[str, torch.Tensor]:
        return {"two": torch.tensor(2.0)}

    @hookimpl
    def after_task(self) -> None:
        return None


class TakesTask:
    @hookimpl
    def loss(self) -> dict[str, torch.Tensor]:
        return {"task": torch.tensor(0.0)}


class ReturnsTensor:
    @hookimpl
    def loss(self) -> torch.Tensor:
        return torch.tensor(0.0)


def plugins(*classes: type, probes: tuple[type, ...] = ()) -> Plugins:
    return Plugins(
        [Choice(named(one)) for one in classes] + [Choice(named(one), probe=True) for one in probes]
    )


def named(plugin: type) -> str:
    return f"{__name__}:{plugin.__name__}"


def terms(stack: Plugins) -> dict[str, float]:
    found = stack.loss(nn.Linear(1, 1), batches.Batch((), {}), None, TASK)
    return {name: float(term) for name, term in found.items()}


def test_terms_and_measurements_of_a_stack_are_joined_by_name():
    stack = plugins(Measures, OtherNames)

    assert terms(stack) == {"one": 1.0, "two": 2.0}
    assert stack.after_task(nn.Linear(1, 1), TASK, [], {}, BACKBONE) == {"size": 12.0}


def test_without_plugins_in_a_hook_nothing_is_added():
    stack = plugins(NoHook)

    assert terms(stack) == {}
    assert stack.rehearse(TASK) == []
    assert stack.after_task(nn.Linear(1, 1), TASK, [], {}, BACKBONE) == {}


def test_an_equal_term_from_two_plugins_names_both():
    with pytest.raises(
        PluginError, match=r"test_contract:Measures and .*test_contract:SameNames both return 'one'"
    ):
        terms(plugins(Measures, SameNames))


def test_an_equal_measurement_from_two_plugins_names_both():
    with pytest.raises(PluginError, match=r"Measures and .*SameNames both return 'size' from after_task"):
        plugins(Measures, SameNames).after_task(nn.Linear(1, 1), TASK, [], {}, BACKBONE)


def test_the_term_task_belongs_to_the_engine():
    with pytest.raises(PluginError, match=r"the engine and .*TakesTask both return 'task' from loss"):
        terms(plugins(TakesTask))


def test_a_loss_that_is_no_mapping_is_refused_by_name():
    with pytest.raises(
        PluginError,
        match=r"ReturnsTensor \(test_contract.py, line \d+\): loss returned a Tensor; return a mapping",
    ):
        terms(plugins(ReturnsTensor))


class Builds:
    @hookimpl
    def build_model(self, backbone: Backbone, recipe: Recipe) -> nn.Module:
        return adapters(backbone, recipe)


class BuildsToo(Builds):
    pass


class Answers:
    @hookimpl
    def build_inference_model(self, model: nn.Module) -> nn.Module:
        return model


class AnswersToo(Answers):
    pass


@pytest.mark.parametrize(
    ("one", "other", "hook"),
    [(Builds, BuildsToo, "build_model"), (Answers, AnswersToo, "build_inference_model")],
)
def test_a_first_result_hook_in_two_plugins_names_both(one: type, other: type, hook: str):
    with pytest.raises(PluginError, match=f"{named(one)} and {named(other)} both implement {hook}"):
        plugins(one, other)


class Rehearses:
    @hookimpl
    def rehearse(self, task: Task) -> list[Sample]:
        return [Sample("a", None, "?", "yes")]


class RehearsesToo:
    @hookimpl
    def rehearse(self) -> list[Sample]:
        return [Sample("b", None, "?", "no")]


class Disguised:
    """Implements `loss` under another name."""

    @hookimpl(specname="loss")
    def look(self) -> dict[str, torch.Tensor]:
        return {"look": torch.tensor(0.0)}


def test_rehearsed_samples_of_a_stack_are_joined():
    stack = plugins(Rehearses, RehearsesToo)

    assert [sample.id for sample in stack.rehearse(TASK)] == ["a", "b"]


@pytest.mark.parametrize(
    ("probe", "hook"),
    [
        (Measures, "loss"),
        (Rehearses, "rehearse"),
        (Builds, "build_model"),
        (Answers, "build_inference_model"),
        (Disguised, "loss"),
    ],
)
def test_a_probe_may_not_train_or_answer(probe: type, hook: str):
    with pytest.raises(PluginError, match=f"{probe.__name__} implements {hook}, so it is no probe; .*--with"):
        plugins(NoHook, probes=(probe,))


class LearnsFurther:
    @hookimpl(specname="after_task")
    def look(self, batches: Any, learn: Any) -> None:
        learn([], 1)


def test_a_probe_may_not_learn_when_a_task_is_over():
    with pytest.raises(
        PluginError, match=r"LearnsFurther takes learn in after_task, so it is no probe; .*--with"
    ):
        plugins(NoHook, probes=(LearnsFurther,))
    assert plugins(NoHook, LearnsFurther).implementing("after_task", "learn")


def test_a_probe_may_measure():
    stack = plugins(Builds, probes=(Counts,))

    assert stack.after_task(nn.Linear(1, 1), TASK, [], {}, BACKBONE) == {"count": 1.0}


def test_a_plugin_stands_once_in_a_stack():
    with pytest.raises(PluginError, match="Measures stands twice in the stack"):
        plugins(Measures, Measures)


def test_every_hook_is_called_in_the_order_of_the_stack():
    """pluggy calls the last one registered first; a regulariser has to see the expert that the method has added."""
    stack = plugins(First, Second)
    First.calls.clear()

    stack.before_task(nn.Linear(1, 1), TASK)
    stack.after_task(nn.Linear(1, 1), TASK, [], {}, BACKBONE)

    assert First.calls == ["First", "Second", "First", "Second"]


def test_after_a_task_probes_come_first_and_before_it_last():
    """They see the expert that the method adds, and what was trained before the method fuses or prunes it."""
    stack = plugins(First, probes=(Second,))
    First.calls.clear()

    stack.before_task(nn.Linear(1, 1), TASK)
    stack.after_task(nn.Linear(1, 1), TASK, [], {}, BACKBONE)

    assert First.calls == ["First", "Second", "Second", "First"]


class Reads:
    """Looks at answers, and keeps something."""

    @hookimpl
    def after_answers(self, place: int, answers: Sequence[Mapping[str, Any]]) -> dict[str, float]:
        return {f"answers/{place}": float(len(answers))}

    def state_dict(self) -> dict[str, Any]:
        return {"kept": torch.zeros(3)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


class Marked(Reads):
    """Says that it only measures."""

    probe = True


def test_only_a_probe_sees_the_answers():
    assert plugins(First, probes=(Reads,)).after_answers(TASK, 1, [{}, {}]) == {"answers/1": 2.0}
    with pytest.raises(PluginError, match="Reads implements after_answers, which only a probe may"):
        plugins(First, Reads)


def test_a_plugin_that_only_measures_cannot_be_a_method():
    with pytest.raises(PluginError, match=r"Marked only measures; put it into the stack with --probe"):
        plugins(Marked)


def test_what_a_probe_keeps_is_saved_but_is_no_cost_of_the_method():
    stack = plugins(First, probes=(Marked,))

    assert [*stack.state_dict()] == [named(Marked)]
    assert stack.state_dict(probes=False) == {}


class First:
    calls: ClassVar[list[str]] = []

    @hookimpl
    def before_task(self) -> None:
        First.calls.append(type(self).__name__)

    @hookimpl
    def after_task(self) -> None:
        First.calls.append(type(self).__name__)


class Second(First):
    pass


# What a hook may look like


class Misspelt:
    @hookimpl
    def before_tsk(self, model: nn.Module) -> None: ...


class Undecorated:
    def after_task(self, task: Task) -> None: ...


class UnknownArgument:
    @hookimpl
    def before_task(self, model: nn.Module, optimizer: Any) -> None: ...


class OddProtocol:
    protocol = "jont"


class Joint:
    protocol = "joint"


class Counts:
    def __init__(self) -> None:
        self.count = 0

    @hookimpl
    def after_task(self) -> dict[str, float]:
        self.count += 1
        return {"count": float(self.count)}


class NoHook:
    pass


class Broken:
    def __init__(self) -> None:
        raise FileNotFoundError("no table")


class HalfState:
    def state_dict(self) -> dict[str, Any]:
        return {}


class LooseOptions:
    class Options(BaseModel):
        strength: float = 1.0

    def __init__(self, options: LooseOptions.Options) -> None: ...


class ForeignAnswering:
    answering = ("strenght",)

    class Options(BaseModel, frozen=True, extra="forbid"):
        strength: float = 1.0

    def __init__(self, options: ForeignAnswering.Options) -> None: ...


class OneWordAnswering:
    answering = "strength"


class Adjustable:
    class Options(BaseModel, frozen=True, extra="forbid"):
        strength: float = Field(1.0, ge=0, description="λ")
        top_k: int = Field(2, ge=1, le=8, description="k")

    def __init__(self, options: Adjustable.Options) -> None:
        self.options = options


@pytest.mark.parametrize(
    ("plugin", "sentence"),
    [
        (Misspelt, "Misspelt: unknown hook 'before_tsk'.*did you mean 'before_task'"),
        (Undecorated, "Undecorated: after_task is not decorated with @hookimpl"),
        (
            UnknownArgument,
            "UnknownArgument: before_task takes 'optimizer', which it is not given; known: batches, model, task",
        ),
        (
            OddProtocol,
            "OddProtocol: protocol is 'jont'; did you mean 'joint'\\? known: joint, none, sequential",
        ),
        (
            Broken,
            r"Broken \(test_contract.py, line \d+, in __init__\): __init__ raised FileNotFoundError: no table; repair",
        ),
        (HalfState, "HalfState: has only one of state_dict and load_state_dict"),
        (
            ForeignAnswering,
            "ForeignAnswering: answering names 'strenght', which is no option of it; did you mean 'strength'",
        ),
        (
            OneWordAnswering,
            "OneWordAnswering: answering is 'strength'; write the names of options as a tuple",
        ),
        (LooseOptions, 'LooseOptions: Options must refuse misspelt names.*extra="forbid"'),
    ],
)
def test_a_plugin_that_breaks_the_contract_is_refused_with_a_remedy(plugin: type, sentence: str):
    with pytest.raises(PluginError, match=sentence) as raised:
        plugins(plugin)

    assert "\n" not in str(raised.value)


def test_a_name_that_is_no_class_is_refused():
    with pytest.raises(PluginError, match="gives a function; it must name a class"):
        load_class(f"{__name__}:plugins")


# Options


def adjusted(**options: Any) -> Plugins:
    return Plugins([Choice(named(Adjustable), options)])


def test_options_reach_the_instance_and_stay_as_they_are():
    options = adjusted(strength=3).method.options

    assert options == Adjustable.Options(strength=3.0, top_k=2)
    with pytest.raises(ValueError, match="frozen"):
        options.strength = 4.0


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"strenght": 1}, "has no option 'strenght'; did you mean 'strength'\\? known: strength, top_k"),
        ({"strength": -1}, "Adjustable.strength: .*greater than or equal to 0, got -1"),
        ({"top_k": 9}, "Adjustable.top_k: .*less than or equal to 8, got 9"),
        ({"top_k": "many"}, "Adjustable.top_k: .*valid integer.*, got 'many'"),
    ],
)
def test_a_wrong_option_names_plugin_option_and_value(options: dict[str, Any], sentence: str):
    with pytest.raises(OptionError, match=sentence):
        adjusted(**options)


def test_a_plugin_without_options_takes_none():
    with pytest.raises(OptionError, match="NoHook has no option 'strength'; known: none"):
        Plugins([Choice(named(NoHook), {"strength": 1})])


def test_a_runs_identity_holds_every_option_defaults_included():
    assert adjusted(top_k=3).options() == [
        {"name": named(Adjustable), "probe": False, "options": {"strength": 1.0, "top_k": 3}}
    ]


# Protocol


def test_protocol_is_that_of_the_method_and_sequential_by_default():
    assert plugins(NoHook).protocol == "sequential"
    assert plugins(Joint).protocol == "joint"
    assert plugins(Joint, Measures).protocol == "joint"


def test_a_joint_method_cannot_join_a_sequential_one():
    with pytest.raises(
        PluginError, match=r"Joint has protocol 'joint' and cannot go with .*NoHook; run it alone"
    ):
        plugins(NoHook, Joint)


@pytest.mark.parametrize(
    ("name", "protocol"),
    [
        ("finetune", "sequential"),
        ("ewc", "sequential"),
        ("hide", "sequential"),
        ("multitask", "joint"),
        ("zeroshot", "none"),
    ],
)
def test_bundled_methods_say_how_they_learn(name: str, protocol: str):
    assert Plugins([Choice(name)]).protocol == protocol


def test_two_runs_share_nothing():
    one, other = plugins(Counts), plugins(Counts)
    one.after_task(nn.Linear(1, 1), TASK, [], {}, BACKBONE)

    assert one.method is not other.method
    assert one.manager is not other.manager
    assert other.after_task(nn.Linear(1, 1), TASK, [], {}, BACKBONE) == {"count": 1.0}
    assert set(one.seconds) == {"after_task"}
    assert not set(plugins(Counts).seconds)


# Parts


class Keys(nn_names.Around):
    """A model with a parameter of its own around the bank."""

    def __init__(self, bank: Any) -> None:
        super().__init__(bank)
        self.keys = nn.Parameter(torch.zeros(3))


class Unclaimed:
    @hookimpl
    def build_model(self, backbone: Backbone, recipe: Recipe) -> nn.Module:
        return Keys(adapters(backbone, recipe))


class Claimed(Unclaimed):
    def parts(self, model: nn.Module) -> dict[str, list[str]]:
        return {"keys": ["keys"]}


class ClaimsNothingReal(Unclaimed):
    def parts(self, model: nn.Module) -> dict[str, list[str]]:
        return {"keys": ["kees"]}


class ClaimsAgain:
    def parts(self, model: nn.Module) -> dict[str, list[str]]:
        return {"prompts": ["keys"]}


def parts_of(backbone: Backbone, *classes: type) -> dict[str, list[str]]:
    stack = plugins(*classes)
    model = stack.build_model(backbone, Recipe())
    assert model is not None
    backbone.train_projector(True)
    return assign_parts(model, stack, backbone)


def test_every_trainable_tensor_has_one_part(tiny: Backbone):
    """The method names its own; adapters and projector are named by the engine."""
    parts = parts_of(tiny, Claimed)

    assert set(parts) == {"adapters", "projector", "keys"}
    assert parts["keys"] == ["keys"]
    assert all("bank_down" in name or "bank_up" in name for name in parts["adapters"])
    assert all("multi_modal_projector" in name for name in parts["projector"])


def test_a_method_may_put_a_tensor_of_the_bank_into_a_part_of_its_own(tiny: Backbone):
    class OwnParts(Builds):
        def parts(self, model: nn.Module) -> dict[str, list[str]]:
            return {"tops": [name for name, _ in model.named_parameters() if "bank_up" in name]}

    stack = plugins(Builds)
    model = stack.build_model(tiny, Recipe())
    stack.instances["own"] = OwnParts()
    parts = assign_parts(model, stack, tiny)

    assert all("bank_up" in name for name in parts["tops"])
    assert not any("bank_up" in name for name in parts["adapters"])


@pytest.mark.parametrize(
    ("classes", "sentence"),
    [
        ((Unclaimed,), "keys is trainable but belongs to no part; name it in the method's parts"),
        ((ClaimsNothingReal,), "'keys' names 'kees', which the model does not have"),
        ((Claimed, ClaimsAgain), "keys belongs to 'keys' and to 'prompts'; name it once"),
    ],
)
def test_a_tensor_without_a_part_or_with_two_is_refused(
    tiny: Backbone, classes: tuple[type, ...], sentence: str
):
    with pytest.raises(PluginError, match=sentence):
        parts_of(tiny, *classes)


# What hooks see, and state


class Watching:
    """Keeps what the engine showed it; its state is JSON values and a tensor."""

    seen: ClassVar[list[tuple[str, Any]]] = []

    def __init__(self) -> None:
        self.names: list[str] = []
        self.total = torch.zeros(2)

    @hookimpl
    def before_task(self, model: nn.Module, task: Task) -> None:
        self.seen.append(("before_task", task))

    @hookimpl
    def loss(self, batch: cl_zoo.Batch, outputs: Any) -> None:
        assert batch.targets is not None
        assert outputs.logits.shape[:2] == batch.targets.shape
        assert "labels" not in batch.inputs
        self.seen.append(("loss", len(batch)))

    @hookimpl
    def after_task(self, task: Task, batches: Any) -> dict[str, float]:
        first, again = [[one.id for b in batches for one in b.samples] for _ in range(2)]
        assert first == again
        self.names.append(task.name)
        self.total += len(first)
        self.seen.append(("after_task", first))
        return {"names": len(self.names), "total": float(self.total[0])}

    @hookimpl
    def build_inference_model(self, model: nn.Module, tasks_seen: Any) -> nn.Module:
        self.seen.append(("build_inference_model", tuple(tasks_seen)))
        return model

    def state_dict(self) -> dict[str, Any]:
        return {"names": self.names, "total": self.total, "nested": {"deep": [self.total, None, True]}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        assert torch.equal(state["nested"]["deep"][0], state["total"])
        assert state["nested"]["deep"][1:] == [None, True]
        self.names, self.total = state["names"], state["total"]


class Pickled(Builds):
    def state_dict(self) -> dict[str, Any]:
        return {"thing": object()}

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class Teaches(Builds):
    """Changes a weight while it answers."""

    @hookimpl
    def build_inference_model(self, model: nn.Module) -> nn.Module:
        with torch.no_grad():
            next(p for name, p in model.named_parameters() if "bank_up" in name).add_(1.0)
        return model


def test_hooks_come_in_order_and_see_the_task_at_hand_only(run_tiny: Callable[..., Any]):
    Watching.seen.clear()
    run_tiny(named(Watching))
    tasks = (Task(0, "colour", "Answer with one word .", 12), Task(1, "side", "Answer with one word .", 12))

    assert [name for name, _ in Watching.seen] == 2 * [
        "before_task", "loss", "loss", "loss", "after_task", "build_inference_model",
    ]  # fmt: skip
    shown = [what for name, what in Watching.seen if name in ("before_task", "build_inference_model")]
    assert shown == [tasks[0], tasks[:1], tasks[1], tasks]


def test_after_task_gets_the_training_data_in_its_own_order(run_tiny: Callable[..., Any]):
    Watching.seen.clear()
    result = run_tiny(named(Watching))

    for name, what in Watching.seen:
        if name == "after_task":
            assert what == [f"{place:06d}" for place in range(12)]
    assert result.manifest["measured"] == [{"names": 1.0, "total": 12.0}, {"names": 2.0, "total": 24.0}]


def test_a_plugins_state_comes_back_after_an_interruption(run_tiny: Callable[..., Any]):
    """Lists, numbers and tensors survive; the second task counts on from the first."""

    def interrupt(event: dict[str, Any]) -> None:
        if event["phase"] == "train" and event["index"] == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_tiny(named(Watching), watch=interrupt)
    result = run_tiny(named(Watching))

    assert result.manifest["measured"] == [{"names": 1.0, "total": 12.0}, {"names": 2.0, "total": 24.0}]


def test_state_that_is_neither_json_nor_a_tensor_is_refused(run_tiny: Callable[..., Any]):
    with pytest.raises(RunError, match="thing: a object is neither JSON nor a tensor"):
        run_tiny(named(Pickled))


def test_answering_may_not_change_a_weight(run_tiny: Callable[..., Any]):
    with pytest.raises(PluginError, match=r"answering changed .*bank_up.*; build_inference_model must leave"):
        run_tiny(named(Teaches))


class BuildsNothing:
    @hookimpl
    def build_model(self):
        nn.Linear(1, 1)


class AnswersNothing:
    @hookimpl
    def build_inference_model(self, model):
        nn.Sequential(model)


def test_a_forgotten_return_is_no_choice():
    with pytest.raises(
        PluginError,
        match=r"BuildsNothing \(.*\): build_model returned nothing; return the module that learns$",
    ):
        plugins(BuildsNothing).build_model(BACKBONE, Recipe())
    with pytest.raises(
        PluginError,
        match=r"AnswersNothing \(.*\): build_inference_model returned nothing; .* answers, the model itself",
    ):
        plugins(AnswersNothing).build_inference_model(nn.Linear(1, 1), [])
    assert plugins(Counts).build_model(BACKBONE, Recipe()) is None
