"""Terms that read tensors inside networks: how callbacks declare them and how the module computes them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from kdlightning.errors import ConfigurationError
from kdlightning.losses.base import LossContext
from kdlightning.modules.names import is_of_other_network
from kdlightning.modules.step import DistillStep
from kdlightning.schedules import Weight
from kdlightning.taps import TapInfo, canonical_shape, channels_first
from kdlightning.taps.attention import heads_of
from kdlightning.taps.names import Layout

if TYPE_CHECKING:
    from kdlightning.modules.layer_pairs import LayerPairs

Shapes = list[tuple[int, ...]]


@dataclass(frozen=True)
class TapPair:
    """Which tensor of the student learns from which of the teacher.

    Attributes:
        student: tap of the student (of the learner, between peers).
        teacher: tap of the teacher (of the other network, between peers).
        weight: factor of this pair within the term.
        layout: "channels_first" or "channels_last", for tensors of which it cannot be told; or "tokens", channels last
            with the class tokens of a vision transformer, as a sequence and not as a map.
    """

    student: str
    teacher: str
    weight: float = 1.0
    layout: Layout | None = None


@dataclass
class TermSpec:
    """A term on taps, as a callback declares it.

    Attributes:
        name: name of the term.
        pairs: the taps that it reads, or how they are found when both networks are there.
        build: makes the module that computes it, from the shapes of the student's and the teacher's taps (channels
            first, two samples) and the networks around them; called as
            `module(student, teacher, batch=…, progress=…)` with lists of tensors.
        weight: its weight; None leaves it to the module's `weights` (1 by default).
        owner: who declared it, for messages.
        reads_fields: fields of the batch that a plain loader may lack and the term needs.
        defaults: weights of the paper by term name, its own and the task's; those of the mode go before.
    """

    name: str
    pairs: Sequence[TapPair] | LayerPairs
    build: Callable[[Shapes, Shapes, LossContext], nn.Module]
    weight: Weight | None = None
    owner: str = ""
    reads_fields: frozenset[str] = frozenset()
    defaults: Mapping[str, float] = field(default_factory=dict)


class Adapters(nn.ModuleDict):
    """Networks that belong to terms. Keys of terms that nobody declared are remembered instead of refused.

    So a checkpoint loads without its callbacks; only `fit` insists on them.
    """

    def __init__(self) -> None:
        super().__init__()
        self.ignored: set[str] = set()
        self.made_for: dict[str, Any] = {}

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, metadata: Any, strict: bool, *lists: Any
    ) -> None:
        known = set(self.keys())
        names = {key[len(prefix) :].split(".")[0] for key in state_dict if key.startswith(prefix)}
        self.ignored = names - known
        super()._load_from_state_dict(state_dict, prefix, metadata, False, *lists)

    def refuse_unknown(self, state_dict: Mapping[str, Any], prefix: str) -> None:
        """Raises ConfigurationError if a term has networks of which the checkpoint knows nothing."""
        for name, part in self.items():
            if part.state_dict() and not any(key.startswith(f"{prefix}{name}.") for key in state_dict):
                raise ConfigurationError(
                    f"the checkpoint has no networks of the term {name!r}, which a callback declares: leave the "
                    "callback out, or start a new run from the exported student"
                )


@dataclass
class KnowledgeTerm:
    """A declared term with its taps resolved, for one learner.

    Attributes:
        spec: the declaration.
        learner: the network that learns: "student" or a peer.
        pairs: the networks that it learns from, each with its own part of `adapters[key]`, and the taps that it reads.
        key: name of the term, with the peer's suffix.
    """

    spec: TermSpec
    learner: str
    pairs: dict[str, Sequence[TapPair]]
    key: str
    infos: dict[str, list[TapInfo]] = field(default_factory=dict)

    @property
    def sources(self) -> list[str]:
        """The networks that it learns from."""
        return list(self.pairs)

    def build(self, adapters: Adapters, context: Callable[[str, str], LossContext]) -> None:
        """Makes the networks from the shapes, unless an earlier fit has made them for the same.

        Args:
            adapters: where they go.
            context: what is around a learner and its source, by their names.
        """
        parts = nn.ModuleDict()
        wanted = []
        for source in self.sources:
            shapes = [
                [
                    canonical_shape(info, pair.layout)
                    for info, pair in zip(self.infos[name], self.pairs[source], strict=True)
                ]
                for name in (f"learner>{source}", source)
            ]
            wanted.append((source, shapes))
        made_for = (tuple(tuple(pairs) for pairs in self.pairs.values()), wanted)
        if self.key in adapters and adapters.made_for.get(self.key) == made_for:
            return
        for source, shapes in wanted:
            around = context(self.learner, source)
            ours, theirs = zip(*((pair.student, pair.teacher) for pair in self.pairs[source]), strict=True)
            around = replace(
                around,
                student_taps=ours,
                teacher_taps=theirs,
                student_heads=heads_of(around.student, ours),
                teacher_heads=heads_of(around.teacher, theirs),
            )
            parts[source] = self.spec.build(shapes[0], shapes[1], around)
        adapters[self.key] = parts
        adapters.made_for[self.key] = made_for

    def compute(self, adapters: Adapters, step: DistillStep) -> Tensor:
        """The term's value: the mean over its sources."""
        values = [
            adapters[self.key][source](  # type: ignore[index]
                self._read(step, self.learner, f"learner>{source}", source),
                self._read(step, source, source, source),
                batch=step.batch,
                progress=step.progress,
            )
            for source in self.sources
        ]
        return values[0] if len(values) == 1 else sum(values[1:], values[0]) / len(values)

    def _read(self, step: DistillStep, network: str, side: str, source: str) -> list[Tensor]:
        output = step.output(network)
        if side == network and network != "teacher":
            # Another learner's tensors are targets here: no gradient flows into them.
            output = output.detach()
        return [
            channels_first(output.taps[info.name], info, pair.layout)
            for info, pair in zip(self.infos[side], self.pairs[source], strict=True)
        ]


def taps_of(terms: Sequence[KnowledgeTerm], network: str) -> list[str]:
    """All taps that the terms read of a network, as learner or as source."""
    taps: list[str] = []
    for term in terms:
        if term.learner == network:
            taps += [pair.student for pairs in term.pairs.values() for pair in pairs]
        taps += [pair.teacher for pair in term.pairs.get(network, ())]
    return list(dict.fromkeys(taps))


def check_names(specs: Sequence[TermSpec], taken: Sequence[str]) -> None:
    """Raises ConfigurationError if two terms have one name."""
    seen = dict.fromkeys(taken, "the module")
    for spec in specs:
        if spec.name in seen:
            raise ConfigurationError(
                f"two terms are named {spec.name!r} ({seen[spec.name]} and {spec.owner}): give one of them another "
                "name="
            )
        if is_of_other_network(spec.name):
            raise ConfigurationError(
                f"{spec.owner}: a name may not end in _peer or _exit and a number, as the terms of peers and exits do"
            )
        if not spec.name.isidentifier():
            raise ConfigurationError(f"{spec.owner}: name {spec.name!r} must be a word of letters, digits and _")
        seen[spec.name] = spec.owner
