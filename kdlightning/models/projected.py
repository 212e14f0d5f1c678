"""A student that answers through a teacher's classifier."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from kdlightning.errors import ConfigurationError
from kdlightning.losses.heads import named_classifier
from kdlightning.losses.spatial import pool_to
from kdlightning.models.residual import CONVOLUTIONS, NORMS
from kdlightning.taps.hooks import first_tensor
from kdlightning.taps.layouts import channels_first, describe
from kdlightning.taps.names import TapInfo, resolve

_POOLS = ("pool", "avgpool", "global_pool")
_HEADS = ("fc", "classifier", "head", "heads", "score")


class ProjectedStudent(nn.Module):
    """A network up to a map, a projector to a teacher's width, average pooling, a linear layer: SimKD's student.

    The projector is a bottleneck: 1×1 convolution to `teacher_width` / `factor`, 3×3 convolution, 1×1 convolution to
    `teacher_width`, each without bias and with BatchNorm and ReLU (Chen et al., "Knowledge Distillation with the Reused
    Teacher Classifier", CVPR 2022). The loss `SimKD` puts the teacher's classifier into the linear layer and freezes
    it; nothing of the teacher is needed afterwards.

    Taps: `projector` is the map in the teacher's width, `pre_logits` its average, `network.…` are the network's own.

    Args:
        network: the student's own network. Its classifier is taken off; what lies behind the map is not run.
        num_classes: number of outputs.
        teacher_width: channels of the teacher's last map, which its classifier reads.
        width: channels of the network's map; by default what the network says, or what its classifier read.
        tap: the map: a module of the network, its output or with `:input` what goes into it. By default the result of
            `forward_features`, which timm's networks have, else what goes into the layer `pool`, `avgpool` or
            `global_pool`.
        map_size: side (or sides) of the teacher's map, if it is smaller than the network's: the network's map is
            average-pooled to it before the projector, as the authors do. Without it `SimKD` pools behind the projector.
        factor: how many times narrower the projector is inside; 2 in the paper.
        dimensions: 2 for images, 1 for signals.
    """

    def __init__(
        self,
        network: nn.Module,
        num_classes: int,
        teacher_width: int,
        width: int | None = None,
        tap: str | None = None,
        map_size: int | Sequence[int] | None = None,
        factor: int = 2,
        dimensions: int = 2,
    ) -> None:
        super().__init__()
        if dimensions not in CONVOLUTIONS:
            raise ConfigurationError(f"ProjectedStudent: dimensions must be 1 or 2, not {dimensions}")
        if not 1 <= factor <= teacher_width:
            raise ConfigurationError(f"ProjectedStudent: factor must be 1 to {teacher_width}, not {factor}")
        width = (
            width or getattr(network, "num_features", None) or getattr(named_classifier(network), "in_features", None)
        )
        if width is None:
            raise ConfigurationError(
                f"ProjectedStudent: {type(network).__name__} does not say how many channels its map has: give width"
            )
        self.tap = tap or _last_map(network)
        self._place = None if self.tap is None else _module_tap(network, self.tap)
        self.network = _without_classifier(network)
        self.map_size = [map_size] * dimensions if isinstance(map_size, int) else map_size
        self.dimensions = dimensions
        self.num_classes = num_classes
        self.input_size = _input_size(network)
        self.projector = projector(width, teacher_width, factor, dimensions)
        self.fc = nn.Linear(teacher_width, num_classes)
        self._layouts: dict[tuple[int, ...], TapInfo] = {}

    def forward(self, *inputs: Any, **named: Any) -> Tensor:
        """Logits `(B, num_classes)`."""
        return self.fc(self.projector(self.features(*inputs, **named)).flatten(2).mean(2))

    def features(self, *inputs: Any, **named: Any) -> Tensor:
        """The network's map, as the projector gets it."""
        if self._place is None:
            found, module = self.network.forward_features(*inputs, **named), self.network  # type: ignore[operator]
        else:
            module = self.network.get_submodule(self._place[0])
            found = self._run_up_to(module, self._place[1], inputs, named)
        maps = self._channels_first(found, module)
        if self.map_size is None:
            return maps
        return pool_to(maps, [min(pair) for pair in zip(maps.shape[2:], self.map_size, strict=True)])

    def get_classifier(self) -> nn.Linear:
        """The linear layer that gives the logits."""
        return self.fc

    def _run_up_to(self, module: nn.Module, side: str, inputs: Any, named: Any) -> Tensor:
        def stop_before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            raise _Reached(first_tensor(args) if args else first_tensor(kwargs))

        def stop_after(_: nn.Module, __: Any, output: Any) -> None:
            raise _Reached(first_tensor(output))

        # Installed for one pass: hooks that stay would be those of the original in every copy of the network.
        if side == "input":
            handle = module.register_forward_pre_hook(stop_before, with_kwargs=True)
        else:
            handle = module.register_forward_hook(stop_after)
        try:
            self.network(*inputs, **named)
        except _Reached as reached:
            if reached.tensor is not None:
                return reached.tensor
        finally:
            handle.remove()
        raise ConfigurationError(
            f"ProjectedStudent: tap {self.tap!r} gave no tensor: name a module that runs and gives one"
        )

    def _channels_first(self, features: Tensor, module: nn.Module) -> Tensor:
        """Tokens become maps, as they do for taps."""
        shape = tuple(features.shape)
        if shape[1:] not in self._layouts:
            self._layouts[shape[1:]] = describe(self.network, self.tap or "features", features, module, None)
        info = self._layouts[shape[1:]]
        wanted = self.projector[0].in_channels
        maps = features if info.layout is None else channels_first(features, info)
        if maps.ndim != self.dimensions + 2 or maps.shape[1] != wanted:
            raise ConfigurationError(
                f"ProjectedStudent: the map of {type(self.network).__name__} has shape {tuple(maps.shape[1:])}, and "
                f"width is {wanted}, dimensions {self.dimensions}: give those of the map, or another tap"
            )
        return maps


class _Reached(Exception):
    """The network has come to the tap."""

    def __init__(self, tensor: Tensor | None) -> None:
        super().__init__()
        self.tensor = tensor


def projector(in_channels: int, channels: int, factor: int, dimensions: int = 2) -> nn.Sequential:
    """SimKD's bottleneck from one width to another."""
    convolution, norm = CONVOLUTIONS[dimensions], NORMS[dimensions]
    inside = channels // factor
    layers: list[nn.Module] = []
    for own, wanted, kernel in ((in_channels, inside, 1), (inside, inside, 3), (inside, channels, 1)):
        layers += [convolution(own, wanted, kernel, padding=kernel // 2, bias=False), norm(wanted), nn.ReLU()]
    return nn.Sequential(*layers)


def _last_map(network: nn.Module) -> str | None:
    """The tap that is meant if none is named; None for the result of `forward_features`."""
    if hasattr(network, "forward_features"):
        return None
    name = next((name for name in _POOLS if isinstance(getattr(network, name, None), nn.Module)), None)
    if name is None:
        raise ConfigurationError(
            f"ProjectedStudent: {type(network).__name__} has neither forward_features nor a layer "
            f"{', '.join(_POOLS[:-1])} or {_POOLS[-1]}: name the tap whose map is projected"
        )
    return f"{name}:input"


def _module_tap(network: nn.Module, text: str) -> tuple[str, str]:
    """Path and side of a tap that names a module."""
    tap = resolve(network, text)
    if tap.module is None:
        raise ConfigurationError(f"ProjectedStudent: tap {text!r} is no module of {type(network).__name__}: name one")
    return tap.module, tap.side


def _without_classifier(network: nn.Module) -> nn.Module:
    """The network, an identity in place of its classifier and what belongs to it."""
    layer = named_classifier(network)
    if layer is None:
        return network
    path = next(name for name, module in network.named_modules() if module is layer)
    whole = path.split(".")[0]
    parent, _, name = (whole if whole in _HEADS else path).rpartition(".")
    setattr(network.get_submodule(parent), name, nn.Identity())
    return network


def _input_size(network: nn.Module) -> Any:
    """What the network says of its input, for those who make up one."""
    return (getattr(network, "pretrained_cfg", None) or {}).get("input_size") or getattr(network, "input_size", None)
