"""What the two knowledge callbacks share: they declare a term and say how it is computed from taps."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Generic, Literal, TypeVar

import lightning.pytorch as pl
import torch
from torch import Tensor, nn

from kdlightning.errors import ConfigurationError, nearest
from kdlightning.losses.base import LossContext, Shape, TapLoss, channel_adapter, pooled_adapter, term_name
from kdlightning.losses.spatial import pool_larger
from kdlightning.losses.token_mask import token_rows
from kdlightning.modules.knowledge import TapPair, TermSpec
from kdlightning.modules.layer_pairs import LayerPairs
from kdlightning.schedules import Weight

LossType = TypeVar("LossType", bound=TapLoss)
Pairs = dict[str, str] | list[dict[str, Any]] | list[TapPair]
AdapterName = Literal["auto", "none", "linear", "pooled"]
ADAPTERS = ("auto", "none", "linear", "pooled")


class KnowledgeCallback(pl.Callback, Generic[LossType]):
    """Base of `FeatureKD` and `RelationKD`.

    Args:
        loss: the loss.
        pairs: student tap to teacher tap, or a list of `{student, teacher, weight, layout}`.
        adapter: "auto" is what the loss prescribes, "none" leaves tensors as they are, "linear" maps the student's
            channels to the teacher's by a 1×1 convolution or a linear layer, "pooled" averages the student's map first,
            for a teacher's vector.
        weight: number or schedule; None leaves it to the module's `weights` (1 by default).
        name: name of the term; the loss's by default.
    """

    def __init__(
        self,
        loss: LossType,
        pairs: Pairs,
        adapter: AdapterName = "auto",
        weight: Weight | None = None,
        name: str | None = None,
    ) -> None:
        if not isinstance(loss, nn.Module):
            raise ConfigurationError(
                f"{type(self).__name__}: loss must be a loss such as AttentionTransfer(), not {loss!r}"
            )
        if adapter not in ADAPTERS:
            raise ConfigurationError(
                f"{type(self).__name__}: adapter must be one of {', '.join(ADAPTERS)}, not {adapter!r}"
            )
        self.loss = loss
        self.pairs = read_pairs(pairs, type(self).__name__)
        self.adapter = adapter
        self.weight = weight
        self.name = name or term_name(type(loss))

    @property
    def state_key(self) -> str:
        """Tells two callbacks of one class apart."""
        taps = ",".join(f"{pair.student}>{pair.teacher}" for pair in self.pairs)
        return f"{type(self).__name__}[{self.name}:{type(self.loss).__name__}({taps})]"

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Declares the term."""
        self.declare(pl_module, stage, self.pairs)

    def declare(self, pl_module: pl.LightningModule, stage: str, pairs: Sequence[TapPair] | LayerPairs) -> None:
        """Declares the term on these pairs, if the module is to be trained."""
        if stage != "fit":
            return
        declare = getattr(pl_module, "declare_term", None)
        if declare is None:
            raise ConfigurationError(f"{type(self).__name__} needs a DistillModule, not {type(pl_module).__name__}")
        owner = f"{type(self).__name__}({self.name})"
        defaults = dict(self.loss.default_weights)
        # The paper's weight belongs to the term under whatever name the user gives it.
        defaults[self.name] = defaults.pop(term_name(type(self.loss)), 1.0)
        declare(TermSpec(self.name, pairs, self.build, self.weight, owner, self.loss.reads_fields, defaults))

    def build(self, student: list[Shape], teacher: list[Shape], context: LossContext) -> nn.Module:
        """The networks of the term, from the taps' shapes and the networks around them."""
        # One declaration may serve several learners, and a loss of one pair several pairs: each has its own networks.
        losses = []
        for part in _parts(self.loss, len(self.pairs)):
            loss = copy.deepcopy(self.loss)
            each = ("student_taps", "teacher_taps", "student_heads", "teacher_heads")
            with _told_by(self.name):
                loss.bind(replace(context, **{name: getattr(context, name)[part] for name in each}))
            losses.append(loss)
        return PairedLoss(losses, self.pairs, student, teacher, self.adapter, self.name, tokens=context.tokens)


class PairedLoss(nn.Module):
    """Adapters, the spatial rule and the losses of one term: one for each pair, or a joint one for all."""

    def __init__(
        self,
        losses: Sequence[TapLoss],
        pairs: Sequence[TapPair],
        student: list[Shape],
        teacher: list[Shape],
        adapter: str,
        name: str,
        tokens: int = 0,
    ) -> None:
        super().__init__()
        self.packed = [_is_text(ours, tokens) and losses[0].padding == "rows" for ours in student]
        if losses[0].padding == "refused" and any(_is_text(ours, tokens) for ours in student):
            raise ConfigurationError(
                f"{name} would count the padding of texts: name taps of one vector a text, such as pre_logits"
            )
        student, teacher = (self._shapes(shapes) for shapes in (student, teacher))
        self.weights = [pair.weight for pair in pairs]
        self.joint, self.spatial = losses[0].joint, losses[0].spatial
        if self.joint and any(weight != 1 for weight in self.weights):
            raise ConfigurationError(f"{name} compares its pairs together: none of them can have its own weight")
        if losses[0].deployed and adapter not in ("auto", "none"):
            raise ConfigurationError(
                f"{name} makes the student ready for use, and an adapter would not ship with it: leave adapter out"
            )
        self.adapters = nn.ModuleList()
        adapted = []
        for number, (pair, ours, theirs) in enumerate(zip(pairs, student, teacher, strict=True)):
            try:
                made = _adapter(losses[0 if self.joint else number], adapter, ours, theirs)
            except (ValueError, KeyError, IndexError) as error:
                raise _mismatch(name, pair, ours, theirs, _line(error)) from error
            self.adapters.append(made if made is not None else nn.Identity())
            adapted.append(_shape_after(self.adapters[-1], ours))
        self.losses = nn.ModuleList(losses)
        for loss, part in zip(losses, _parts(losses[0], len(pairs)), strict=True):
            with _told_by(name):
                loss.build(adapted[part], teacher[part])
        self._try(pairs, student, teacher, name)

    def _shapes(self, shapes: list[Shape]) -> list[Shape]:
        """Shapes as adapters and losses see them: tokens that are packed are rows."""
        return [
            (shape[0] * shape[2], shape[1]) if packed else shape
            for shape, packed in zip(shapes, self.packed, strict=True)
        ]

    def _try(self, pairs: Sequence[TapPair], student: list[Shape], teacher: list[Shape], name: str) -> None:
        """Runs the term once on zeros of the taps' shapes, so that a mismatch is found before training."""
        trial = copy.deepcopy(self).eval()
        adapters, losses, weights = trial.adapters, trial.losses, trial.weights
        trial.packed = [False] * len(pairs)
        for part in _parts(self, len(pairs)):
            trial.adapters, trial.losses, trial.weights = adapters[part], losses[part], weights[part]  # type: ignore[assignment]
            zeros = [[torch.zeros(shape) for shape in shapes[part]] for shapes in (student, teacher)]
            try:
                with torch.no_grad():
                    trial(*zeros, batch=None, progress=0.0)
            except (ValueError, RuntimeError) as error:
                first = part.start or 0
                raise _mismatch(name, pairs[first], student[first], teacher[first], _line(error)) from error
            except (AttributeError, TypeError):
                return  # it reads the batch, and there is none yet

    def forward(self, student: list[Tensor], teacher: list[Tensor], *, batch: Any, progress: float) -> Tensor:
        """The term's value."""
        ours, theirs = [], []
        for number, (adapter, mine, other) in enumerate(zip(self.adapters, student, teacher, strict=True)):
            if self.packed[number]:
                mine, other = token_rows(mine, other, batch)
            mine = adapter(mine)
            if self.spatial == "pool_larger":
                mine, other = pool_larger(mine, other)
            ours.append(mine)
            theirs.append(other)
        if self.joint:
            return self.losses[0](ours, theirs, batch=batch, progress=progress)
        values = [
            weight * loss(mine, other, batch=batch, progress=progress)
            for weight, loss, mine, other in zip(self.weights, self.losses, ours, theirs, strict=True)
        ]
        return sum(values[1:], values[0])


def _is_text(shape: Shape, tokens: int) -> bool:
    """Whether a tap of this shape holds a vector for every token of a text."""
    return tokens > 0 and len(shape) == 3 and shape[2] == tokens


def _parts(loss: TapLoss | PairedLoss, pairs: int) -> list[slice]:
    """Which pairs each of a term's losses gets: all of them if it is joint, else one each."""
    return [slice(None)] if loss.joint else [slice(number, number + 1) for number in range(pairs)]


def _adapter(loss: TapLoss, adapter: str, student: Shape, teacher: Shape) -> nn.Module | None:
    if adapter == "none":
        return None
    if adapter == "pooled":
        return pooled_adapter(student, teacher)
    return loss.adapter(student, teacher) if adapter == "auto" else channel_adapter(student, teacher)


def _shape_after(adapter: nn.Module, shape: Shape) -> Shape:
    """What an adapter makes of a shape; its statistics stay as they are."""
    with torch.no_grad():
        return tuple(copy.deepcopy(adapter).eval()(torch.zeros(shape)).shape)


@contextmanager
def _told_by(name: str) -> Iterator[None]:
    """What a loss finds wrong with the networks becomes a sentence that names its term."""
    try:
        yield
    except ValueError as error:
        raise ConfigurationError(f"{name}: {_line(error)}") from error


def _line(error: Exception) -> str:
    return str(error).splitlines()[0][:200] if str(error) else type(error).__name__


def _mismatch(name: str, pair: TapPair, student: Shape, teacher: Shape, reason: str) -> ConfigurationError:
    return ConfigurationError(
        f"{name}: student tap {pair.student!r} {student} does not fit teacher tap {pair.teacher!r} {teacher} "
        f"({reason}); {_way_out(student, teacher)}"
    )


def _way_out(student: Shape, teacher: Shape) -> str:
    """The adapter that would fit two shapes."""
    if len(student) == len(teacher):
        return "set adapter: linear, or name taps of one width" if student[1] != teacher[1] else "name taps of one kind"
    if len(teacher) == 2:
        return "set adapter: pooled, which averages the student's map and maps its channels"
    return "name taps of one kind: vectors, signals or maps on both sides"


def read_pairs(pairs: Pairs, owner: str) -> list[TapPair]:
    """Pairs as a user writes them."""
    if not pairs:
        raise ConfigurationError(f"{owner}: pairs is empty; write pairs: {{student_tap: teacher_tap}}")
    if isinstance(pairs, dict):
        return [TapPair(str(student), str(teacher)) for student, teacher in pairs.items()]
    known = ("student", "teacher", "weight", "layout")
    read: list[TapPair] = []
    for pair in pairs:
        if isinstance(pair, TapPair):
            read.append(pair)
            continue
        for key in pair:
            if key not in known:
                raise ConfigurationError(f"{owner}: a pair has no {key!r}{nearest(key, known)}")
        if "student" not in pair or "teacher" not in pair:
            raise ConfigurationError(f"{owner}: each pair needs student and teacher")
        read.append(TapPair(**pair))
    return read
