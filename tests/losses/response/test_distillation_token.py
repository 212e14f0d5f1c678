from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from kdlightning import Classification, ConfigurationError, ConvNet, DistillationToken, OfflineDistillation
from kdlightning.callbacks import FeatureKD
from kdlightning.losses import LossContext, hard_label_loss, kd_loss

PAIRS = {"head_dist": "logits"}


def student() -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model(
        "deit_tiny_distilled_patch16_224",
        num_classes=5,
        in_chans=1,
        img_size=8,
        patch_size=4,
        embed_dim=16,
        depth=1,
        num_heads=2,
    )


@pytest.fixture
def images() -> TensorDataset:
    generator = torch.Generator().manual_seed(3)
    return TensorDataset(torch.randn(16, 1, 8, 8, generator=generator), torch.randint(5, (16,), generator=generator))


def fitted(net: nn.Module, images: TensorDataset, tmp_path: Any, loss: DistillationToken, **options: Any) -> Any:
    torch.manual_seed(1)
    module = OfflineDistillation(
        net,
        ConvNet(5, widths=(4, 8)),
        task=Classification(5),
        response=None,
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1),
        **options,
    )
    trainer = pl.Trainer(
        max_steps=1,
        callbacks=[FeatureKD(loss, PAIRS)],
        accelerator="cpu",
        default_root_dir=tmp_path,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    loader = DataLoader(images, 8)
    trainer.fit(module, loader, loader)
    return module, trainer


def answers(net: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    features = net.forward_features(x)
    return net.head(features[:, 0]), net.head_dist(features[:, 1])


@pytest.mark.parametrize("soft", [False, True])
def test_each_head_learns_from_its_own_teacher(images, tmp_path, soft: bool) -> None:
    """One step of gradient descent, against the two losses written down."""
    net, x, y = student(), images.tensors[0][:8], images.tensors[1][:8]
    module, _ = fitted(net, images, tmp_path, DistillationToken(soft=soft))
    teacher = module.teacher.network(x).detach()
    start: Any = student()
    labels, distilled = answers(start, x)
    second = F.cross_entropy(distilled, teacher.argmax(1))
    if soft:
        log_p, log_q = (logits.div(3).log_softmax(1) for logits in (teacher, distilled))
        second = 9 * (log_p.exp() * (log_p - log_q)).sum(1).mean()
    class_head, token_head = start.head.weight, start.head_dist.weight
    assert torch.autograd.grad(second, class_head, retain_graph=True, allow_unused=True)[0] is None
    (0.5 * F.cross_entropy(labels, y) + 0.5 * second).backward()
    torch.optim.SGD(start.parameters(), lr=0.1).step()
    trained = dict(net.named_parameters())
    assert token_head.grad.abs().max() > 1e-4
    for name, parameter in start.named_parameters():
        torch.testing.assert_close(trained[name], parameter, rtol=1e-4, atol=1e-6)


def test_evaluation_answers_with_the_mean_of_both(images, tmp_path) -> None:
    net = student()
    module, trainer = fitted(net, images, tmp_path, DistillationToken())
    net.eval()
    x, y = images.tensors
    with torch.no_grad():
        labels, distilled = answers(net, x)
        torch.testing.assert_close(net(x), (labels + distilled) / 2)
        assert isinstance(net.train()(x), tuple)
    scores = trainer.validate(module, DataLoader(images, 8), verbose=False)[0]
    mean = (labels + distilled) / 2
    assert scores["val/acc"] == pytest.approx(float((mean.argmax(1) == y).float().mean()))
    assert scores["val/loss"] == pytest.approx(float(F.cross_entropy(mean, y)), rel=1e-5)


def test_the_module_is_the_two_functions(random) -> None:
    own, other = random(4, 3), random(4, 5)
    chosen = other[:, [4, 0, 2]]
    hard, soft = DistillationToken(), DistillationToken(soft=True, temperature=2.0)
    for loss, expected in (
        (hard, hard_label_loss(own, chosen)),
        (soft, kd_loss(own, chosen, temperature=2.0)),
    ):
        loss.bind(LossContext(student(), None, label_map=(4, 0, 2)))
        torch.testing.assert_close(loss(own, other), expected)


def test_networks_without_such_a_token_and_bad_options_are_refused(images, tmp_path) -> None:
    with pytest.raises(ConfigurationError, match="ConvNet has no distillation token: give a distilled model of timm"):
        pl.Trainer(
            max_steps=1, callbacks=[FeatureKD(DistillationToken(), {"fc": "logits"})], default_root_dir=tmp_path
        ).fit(
            OfflineDistillation(
                ConvNet(5, widths=(4, 8)), ConvNet(5, widths=(4, 8)), task=Classification(5), response=None
            ),
            DataLoader(images, 8),
        )
    with pytest.raises(ValueError, match="temperature must be above 0"):
        DistillationToken(temperature=0.0)
