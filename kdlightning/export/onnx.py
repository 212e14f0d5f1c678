"""ONNX: the student as a file that onnxruntime runs."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kdlightning.errors import ConfigurationError, MissingExtraError
from kdlightning.export.inputs import answer_in, answers

_TOLERANCE = 1e-4
_SAMPLES = 3
"""Compared are batches of other sizes than the one that is traced: a size that was frozen into the file shows."""


class OnnxModel:
    """An ONNX file in onnxruntime, on the CPU.

    Args:
        file: the file.
        threads: threads inside an operation; 0 leaves it to onnxruntime.

    Raises:
        MissingExtraError: without onnxruntime.
    """

    def __init__(self, file: str | Path, threads: int = 0) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise MissingExtraError("onnxruntime", "onnx", "an ONNX student") from error
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        self.session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        self.names = [entry.name for entry in self.session.get_inputs()]

    def arrays(self, inputs: Mapping[str, Tensor]) -> dict[str, Any]:
        """NumPy arrays of named inputs, of those that the file has."""
        return {name: inputs[name].numpy() for name in self.names}

    def run(self, arrays: Mapping[str, Any]) -> Any:
        """The answer as an array."""
        return self.session.run(None, dict(arrays))[0]


def write_onnx(model: nn.Module, file: Path, example: Any, *, quantize: str | None = None) -> tuple[float, float]:
    """Writes a network, with free batch and text length, and compares onnxruntime's answers with its own.

    Args:
        model: the network.
        file: the file to write.
        example: inputs that it takes: a tensor, a tuple or a mapping of tensors.
        quantize: "int8" for weights of linear layers as 8-bit integers.

    Returns:
        The largest absolute difference of the answers, and the milliseconds of one sample in onnxruntime, the median of
        32 passes with one thread.

    Raises:
        MissingExtraError: without the packages of the extra `onnx`.
        ConfigurationError: the network cannot be traced, or answers differ by more than 1e-4.
    """
    _need("onnx", "onnxscript", "onnxruntime")
    from kdlightning.latency import onnx_latency

    named = named_inputs(example)
    network = _Plain(model.cpu().float().eval(), list(named) if isinstance(example, Mapping) else None)
    _trace(network, named, file)
    difference = _difference(model, example, file)
    if not difference <= _TOLERANCE:
        raise ConfigurationError(
            f"onnxruntime answers differently from the checkpoint (by {difference:.1e}); nothing was written"
        )
    if quantize is not None:
        _quantize(file)
        difference = _difference(model, example, file)
    one = {name: tensor[:1] for name, tensor in named.items()}
    return difference, onnx_latency(file, one, threads=1).milliseconds


def named_inputs(example: Any) -> dict[str, Tensor]:
    """The names of a file's inputs: those of a mapping, else `input`, or `input_0`, `input_1`, …."""
    if isinstance(example, Mapping):
        return dict(example)
    if isinstance(example, (tuple, list)):
        return {f"input_{number}": tensor for number, tensor in enumerate(example)}
    return {"input": example}


class _Plain(nn.Module):
    """Tensors in their order, and one tensor out."""

    def __init__(self, model: nn.Module, names: list[str] | None) -> None:
        super().__init__()
        self.model = model
        self.names = names

    def forward(self, *inputs: Tensor) -> Tensor:
        if self.names is None:
            return answer_in(self.model(*inputs))
        return answer_in(self.model(**dict(zip(self.names, inputs, strict=True))))

    @torch.no_grad()
    def answers_with(self, named: Mapping[str, Tensor]) -> str:
        """What the answer is called: `logits`, or `last_hidden_state` of a model without a head."""
        output = self.model(**named) if self.names is not None else self.model(*named.values())
        hidden = getattr(output, "logits", None) is None and hasattr(output, "last_hidden_state")
        return "last_hidden_state" if hidden else "logits"


def _trace(network: _Plain, named: Mapping[str, Tensor], file: Path) -> None:
    from torch.export import Dim

    batch, length = Dim("batch"), Dim("length")
    # Token numbers and masks `(B, T)`: a text may have any length. Images and signals keep their size.
    axes = tuple(
        {0: batch, 1: length} if tensor.ndim == 2 and not tensor.is_floating_point() else {0: batch}
        for tensor in named.values()
    )
    try:
        with _quiet():
            program: Any = torch.onnx.export(
                network,
                tuple(named.values()),
                dynamo=True,
                dynamic_shapes=(axes,),
                input_names=list(named),
                output_names=[network.answers_with(named)],
                verbose=False,
            )
            program.save(str(file), external_data=False)
    except Exception as error:  # whatever tracing and translating raise
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        kind = type(network.model).__name__
        raise ConfigurationError(f"--format onnx: torch.onnx cannot translate {kind}: {reason[:200]}") from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Inside, torch and onnxscript say nothing of their own future."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def _difference(model: nn.Module, example: Any, file: Path) -> float:
    """Largest difference over batches of one and of several samples, texts of several lengths with padding."""
    onnx = OnnxModel(file)
    worst = 0.0
    for samples, length in ((2, None), (1, 2), (_SAMPLES, 7)):
        inputs = _other(example, samples, length, model)
        ours = answers(model, inputs)
        theirs = torch.from_numpy(onnx.run(onnx.arrays(named_inputs(inputs))))
        if ours.shape != theirs.shape:
            return float("inf")
        worst = max(worst, float((ours - theirs).abs().max()))
    return worst


def _other(example: Any, samples: int, length: int | None, model: nn.Module) -> Any:
    """Inputs like the example's with other values: random tokens, the last one of the first text padding."""
    random = torch.Generator().manual_seed(samples)
    words = getattr(getattr(model, "config", None), "vocab_size", None) or 2

    def like(tensor: Tensor, name: str) -> Tensor:
        if tensor.is_floating_point():
            return torch.rand((samples, *tensor.shape[1:]), generator=random).to(tensor.dtype)
        shape = (samples, length or tensor.shape[1], *tensor.shape[2:]) if tensor.ndim > 1 else (samples,)
        if name == "input_ids":
            return torch.randint(words, shape, generator=random)
        made = (
            torch.ones(shape, dtype=tensor.dtype)
            if name == "attention_mask"
            else torch.zeros(shape, dtype=tensor.dtype)
        )
        if name == "attention_mask" and samples > 1 and tensor.ndim == 2:
            made[0, -1] = 0
        return made

    if isinstance(example, Mapping):
        return {name: like(tensor, name) for name, tensor in example.items()}
    if isinstance(example, (tuple, list)):
        return tuple(like(tensor, "") for tensor in example)
    return like(example, "")


def _quantize(file: Path) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    whole = file.with_name("whole.onnx")
    file.rename(whole)
    with _quiet():
        level = logging.root.level
        logging.root.setLevel(logging.ERROR)  # it advises on the root logger
        try:
            quantize_dynamic(str(whole), str(file), weight_type=QuantType.QInt8)
        finally:
            logging.root.setLevel(level)
    whole.unlink()


def _need(*packages: str) -> None:
    import importlib.util

    for package in packages:
        if importlib.util.find_spec(package) is None:
            raise MissingExtraError(package, "onnx", "--format onnx")
