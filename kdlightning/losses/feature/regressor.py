"""The regressor of FitNets, the connector of AB: a student's features in a teacher's widths and sizes."""

from __future__ import annotations

from torch import Tensor, nn

from kdlightning.losses.base import Shape
from kdlightning.losses.layers import CONVOLUTIONS, NORMS, TRANSPOSED, check_normalisable
from kdlightning.losses.spatial import pool_to

LARGEST_KERNEL = 16
"""Maps that would need a larger kernel are average-pooled first: 50×50 weights a pair of channels help nobody."""


class Regressor(nn.Sequential):
    """Layer, BatchNorm and perhaps ReLU, after an optional average-pooling of the input."""

    def __init__(self, *layers: nn.Module, pooled_size: tuple[int, ...] | None = None) -> None:
        super().__init__(*layers)
        self.pooled_size = pooled_size

    def forward(self, input: Tensor) -> Tensor:
        """Features in the teacher's width, `(B, C_t, …)`.

        Raises:
            ValueError: in training, a batch whose channels have a single value, which BatchNorm cannot normalise.
        """
        if self.pooled_size is not None:
            input = pool_to(input, self.pooled_size)
        for position, layer in enumerate(self):
            if position == 1 and self.training:
                check_normalisable("the regressor", input)
            input = layer(input)
        return input


def regressor(student: Shape, teacher: Shape, *, relu: bool = True) -> Regressor:
    """The regressor from one shape to another, both with batch dimension.

    With s and t the sizes of the student's and the teacher's maps: s = 2t gives a 3×3 convolution of stride 2, t = 2s
    a transposed 4×4 one of stride 2, s ≥ t else one of kernel 1 + s − t, each dimension by itself; then BatchNorm and
    ReLU. Beyond kernel 16 the map is average-pooled to 2t first, and where t is neither s nor 2s but larger a 1×1
    convolution leaves the sizes to the loss (reference code has no regressor there). Vectors get a linear layer.

    Args:
        student: `(B, C)`, `(B, C, L)` or `(B, C, H, W)`.
        teacher: as many dimensions.
        relu: end with a ReLU.

    Raises:
        ValueError: the numbers of dimensions differ or are not 2, 3 or 4.
    """
    if len(student) != len(teacher) or len(student) not in NORMS:
        raise ValueError(
            f"the regressor needs two vectors or two maps, not shapes {tuple(student)} and {tuple(teacher)}"
        )
    layer: nn.Module
    pooled = None
    if len(student) == 2:
        layer = nn.Linear(student[1], teacher[1])
    else:
        layer, pooled = _convolution(student, teacher)
    layers = [layer, NORMS[len(student)](teacher[1])]
    return Regressor(*layers, *([nn.ReLU()] if relu else []), pooled_size=pooled)


def _convolution(student: Shape, teacher: Shape) -> tuple[nn.Module, tuple[int, ...] | None]:
    """The convolution, and the size to pool to before it (None: leave the map as it is)."""
    rank, own, wanted = len(student), student[2:], teacher[2:]
    pairs = list(zip(own, wanted, strict=True))
    if any(t > s for s, t in pairs):
        if all(t in (s, 2 * s) for s, t in pairs):
            steps = [(4, 2, 1) if t > s else (1, 1, 0) for s, t in pairs]
            return TRANSPOSED[rank](student[1], teacher[1], *zip(*steps, strict=True)), None
        return CONVOLUTIONS[rank](student[1], teacher[1], kernel_size=1), None
    pooled = tuple(2 * t if s != 2 * t and 1 + s - t > LARGEST_KERNEL else s for s, t in pairs)
    steps = [(3, 2, 1) if s == 2 * t else (1 + s - t, 1, 0) for s, t in zip(pooled, wanted, strict=True)]
    layer = CONVOLUTIONS[rank](student[1], teacher[1], *zip(*steps, strict=True))
    return layer, None if pooled == tuple(own) else pooled
