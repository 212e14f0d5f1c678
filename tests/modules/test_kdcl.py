"""KDCL against loops written by hand, its weights of validation, and its state."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdlightning import KDCL, Classification, ConfigurationError, MultiLabel, OnlineDistillation
from kdlightning.losses import kdcl_general_weights, kdcl_linear


def target_of(variant: str, logits: list[Tensor], y: Tensor, shares: Tensor) -> Tensor:
    """z_t with plain sums; the solvers have tests of their own."""
    logits = [z.detach() for z in logits]
    if variant == "naive":
        losses = [F.cross_entropy(z, y).item() for z in logits]
        return logits[losses.index(min(losses))]
    if variant == "linear":
        return kdcl_linear(logits, y)
    if variant == "min_logit":
        rows = [[z[i] - z[i, label] for z in logits] for i, label in enumerate(y.tolist())]
        return torch.stack([torch.stack(row).min(dim=0).values for row in rows])
    return sum(w * z.softmax(1) for w, z in zip(shares, logits, strict=True)).log()


def losses_of(variant: str, logits: list[Tensor], y: Tensor, temperature: float, shares: Tensor) -> list[Tensor]:
    """Each network's joint loss, 1.5 times the label's and 0.7 times the target's."""
    p = (target_of(variant, logits, y, shares) / temperature).exp()
    p = p / p.sum(1, keepdim=True)
    losses = []
    for z in logits:
        log_q = (z / temperature).log_softmax(1)
        losses.append(1.5 * F.cross_entropy(z, y) + 0.7 * temperature**2 * (p * (p.log() - log_q)).sum() / len(y))
    return losses


def shares_on(networks: list[nn.Module], loader: Any) -> Tensor:
    """The closed form of the least squared error over a validation set."""
    products = torch.zeros(len(networks), len(networks), dtype=torch.float64)
    with torch.no_grad():
        for batch in loader:
            x, y = batch.data
            errors = [network.eval()(x.double()).softmax(1) - F.one_hot(y, 5) for network in networks]
            products += torch.tensor([[float((a * b).sum()) for b in errors] for a in errors], dtype=torch.float64)
    for network in networks:
        network.train()
    shares = torch.linalg.solve(products, torch.ones(len(networks), dtype=torch.float64))
    shares = shares / shares.sum()
    return shares if shares.min() >= 0 else kdcl_general_weights(products)


@pytest.mark.parametrize(
    ("variant", "count", "accumulate", "limit"),
    [
        ("naive", 2, 1, None),
        ("naive", 3, 3, None),
        ("linear", 2, 1, None),
        ("linear", 3, 2, 3),
        ("min_logit", 2, 3, None),
        ("min_logit", 3, 1, 2),
        ("general", 2, 1, None),
        ("general", 3, 3, 3),
    ],
)
@pytest.mark.parametrize("own_views", [True, False])
def test_a_fit_equals_a_loop_by_hand(
    variant: str, count: int, accumulate: int, limit: int | None, own_views: bool, net: Any, noisy_loader: Any,
    sgd: Any, trainer: Any
) -> None:  # fmt: skip
    """With a validation in mid-epoch and one at its end, uneven last batches and, for some, several views."""
    networks = [net(3 + seed, seed) for seed in range(count)]
    twins = [copy.deepcopy(network).double() for network in networks]
    module = OnlineDistillation(
        networks[0],
        networks[1:],
        task=Classification(5),
        strategy=KDCL(variant, temperature=2.5, own_views=own_views),
        optimizer=sgd,
        weights={"task": 1.5, "kdcl": 0.7},
    )
    views = count if own_views else 1
    trainer(
        max_epochs=2,
        precision="64-true",
        limit_train_batches=1.0 if limit is None else limit,
        accumulate_grad_batches=accumulate,
        val_check_interval=2,
    ).fit(module, noisy_loader(views=views), noisy_loader(shuffle=False))

    optimizers = [sgd(twin.parameters()) for twin in twins]
    loader, checked = noisy_loader(views=views), noisy_loader(shuffle=False)
    shares = torch.full((count,), 1 / count, dtype=torch.float64)
    for epoch in range(2):
        loader.sampler.set_epoch(epoch)
        batches = list(loader)[:limit]
        for number, batch in enumerate(batches):
            seen = [batch.data[0], *(view[0] for view in batch.views)]
            logits = [twin(seen[i % len(seen)].double()) for i, twin in enumerate(twins)]
            for loss in losses_of(variant, logits, batch.data[1], 2.5, shares):
                (loss / accumulate).backward()
            if (number + 1) % accumulate == 0 or number + 1 == len(batches):
                for optimizer in optimizers:
                    optimizer.step()
                    optimizer.zero_grad()
            if (number + 1) % 2 == 0 and variant == "general":
                shares = shares_on(twins, checked)
    for mine, twin in zip(networks, twins, strict=True):
        for ours, theirs in zip(mine.parameters(), twin.parameters(), strict=True):
            # The weights of validation come from a solver that stops close to the optimum.
            assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-5 if variant == "general" else 1e-8)
    if variant == "general":
        assert torch.allclose(module.strategy.shares, shares, atol=1e-3)
        assert float(shares.max() - shares.min()) > 1e-2


@pytest.mark.parametrize("variant", ["naive", "linear", "min_logit", "general"])
def test_gradients_are_those_of_the_joint_loss(variant: str, dense: Any, samples: Any, trainer: Any) -> None:
    networks = [dense(seed, width=4 + seed).double() for seed in range(3)]
    twins = copy.deepcopy(networks)
    module = OnlineDistillation(
        networks[0],
        networks[1:],
        task=Classification(5),
        strategy=KDCL(variant, own_views=False),
        optimizer=lambda p: torch.optim.SGD(p, lr=1.0),
        weights={"task": 1.5, "kdcl": 0.7},
    )
    x, y = samples.tensors
    data = torch.utils.data.DataLoader(list(zip(x.double(), y, strict=True)), 26)
    runner = trainer(precision="64-true")
    runner.fit(module, data, data)
    losses = losses_of(variant, [twin(x.double()) for twin in twins], y, 2.0, torch.full((3,), 1 / 3))
    assert float(runner.callback_metrics["train/loss"]) == pytest.approx(float(sum(losses).detach()), rel=1e-6)
    for network, twin, loss in zip(networks, twins, losses, strict=True):
        before = list(twin.parameters())
        for ours, theirs, gradient in zip(network.parameters(), before, torch.autograd.grad(loss, before), strict=True):
            assert torch.allclose(theirs - ours, gradient, rtol=1e-6, atol=1e-8)


def test_the_ensemble_of_general_is_its_mixture(net: Any, loader: Any, trainer: Any) -> None:
    module = OnlineDistillation(
        net(3, 0), [net(9, 1)], task=Classification(5), strategy=KDCL("general", own_views=False)
    )
    trainer(max_epochs=2).fit(module, loader(), loader())
    module.eval()
    x, y = loader().dataset.tensors
    shares = module.strategy.shares.clone()
    assert abs(float(shares[0]) - 0.5) > 1e-3
    for _ in range(2):  # a validation by itself leaves the weights as they are
        scores = trainer().validate(module, loader(), verbose=False)[0]
        with torch.no_grad():
            mixed = sum(w * network(x).softmax(1) for w, network in zip(shares, module.networks.values(), strict=True))
        assert scores["val/loss_ensemble"] == pytest.approx(float(F.nll_loss(mixed.log(), y)), rel=1e-4)
        assert torch.equal(module.strategy.shares, shares)


def test_a_fit_after_a_validation_that_broke_off_starts_clean(net: Any, loader: Any, trainer: Any) -> None:
    import lightning as L

    class Break(L.Callback):
        def on_validation_batch_end(self, trainer: Any, *_: Any) -> None:
            if not trainer.sanity_checking:
                raise RuntimeError("on purpose")

    modules = [
        OnlineDistillation(net(3, 0), [net(4, 1)], task=Classification(5), strategy=KDCL("general", own_views=False))
        for _ in range(2)
    ]
    with pytest.raises(RuntimeError, match="on purpose"):
        trainer(callbacks=[Break()]).fit(modules[0], loader(), loader())
    modules[1].load_state_dict(modules[0].state_dict())
    for module in modules:
        module._seed = 3
        module.train()
        trainer().fit(module, loader(), loader())
    assert torch.equal(modules[0].strategy.shares, modules[1].strategy.shares)


@pytest.mark.parametrize("stops", [(2,), (3, 6), (4, 7)])
@pytest.mark.parametrize(("variant", "options"), [("general", {"val_check_interval": 2}), ("linear", {})])
def test_resumed_run_ends_where_the_undisturbed_one_ends(
    stops: tuple[int, ...], variant: str, options: Any, net: Any, noisy_loader: Any, fit_until: Any, same_state: Any
) -> None:
    def make() -> OnlineDistillation:
        return OnlineDistillation(
            net(3, 0, dropout=0.3), [net(4, 1), net(5, 2)], task=Classification(5), strategy=KDCL(variant)
        )

    whole = fit_until("whole", make, noisy_loader(views=3), noisy_loader(shuffle=False), **options)
    for stop in stops:
        fit_until("cut", make, noisy_loader(views=3), noisy_loader(shuffle=False), stop=stop, **options)
    resumed = fit_until("cut", make, noisy_loader(views=3), noisy_loader(shuffle=False), **options)
    same_state(whole, resumed)
    assert variant == "linear" or len(set(resumed.strategy.shares.tolist())) > 1


def test_views_that_a_loader_lacks_are_named(net: Any, loader: Any, trainer: Any) -> None:
    module = OnlineDistillation(net(3, 0), [net(4, 1), net(5, 2)], task=Classification(5), strategy=KDCL())
    with pytest.raises(ConfigurationError, match="KDCL reads 3 views"):
        trainer().fit(module, loader())


@pytest.mark.parametrize(
    ("options", "message"),
    [({"variant": "mean"}, "KDCL: variant must be one of naive"), ({"temperature": 0.0}, "KDCL: temperature")],
)
def test_bad_options_are_refused(options: Any, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        KDCL(**options)


def test_tasks_and_targets_without_one_class_are_refused(net: Any, samples: Any, trainer: Any) -> None:
    with pytest.raises(ConfigurationError, match="KDCL compares class probabilities"):
        OnlineDistillation(net(3, 0), [net(4, 1)], task=MultiLabel(5), strategy=KDCL())
    x, y = samples.tensors
    soft = torch.utils.data.DataLoader(list(zip(x, F.one_hot(y, 5).float(), strict=True)), 8)
    for variant in ("naive", "linear", "general"):
        strategy = KDCL(variant, own_views=False)
        module = OnlineDistillation(net(3, 0), [net(4, 1)], task=Classification(5), strategy=strategy)
        trainer(max_steps=1).fit(module, soft, soft)
    module = OnlineDistillation(
        net(3, 0), [net(4, 1)], task=Classification(5), strategy=KDCL("min_logit", own_views=False)
    )
    with pytest.raises(ConfigurationError, match="one class number a sample"):
        trainer(max_steps=1).fit(module, soft)


def test_bfloat16_mixed_precision_runs(net: Any, loader: Any, trainer: Any) -> None:
    module = OnlineDistillation(
        net(3, 0), [net(4, 1)], task=Classification(5), strategy=KDCL("linear", own_views=False)
    )
    runner = trainer(precision="bf16-mixed")
    runner.fit(module, loader(), loader())
    assert torch.isfinite(runner.callback_metrics["train/loss"])


@pytest.mark.parametrize("options", [{"limit_val_batches": 0}, {}])
def test_general_is_no_even_mean_for_want_of_validation(options: Any, net: Any, loader: Any, trainer: Any) -> None:
    module = OnlineDistillation(
        net(3, 0), [net(4, 1)], task=Classification(5), strategy=KDCL("general", own_views=False)
    )
    loaders = [loader(), loader()] if options else [loader()]
    with pytest.raises(ConfigurationError, match="KDCL: its weights are chosen by validation"):
        trainer(**options).fit(module, *loaders)


def test_a_self_teacher_is_no_strategy(net: Any) -> None:
    from kdlightning import CSKD

    with pytest.raises(ConfigurationError, match="strategy must be one such as DML or KDCL, not CSKD"):
        OnlineDistillation(net(3, 0), [net(4, 1)], task=Classification(5), strategy=CSKD())
