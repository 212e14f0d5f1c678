"""Self-distillation from the last mini-batch against a loop written by hand, and its state."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from kdlightning import DLB, EMA, Classification, ConfigurationError, LatestCheckpoint, Regression, SelfDistillation
from kdlightning.data.batch import Batch
from kdlightning.data.loader import ResumableLoader
from kdlightning.models.output import ModelOutput
from kdlightning.modules.step import DistillStep


def pull(new: Tensor, old: Tensor, temperature: float) -> Tensor:
    """T² KL(old ‖ new), a mean over samples, with plain sums."""
    p, q = ((z / temperature).exp() / (z / temperature).exp().sum(1, keepdim=True) for z in (old.detach(), new))
    return temperature**2 * (p * (p / q).log()).sum() / len(new)


@pytest.mark.parametrize(("limit", "accumulate"), [(None, 1), (2, 1), (3, 2), (None, 3)])
def test_a_fit_equals_a_loop_by_hand(
    limit: int | None, accumulate: int, net: Any, noisy_loader: Any, sgd: Any, trainer: Any
) -> None:
    """With a validation in mid-epoch, uneven last batches, and batch norms over both halves together."""
    student = net(4, 0)
    twin = copy.deepcopy(student).double()
    weights = {"task": 1.1, "dlb": 0.6}
    module = SelfDistillation(student, DLB(temperature=2.0), task=Classification(5), optimizer=sgd, weights=weights)
    runner = trainer(
        max_epochs=3,
        precision="64-true",
        limit_train_batches=1.0 if limit is None else limit,
        accumulate_grad_batches=accumulate,
        val_check_interval=2,
    )
    runner.fit(module, noisy_loader(views=2), noisy_loader(shuffle=False))

    optimizer, loader = sgd(twin.parameters()), noisy_loader(views=2)
    last: Any = None
    for epoch in range(3):
        loader.sampler.set_epoch(epoch)
        batches = list(loader)[:limit]
        for number, batch in enumerate(batches):
            x, y = batch.data[0].double(), batch.data[1]
            if last is None:
                logits = twin(x)
                loss = 1.1 * F.cross_entropy(logits, y)
            else:
                old_x, old_y, old = last
                both = twin(torch.cat([x, old_x]))
                logits, new = both[: len(x)], both[len(x) :]
                loss = 1.1 * F.cross_entropy(both, torch.cat([y, old_y])) + 0.6 * pull(new, old, 2.0)
            (loss / accumulate).backward()
            last = (batch.views[0][0].double(), y, logits.detach())
            if (number + 1) % accumulate == 0 or number + 1 == len(batches):
                optimizer.step()
                optimizer.zero_grad()
    ours, theirs = student.state_dict(), twin.state_dict()
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, rtol=1e-9, atol=1e-11, msg=name)
    assert float(runner.callback_metrics["train/loss"]) == pytest.approx(float(loss.detach()), rel=1e-6)
    assert torch.equal(module.teacher.get_extra_state()["target"], last[1])
    torch.testing.assert_close(module.teacher.get_extra_state()["logits"], last[2])


def test_gradients_of_a_step_are_those_of_the_joint_loss(dense: Any) -> None:
    network, teacher = dense(0).double(), DLB(temperature=3.0)
    torch.manual_seed(1)
    x, second, old_x = (torch.randn(n, 1, 8, 8, dtype=torch.float64) for n in (4, 4, 3))
    old = torch.randn(3, 5, dtype=torch.float64)
    teacher.set_extra_state({"inputs": old_x, "target": torch.tensor([1, 0, 4]), "logits": old})
    batch = Batch(x, torch.tensor([2, 2, 0, 1]), views=(second,), size=4)
    parts = teacher.shown(batch)
    answers = [ModelOutput(network(part.inputs)) for part in parts]
    step = DistillStep(batch, answers[0], ModelOutput(), student_views=answers, parts=parts)
    term = teacher.terms(step, 0.0, lambda name: True)["dlb"]

    loss = torch.zeros((), dtype=torch.float64)
    for z, target in zip(network(old_x), old, strict=True):
        p, q = ((row / 3).exp() / (row / 3).exp().sum() for row in (target, z))
        for a, b in zip(p, q, strict=True):
            loss = loss + 9 * a * torch.log(a / b) / 3
    torch.testing.assert_close(term, loss, rtol=1e-11, atol=1e-12)
    ours, theirs = (torch.autograd.grad(value, list(network.parameters())) for value in (term, loss))
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-9, atol=1e-12)

    teacher.remember(step)
    state = teacher.get_extra_state()
    assert torch.equal(state["inputs"], second)
    assert torch.equal(state["logits"], answers[0].logits)
    assert not state["logits"].requires_grad


class Keyed(Dataset):
    """Inputs by name, some of them nested."""

    def __init__(self, samples: Any) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, number: int) -> dict[str, Any]:
        x, y = self.samples[number]
        return {
            "image": x + 0.3 * torch.randn(x.shape),
            "more": {"shift": torch.randn(()), "pair": (x, x)},
            "labels": y,
        }


class TakesNames(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, image: Tensor, more: dict[str, Any]) -> Tensor:
        return self.inner(image + more["shift"].view(-1, 1, 1, 1) + more["pair"][1])


@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize(("accumulate", "stop"), [(1, 1), (1, 3), (1, 4), (1, 6), (2, 1), (2, 2), (3, 3)])
def test_a_broken_run_ends_where_the_undisturbed_one_ends(
    stop: int, accumulate: int, named: bool, net: Any, samples: Any, noisy_loader: Any, fit_until: Any
) -> None:
    def make() -> Any:
        network = net(4, 0, dropout=0.3)
        return SelfDistillation(TakesNames(network) if named else network, DLB(), task=Classification(5))

    def run(name: str, at: int | None = None) -> Any:
        loaders = noisy_loader(views=2), noisy_loader(shuffle=False)
        if named:
            loaders = tuple(
                ResumableLoader(Keyed(samples), 8, shuffle, seed=3, views=2 if shuffle else 1)
                for shuffle in (True, False)
            )
        options = {"accumulate_grad_batches": accumulate, "val_check_interval": 2}
        return fit_until(name, make, *loaders, stop=at, **options)

    whole = run("whole")
    run("cut", stop)
    resumed = run("cut")
    ours, theirs = whole.state_dict(), resumed.state_dict()
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not same(ours[name], theirs[name])] == []
    last = resumed.teacher.get_extra_state()
    if named:
        assert set(last["inputs"]) == {"image", "more"}
        assert isinstance(last["inputs"]["more"]["pair"], (tuple, list))


def test_an_average_of_the_weights_goes_on_too(net: Any, noisy_loader: Any, fit_until: Any) -> None:
    def run(name: str, at: int | None = None) -> Any:
        loaders = noisy_loader(views=2), noisy_loader(shuffle=False)
        make = lambda: SelfDistillation(net(4, 0), DLB(), task=Classification(5))  # noqa: E731
        return fit_until(name, make, *loaders, stop=at, callbacks=[EMA(0.6)])

    whole = run("whole")
    run("cut", 5)
    assert same(whole.state_dict(), run("cut").state_dict())


def same(first: Any, second: Any) -> bool:
    if isinstance(first, Tensor):
        return torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[name], second[name]) for name in first)
    return len(first) == len(second) and all(same(a, b) for a, b in zip(first, second, strict=True))


def test_the_checkpoint_holds_one_batch_in_plain_tensors(
    net: Any, noisy_loader: Any, trainer: Any, tmp_path: Path
) -> None:
    module = SelfDistillation(net(4, 0), DLB(), task=Classification(5))
    trainer(limit_train_batches=2, callbacks=[LatestCheckpoint(1, dirpath=str(tmp_path))]).fit(
        module, noisy_loader(views=2)
    )
    state = torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"]["teacher._extra_state"]
    assert {name: tuple(value.shape) for name, value in state.items()} == {
        "inputs": (8, 1, 8, 8),
        "target": (8,),
        "logits": (8, 5),
    }
    assert all(value.untyped_storage().nbytes() == value.numel() * value.element_size() for value in state.values())


def test_the_first_step_has_nothing_to_look_back_at(net: Any, noisy_loader: Any, trainer: Any) -> None:
    import lightning as L

    sizes: list[int] = []
    terms: list[float] = []

    class Watch(L.Callback):
        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            terms.append(float(trainer.callback_metrics["train/loss_dlb"]))

    student = net(4, 0)
    student.register_forward_pre_hook(lambda layer, inputs: sizes.append(len(inputs[0])) if layer.training else None)
    module = SelfDistillation(student, DLB(), task=Classification(5))
    trainer(max_epochs=2, callbacks=[Watch()]).fit(module, noisy_loader(views=2))
    assert sizes == [8, 16, 16, 10, 10, 16, 16, 10]
    assert terms[0] == 0
    assert all(term > 0 for term in terms[1:])


def test_several_ranks_begin_without_a_last_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    teacher = DLB()
    state = {"inputs": torch.zeros(2, 3), "target": torch.zeros(2).long(), "logits": torch.zeros(2, 5)}
    teacher.set_extra_state(state)
    teacher.start(10, 1, "meta")
    assert all(value.device.type == "meta" for value in teacher.get_extra_state().values())
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    teacher.start(10, 1, "cpu")
    assert teacher.get_extra_state() == {}
    assert len(teacher.shown(Batch(torch.zeros(2, 3), size=2))) == 1


def test_a_checkpoint_of_one_step_loads_without_the_teacher(net: Any, noisy_loader: Any, trainer: Any) -> None:
    module = SelfDistillation(net(4, 0), DLB(), task=Classification(5))
    trainer(max_steps=1).fit(module, noisy_loader(views=2))
    SelfDistillation(net(4, 1), task=Classification(5)).load_state_dict(module.state_dict())
    other = SelfDistillation(net(4, 1), DLB(), task=Classification(5))
    other.load_state_dict(module.state_dict())
    assert same(other.teacher.get_extra_state(), module.teacher.get_extra_state())


def test_mixed_targets_will_do(trainer: Any) -> None:
    from kdlightning import ConvNet, Digits

    data = Digits(batch_size=32, train_limit=96, pin_memory=False, mixup=0.5)
    module = SelfDistillation(ConvNet(10, widths=(4,)), DLB(), task=Classification(10))
    runner = trainer(precision="bf16-mixed")
    runner.fit(module, datamodule=data)
    assert runner.callback_metrics["train/loss_dlb"] > 0


def test_bad_input_is_refused(net: Any, resumable_loader: Any, trainer: Any) -> None:
    for temperature in (0.0, -1.0, float("nan")):
        with pytest.raises(ConfigurationError, match="DLB: temperature must be positive"):
            DLB(temperature)
    with pytest.raises(ConfigurationError, match="DLB compares class probabilities"):
        SelfDistillation(nn.Linear(4, 1), DLB(), task=Regression())
    module = SelfDistillation(net(4, 0), DLB(), task=Classification(5))
    with pytest.raises(ConfigurationError, match="DLB reads 2 views of each sample, and this loader gives 1"):
        trainer().fit(module, resumable_loader())


def test_a_second_fit_begins_without_the_firsts_samples(net: Any, noisy_loader: Any, trainer: Any) -> None:
    from kdlightning import IndexedViews, resumable

    module = SelfDistillation(net(4, 0), DLB(), task=Classification(5))
    trainer().fit(module, noisy_loader(views=2))
    larger = TensorDataset(torch.randn(8, 1, 12, 12), torch.arange(8) % 5)
    runner = trainer(limit_train_batches=1)
    runner.fit(module, resumable(DataLoader(IndexedViews(larger, views=2), 8)))
    assert runner.callback_metrics["train/loss_dlb"] == 0
    assert len(module.teacher.get_extra_state()["logits"]) == 8
