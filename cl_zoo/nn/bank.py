"""The bank: all experts of a model behind one equation.

    y = W x + s · B (G ⊗ I_r) A x

A stacks the down-projections of the active experts (Σr, d_in), B their up-projections (d_out, Σr): two GEMMs whatever
the number of experts. Methods differ only in the small mix G between them:

    identity                 Σ BᵢAᵢ x              LoRA, O-LoRA's concatenation            (no mix)
    diag(g(x)), per token    Σ gᵢ(x) BᵢAᵢ x        MoELoRA                                 `PerToken`
    diag(w), per sample      Σ wᵢ BᵢAᵢ x           HiDe's top layer                        `PerSample`
    column, one shared A     (Σ gᵢ Bᵢ) A x         HydraLoRA                               `SharedDown`
    by the first token       Σ gᵢ(x₀) Bᵢ A x       BranchLoRA                              `FirstToken`
    all ones                 (ΣBᵢ)(ΣAᵢ) x          HiDe's released fusion                  `AllOnes`

The bank is a PEFT `BaseTuner` used directly, an expert is a PEFT adapter name. Three facts about PEFT shape this file:
parameters whose name does not start with the tuner's prefix get frozen when an adapter is added (≤ 0.20), so everything
that learns in a layer is called `bank_…`; `set_adapter` makes every active adapter trainable, so `ExpertBank.use` is the
only door; adding an adapter freezes the modules outside the tuner, so `ExpertBank.add` puts `requires_grad` back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, cast

import torch
from peft import PeftConfig
from peft.tuners.tuners_utils import BaseTuner
from torch import Tensor, nn

from cl_zoo.nn.layer import BankConfig, BankLayer
from cl_zoo.nn.still import standing_still

if TYPE_CHECKING:
    from cl_zoo.tasks import Task

Where = Callable[["BankLayer"], bool]
"""Chooses layers of the bank, for instance `lambda layer: layer.depth == 31`."""


class ExpertBank(BaseTuner):  # type: ignore[misc]
    """All experts of a model.

    Args:
        model: the backbone's model; its target linears are replaced in place and everything in it is frozen.
        config: how the first expert is made; `add` starts from the same values.
        name: name of the first expert. It is active and trainable.

    Raises:
        TypeError: the target expression matches a module that is not linear.
        ValueError: it matches nothing, the rank is below 1, or the name cannot be an expert's.
    """

    prefix = "bank_"
    tuner_layer_cls = BankLayer
    target_module_mapping: ClassVar[dict[str, list[str]]] = {}

    def __init__(self, model: nn.Module, config: BankConfig, name: str) -> None:
        _nameable(name)
        if config.rank < 1 or config.reads is not None:
            raise ValueError(
                f"the first expert needs a rank of at least 1 and an A of its own, got {config.rank} and {config.reads!r}"
            )
        super().__init__(model, config, name)
        # PEFT looks for the "active adapter" whenever one is added; the first expert may be gone by then
        self.active_adapter: list[str] = []
        self.config_of_first = config
        self.use([name], trainable=[name])

    def _create_and_replace(
        self,
        peft_config: PeftConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        **_: Any,
    ) -> None:
        config = cast(BankConfig, peft_config)
        if isinstance(target, BankLayer):
            target.grow(adapter_name, config)
            return
        if not isinstance(target, nn.Linear):
            raise TypeError(
                f"{current_key} is a {type(target).__name__}; the bank adapts linear layers only,"
                f" narrow the target expression {config.target_modules!r}"
            )
        layer = BankLayer(target, current_key, config.scale, config.dropout)
        layer.grow(adapter_name, config)
        self._replace_module(parent, target_name, layer, target)

    @property
    def layers(self) -> list[BankLayer]:
        """All adapted layers in module order."""
        return [module for module in self.model.modules() if isinstance(module, BankLayer)]

    @property
    def experts(self) -> list[str]:
        """Names of all experts, active or not, in the order in which they were added."""
        return list(self.peft_config)

    @property
    def depth(self) -> int:
        """Index of the top decoder layer that is adapted."""
        return max(layer.depth for layer in self.layers)

    def add(self, name: str, *, rank: int | None = None, reads: str | None = None) -> None:
        """Add an inactive expert to every adapted layer; nothing that learnt or stood still before changes.

        Args:
            name: a new name.
            rank: its rank, by default that of the first expert or of the A it shares.
            reads: an expert whose A it shares, in the layers that have this A.

        Raises:
            KeyError: the name is taken, or `reads` is unknown.
            ValueError: the name cannot be an expert's, the rank is below 1, or both a rank and a shared A are given.
        """
        if name in self.peft_config:
            raise KeyError(f"the bank already has an expert {name!r}")
        _nameable(name)
        first = self.config_of_first
        if rank is not None and (rank < 1 or reads is not None):
            raise ValueError(
                f"expert {name!r} cannot have rank {rank}: an own A has at least 1, a shared A its own rank"
            )
        if reads is not None:
            self._known([reads])
            reads = self._shares(reads) or reads  # sharing what is shared already leads to its owner
        with standing_still(self):
            self.peft_config[name] = replace(first, rank=rank or first.rank, reads=reads)
            self.inject_adapter(self.model, name)
        for layer in self.layers:
            for table in (layer.bank_down, layer.bank_up):
                if name in table:
                    table[name].requires_grad_(False)

    def ensure(self, name: str) -> None:
        """`add` an expert that is not there yet: the first task's comes with the bank, every further one by this."""
        if name not in self.peft_config:
            self.add(name)

    def learn(self, task: Task, *, stacked: bool = False) -> str:
        """Let the task's own expert learn and no other, made where it is not there yet; returns its name.

        Args:
            stacked: the experts of earlier tasks take part in the forward, frozen; otherwise the new one stands alone on the frozen model.
        """
        name = name_of(task)
        self.ensure(name)
        self.use([*self.earlier(task), name] if stacked else [name], trainable=[name])
        return name

    def earlier(self, task: Task) -> list[str]:
        """Names of the experts of the tasks before this one that the bank has, in the order of the tasks."""
        return [name for index in range(task.index) if (name := f"t{index}") in self.peft_config]

    def answer(self, tasks: Sequence[Task], where: Where | None = None) -> list[str]:
        """Let the experts of these tasks take part in the forward, in their order; returns their names.

        Tasks whose expert the bank does not have are left out. What learns stays as it is, in all layers.
        """
        names = [name for task in tasks if (name := name_of(task)) in self.peft_config]
        for layer in self.layers:
            if where is None or where(layer):
                layer._active_adapter = list(names)
        return names

    def remove(self, name: str, where: Where | None = None) -> None:
        """Forget an expert, in all layers or in some; in all layers its name is free again.

        Raises:
            KeyError: the name is unknown.
            ValueError: another expert shares its A there; remove that one first.
        """
        self._known([name])
        chosen = [layer for layer in self.layers if where is None or where(layer)]
        for layer in chosen:
            if readers := layer.readers(name):
                raise ValueError(
                    f"{', '.join(readers)} in {layer.path} reads the A of {name!r}; remove it first"
                )
        for layer in chosen:
            for table in (layer.bank_down, layer.bank_up):
                if name in table:
                    del table[name]
            layer.reads.pop(name, None)
            layer._active_adapter = [active for active in layer._active_adapter if active != name]
        if not any(name in layer.bank_up for layer in self.layers):
            del self.peft_config[name]

    def put(self, name: str, layer: BankLayer, down: Tensor, up: Tensor) -> None:
        """Make an expert of this layer hold the given A (r, d_in) and B (d_out, r), frozen; r may differ from before.

        Raises:
            KeyError: the name is unknown.
            ValueError: the shapes do not fit, or r changes under another expert that shares this A.
        """
        self._known([name])
        rank = down.shape[0]
        if down.shape != (rank, layer.in_features) or up.shape != (layer.out_features, rank):
            raise ValueError(
                f"expert {name!r} of {layer.path} needs A (r, {layer.in_features}) and B ({layer.out_features}, r),"
                f" got {tuple(down.shape)} and {tuple(up.shape)}"
            )
        if (readers := layer.readers(name)) and rank != layer.bank_down[name].shape[0]:
            raise ValueError(
                f"{', '.join(readers)} in {layer.path} reads the A of {name!r}; its rank cannot change"
            )
        layer.bank_down[name] = nn.Parameter(down.detach().clone(), requires_grad=False)
        layer.bank_up[name] = nn.Parameter(up.detach().clone(), requires_grad=False)
        layer.reads[name] = name

    def use(
        self, active: Sequence[str], *, trainable: Sequence[str] = (), where: Where | None = None
    ) -> None:
        """Say which experts answer and which of them learn, in all layers or in some.

        Args:
            active: experts that take part in the forward, in the order of their places in the mix.
            trainable: those whose A and B receive a gradient; all others in these layers are frozen.
        """
        self._known([*active, *trainable])
        for layer in self.layers:
            if where is None or where(layer):
                layer._active_adapter = list(active)
                downs = {layer.reads[name] for name in trainable if name in layer.reads}
                for name, down in layer.bank_down.items():
                    down.requires_grad_(name in downs)
                for name, up in layer.bank_up.items():
                    up.requires_grad_(name in trainable)

    def mix(self, make: Callable[[BankLayer], nn.Module | None], where: Where | None = None) -> None:
        """Set the mix G of all layers or of some; `make` may return one shared module, a new one, or `None` (identity)."""
        for layer in self.layers:
            if where is None or where(layer):
                layer.bank_mix = make(layer)

    def describe(self) -> dict[str, dict[str, Any]]:
        """What `rebuild` needs to make the same experts again, by expert; JSON values only.

        `ranks` says in which layers it stands, `reads` whose A it shares, `own` where it nevertheless holds its own.
        """
        places = {name: [layer for layer in self.layers if name in layer.bank_up] for name in self.experts}
        return {
            name: {
                "reads": (reads := self._shares(name)),
                "ranks": {layer.path: layer.bank_up[name].shape[1] for layer in layers},
                "own": [layer.path for layer in layers if reads and name in layer.bank_down],
            }
            for name, layers in places.items()
        }

    def rebuild(self, description: Mapping[str, Mapping[str, Any]]) -> None:
        """Make the bank hold exactly the described experts, with tensors of the right shapes still to be filled.

        Those that were here in the same shapes stay as they are; the others come inactive and frozen.

        Raises:
            ValueError: an expert is described in a layer that this bank does not adapt.
        """
        here, anew = self.describe(), set[str]()
        owners_first = sorted(here, key=lambda name: here[name]["reads"] is not None)
        for name in owners_first:
            if here[name] != description.get(name) or here[name]["reads"] in anew:
                anew.add(name)
        for name in reversed(owners_first):
            if name in anew:
                self.remove(name)
        for name in sorted(description, key=lambda name: description[name]["reads"] is not None):
            if name not in self.peft_config:
                self._make(name, description[name])
        for name in description:
            self.peft_config[name] = self.peft_config.pop(name)  # the described order

    def _make(self, name: str, made: Mapping[str, Any]) -> None:
        ranks, layers = made["ranks"], {layer.path: layer for layer in self.layers}
        if strange := [path for path in ranks if path not in layers]:
            raise ValueError(f"expert {name!r} is described in {strange[0]}, which this bank does not adapt")
        self.add(name, reads=made["reads"])
        for path, rank in ranks.items():
            layer = layers[path]
            if path in made["own"] or layer.bank_up[name].shape[1] != rank:
                down = torch.zeros(rank, layer.in_features, **layer.made)
                self.put(name, layer, down, torch.zeros(layer.out_features, rank, **layer.made))
        self.remove(name, where=lambda layer: layer.path not in ranks)

    def _shares(self, name: str) -> str | None:
        """Whose A an expert shares in some layer, `None` if in no layer."""
        owners = [layer.reads.get(name, name) for layer in self.layers]
        return next((owner for owner in owners if owner != name), None)

    def _known(self, names: Iterable[str]) -> None:
        for name in names:
            if name not in self.peft_config:
                raise KeyError(f"the bank has no expert {name!r}; it has {', '.join(self.peft_config)}")


def name_of(task: Task) -> str:
    """The name of a task's own expert: `t0`, `t1`, … by its place in the stream, as a task may come twice."""
    return f"t{task.index}"


def _nameable(name: str) -> None:
    if not name or "." in name or hasattr(nn.ParameterDict(), name):
        raise ValueError(
            f"an expert cannot be called {name!r}: no dots, no empty name, no name such as 'keys'"
        )
