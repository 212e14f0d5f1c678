"""Public implementations of KD, plain and with standardised logits."""

from __future__ import annotations

from functools import partial
from types import ModuleType
from typing import Any

from torch import Generator, Tensor

from kdlightning.losses import kd_loss
from peers.base import Case, Peer, Shape, pair

SHAPES: tuple[Shape, Shape, Shape] = ((64, 10), (128, 100), (256, 1000))
TEMPERATURE = 4.0


def logits(shape: Shape, generator: Generator) -> tuple[Tensor, Tensor]:
    """Logits with the spread of a trained classifier's."""
    student, teacher = pair(shape, generator)
    return (student.detach() * 3).requires_grad_(), teacher * 3


def torchdistill(module: ModuleType, name: str, **options: Any) -> Any:
    """A loss of torchdistill, which reads tensors out of nested dictionaries."""
    loss = getattr(module, name)("logits", "output", "logits", "output", **options)
    return lambda student, teacher: loss({"logits": {"output": student}}, {"logits": {"output": teacher}})


def _repdistiller(module: ModuleType) -> Any:
    return module.DistillKL(TEMPERATURE)


def _mdistiller(module: ModuleType) -> Any:
    return partial(module.kd_loss, temperature=TEMPERATURE)


def _standardized(module: ModuleType) -> Any:
    return partial(module.kd_loss, temperature=2.0, logit_stand=True)


def _torchdistill(module: ModuleType) -> Any:
    loss = torchdistill(module, "KDLoss", temperature=TEMPERATURE, alpha=0.0)
    return lambda student, teacher: loss(student, teacher) * TEMPERATURE**2


def _torchdistill_standardized(module: ModuleType) -> Any:
    loss = torchdistill(module, "LogitStdKDLoss", temperature=2.0, alpha=0.0)
    return lambda student, teacher: loss(student, teacher) * 4.0


def _mmrazor(module: ModuleType) -> Any:
    return module.KLDivergence(tau=TEMPERATURE)


def _soft_target(module: ModuleType) -> Any:
    return module.SoftTarget(TEMPERATURE)


def _deit(module: ModuleType) -> Any:
    loss = module.DistillationLoss(lambda outputs, labels: outputs.new_zeros(()), lambda x: x, "soft", 1.0, TEMPERATURE)
    return lambda student, teacher: loss(teacher, (student, student), None) * student.shape[1]


def _cls_kd(module: ModuleType) -> Any:
    loss = module.KDLoss(None, None, temp=TEMPERATURE, alpha=1.0)
    return lambda student, teacher: loss(student, teacher)[1]


CASES = (
    Case(
        method="kd",
        function="kd_loss",
        paper="Hinton et al. 2015",
        form="T² · KL, mean over the batch",
        shapes=SHAPES,
        inputs=logits,
        ours=partial(kd_loss, temperature=TEMPERATURE),
        peers=(
            Peer(
                "HobbitLong/RepDistiller",
                "b84f547c5db6a35318d4671d7d5c4de74c822403",
                "distiller_zoo/KD.py",
                _repdistiller,
            ),
            Peer(
                "megvii-research/mdistiller",
                "a08d46f10d6102bd6e3f258ca5ac880b020ea259",
                "mdistiller/distillers/KD.py",
                _mdistiller,
            ),
            Peer(
                "yoshitomo-matsubara/torchdistill",
                "3e4373c45214c5c56eebac481d5bfe8b8735aa05",
                "torchdistill/losses/mid_level.py",
                _torchdistill,
                note="without labels it leaves T² out; multiplied by it here",
            ),
            Peer(
                "open-mmlab/mmrazor",
                "90c7af1fdf35a606a2fceaaeb4b6be2f0dac4eb7",
                "mmrazor/models/losses/kl_divergence.py",
                _mmrazor,
                stubs=("mmrazor", "mmrazor.registry"),
            ),
            Peer(
                "AberHu/Knowledge-Distillation-Zoo",
                "65470c846c1300d555815da26999cbe2b51fc815",
                "kd_losses/st.py",
                _soft_target,
            ),
            Peer(
                "facebookresearch/deit",
                "7e160fe43f0252d17191b71cbb5826254114ea5b",
                "losses.py",
                _deit,
                note="a mean over the classes too; multiplied by their number here",
            ),
            Peer(
                "yzd-v/cls_KD",
                "1e5d48f36957ee460d39d7ebc592c6cc7f8f3d66",
                "mmcls/models/dis_losses/kd.py",
                _cls_kd,
                agrees=False,
                note="cross-entropy instead of KL, from the logarithm of a softmax: the teacher's entropy more, the "
                "gradient equal",
                stubs=("mmcls", "mmcls.registry"),
            ),
        ),
    ),
    Case(
        method="kd",
        function="kd_loss(standardize=True)",
        paper="Sun et al. 2024",
        form="logits minus their mean over their unbiased deviation, T = 2",
        shapes=SHAPES,
        inputs=logits,
        ours=partial(kd_loss, temperature=2.0, standardize=True),
        peers=(
            Peer(
                "sunshangquan/logit-standardization-KD",
                "f6e5aa5172bad618e801163c3385322eea673754",
                "mdistiller/distillers/KD.py",
                _standardized,
            ),
            Peer(
                "yoshitomo-matsubara/torchdistill",
                "3e4373c45214c5c56eebac481d5bfe8b8735aa05",
                "torchdistill/losses/mid_level.py",
                _torchdistill_standardized,
                note="without labels it leaves T² out; multiplied by it here",
            ),
        ),
    ),
)
