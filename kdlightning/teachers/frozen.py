"""A trained network that is never changed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn

from kdlightning.data.batch import Batch
from kdlightning.errors import ConfigurationError
from kdlightning.models.output import ModelOutput
from kdlightning.models.weights import load_weights
from kdlightning.taps import TapInfo
from kdlightning.teachers.base import NetworkTeacher, teacher_inputs
from kdlightning.teachers.token_map import FewerWords, read_map

Self = TypeVar("Self", bound="FrozenTeacher")


class FrozenTeacher(NetworkTeacher):
    """A trained, frozen network: always in evaluation mode, without gradient, bit for bit what it was.

    The network is an attribute and not a registered sub-module, so that checkpoints, optimizers, averages, DDP and
    summaries never see it; `.to()` and its kin move it all the same. Every rank must load the same weights: nothing
    broadcasts them.

    Args:
        model: the network.
        checkpoint: a local file of weights for it (state dict, Lightning checkpoint or safetensors).
        key_map: prefixes of key names in that file, old to new; null leaves such keys out.
        label_map: for each class of the student, the number of the teacher's class.
        token_map: for each token of the student, the number of the teacher's token, where the student's vocabulary was
            cut: the folder of the cut tokenizer, or the numbers. Texts are handed on in the teacher's numbers, and of a
            language model's answer the student's words are read. "same" says that the numbers agree although the
            sizes of the embeddings differ, as they do where one is padded.
        student_normalization: `(mean, std)` with which the loader normalised the images, per channel.
        teacher_normalization: `(mean, std)` that the teacher was trained with; images are converted between the two.
        batch_stats: in training, normalise with batch statistics, as some feature methods want, without changing the
            running ones; the teacher's scores are measured with these.
    """

    constant: ClassVar[bool] = True
    reads_student: ClassVar[bool] = False
    columns: Tensor
    words: Tensor | None
    scale: Tensor | None
    shift: Tensor | None

    def __init__(
        self,
        model: nn.Module,
        checkpoint: str | None = None,
        key_map: dict[str, str | None] | None = None,
        label_map: Sequence[int] | None = None,
        student_normalization: tuple[list[float], list[float]] | None = None,
        teacher_normalization: tuple[list[float], list[float]] | None = None,
        batch_stats: bool = False,
        token_map: str | Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        if (student_normalization is None) != (teacher_normalization is None):
            raise ConfigurationError("FrozenTeacher: give student_normalization and teacher_normalization together")
        # jsonargparse hands the null of a command line's nested option on as text.
        if checkpoint is not None and checkpoint != "None":
            if not Path(checkpoint).is_file():
                raise ConfigurationError(
                    f"no teacher checkpoint at {checkpoint}: train the teacher first (kdlightning fit, or the config "
                    "that the comment names), or set the teacher's checkpoint to the file you have"
                )
            load_weights(model, checkpoint, key_map)
        if label_map is not None and (len(label_map) == 0 or min(label_map) < 0):
            raise ConfigurationError(
                "FrozenTeacher: label_map needs a class number of the teacher for each of the student's"
            )
        self.__dict__["model"] = model.requires_grad_(False).eval()
        self.__dict__["parts"] = list(model.modules())
        self.label_map = None if label_map is None else list(label_map)
        self.batch_stats = batch_stats
        self.token_map = token_map
        words = read_map(token_map)
        _check_rows(model, words)
        # Buffers, so that they are on the device before the first step; no state of a run.
        self.register_buffer("columns", None if label_map is None else torch.tensor(self.label_map), persistent=False)
        self.register_buffer("words", None if words is None else torch.tensor(words), persistent=False)
        self._fewer = FewerWords()
        scale, shift = (
            (None, None) if student_normalization is None else _conversion(student_normalization, teacher_normalization)
        )
        self.register_buffer("scale", scale, persistent=False)
        self.register_buffer("shift", shift, persistent=False)

    @property
    def network(self) -> nn.Module:
        """The frozen network."""
        return self.__dict__["model"]

    def _apply(self: Self, fn: Callable[..., Any], recurse: bool = True) -> Self:
        # To another device, and never to less precision: rounded weights would not come back.
        self.network._apply(lambda tensor: _moved(tensor, fn(tensor)))
        return super()._apply(fn, recurse)

    def __deepcopy__(self: Self, memo: Any) -> Self:
        return self

    @torch.no_grad()
    def forward(self, batch: Batch, student_output: ModelOutput | None, *, logits: bool = True) -> ModelOutput:
        """The network's answer to the batch."""
        if any(part.training for part in self.__dict__["parts"]):
            # Somebody who holds the network may have switched it, or a part of it.
            self.network.eval()
        inputs = self._in_own_precision(self._convert(self.own_inputs(batch)))
        if not (self.batch_stats and self.training):
            output = self.reader(inputs, logits=logits)
        else:
            with _batch_statistics(self.network):
                output = self.reader(inputs, logits=logits)
        if self.words is not None and batch.teacher_inputs is None:
            output = self._fewer.output(output, self.words)
        if self.label_map is None or not output.has_logits:
            return output
        classes = 1 if output.logits.ndim == 4 else -1  # a map of logits has its classes in front
        if max(self.label_map) >= output.logits.shape[classes]:
            raise ConfigurationError(
                f"FrozenTeacher: label_map names class {max(self.label_map)}, and the teacher has "
                f"{output.logits.shape[classes]}"
            )
        return ModelOutput(output.logits.index_select(classes, self.columns), taps=output.taps)

    def own_inputs(self, batch: Batch) -> Any:
        """What the network is called with: its own inputs of the batch, or the student's in its own tokens."""
        if self.words is None or batch.teacher_inputs is not None:
            return teacher_inputs(batch)
        return self._fewer.inputs(batch.inputs, self.words)

    def probe(self, batch: Batch) -> dict[str, TapInfo]:
        """Shapes of the taps."""
        return self.reader.probe(self.own_inputs(batch))

    def _convert(self, inputs: Any) -> Any:
        if self.scale is None or self.shift is None:
            return inputs
        if isinstance(inputs, Mapping):
            name = "pixel_values"
            if name not in inputs:
                raise ConfigurationError("FrozenTeacher: normalisation needs image tensors or pixel_values")
            return {**inputs, name: self._convert(inputs[name])}
        if inputs.ndim != 4 or inputs.shape[1] not in (1, self.scale.shape[1]):
            raise ConfigurationError(
                f"FrozenTeacher: normalisation is for images (batch, {self.scale.shape[1]}, height, width), and the "
                f"batch has shape {tuple(inputs.shape)}"
            )
        return inputs * self.scale.to(inputs.dtype) + self.shift.to(inputs.dtype)

    def _in_own_precision(self, inputs: Any) -> Any:
        """Floating-point inputs in the precision of the weights, where the run's is another; autocast does its own."""
        own = next((part.dtype for part in self.network.parameters() if part.is_floating_point()), None)
        if own is None:
            return inputs

        def converted(value: Any) -> Any:
            if isinstance(value, Mapping):
                return {name: converted(item) for name, item in value.items()}
            if isinstance(value, (tuple, list)):
                return type(value)(converted(item) for item in value)
            floating = isinstance(value, Tensor) and value.is_floating_point()
            return value.to(own) if floating and value.dtype != own else value

        return converted(inputs)


def _check_rows(model: nn.Module, words: Sequence[int] | None) -> None:
    rows = getattr(getattr(model, "config", None), "vocab_size", None)
    if words is not None and rows is not None and max(words) >= rows:
        raise ConfigurationError(
            f"FrozenTeacher: token_map names token {max(words)}, and the teacher's vocabulary has {rows}: cut the "
            "teacher's own tokenizer"
        )


def _moved(before: Tensor, after: Tensor) -> Tensor:
    keeps = torch.promote_types(before.dtype, after.dtype) == after.dtype
    return after if keeps else before.to(after.device)


def _conversion(student: Any, teacher: Any) -> tuple[Tensor, Tensor]:
    (mean_s, std_s), (mean_t, std_t) = (torch.tensor(pair, dtype=torch.float64) for pair in (student, teacher))
    scale, shift = std_s / std_t, (mean_s - mean_t) / std_t
    return scale.float().view(1, -1, 1, 1), shift.float().view(1, -1, 1, 1)


@contextmanager
def _batch_statistics(model: nn.Module) -> Iterator[None]:
    """Batch norms use batch statistics inside, and their running ones are what they were afterwards."""
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    tracked = [(norm, norm.track_running_stats, norm.running_mean, norm.running_var) for norm in norms]
    for norm in norms:
        norm.track_running_stats, norm.running_mean, norm.running_var = False, None, None
    try:
        yield
    finally:
        for norm, track, mean, variance in tracked:
            norm.track_running_stats, norm.running_mean, norm.running_var = track, mean, variance
