"""Self-distillation through exits against a loop written by hand, and exits as networks of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from kdlightning import (
    BYOT,
    EMA,
    RKD,
    Classification,
    ConfigurationError,
    ConvNet,
    FeatureKD,
    FitNet,
    LatestCheckpoint,
    LinearSchedule,
    MultiLabel,
    Regression,
    RelationKD,
    SelfDistillation,
    load_student,
    timm_model,
)
from kdlightning.export import export_student
from kdlightning.losses import rkd_loss

TEMPERATURE = 2.0
WEIGHTS = {"task": 1.0, "exits": 0.7, "byot": 0.3, "byot_hint": 0.05}


def three_stages(seed: int = 0, **options: Any) -> nn.Module:
    torch.manual_seed(seed)
    return ConvNet(5, widths=(3, 4, 6), **options)


def plain_terms(networks: dict[str, nn.Module], x: Tensor, y: Tensor) -> dict[str, Tensor]:
    """The four terms, sample by sample."""
    student: Any = networks["student"]
    first = student.stages[0](x)
    second = student.stages[1](first)
    deepest = student.stages[2](second)
    logits = student.fc(deepest.mean((2, 3)))
    found = {name: torch.zeros((), dtype=x.dtype) for name in WEIGHTS}

    def hard(rows: Tensor) -> Tensor:
        return sum(-(row[label].exp() / row.exp().sum()).log() for row, label in zip(rows, y, strict=True)) / len(y)

    found["task"] = hard(logits)
    for name, inputs in (("exit1", first), ("exit2", second)):
        part: Any = networks[name]
        features = part.features(inputs)
        answer = part.fc(features.mean((2, 3)))
        found["exits"] = found["exits"] + hard(answer)
        for theirs, ours in zip(logits.detach(), answer, strict=True):
            p = (theirs / TEMPERATURE).exp() / (theirs / TEMPERATURE).exp().sum()
            q = (ours / TEMPERATURE).exp() / (ours / TEMPERATURE).exp().sum()
            found["byot"] = found["byot"] + TEMPERATURE**2 * (p * (p / q).log()).sum() / len(y)
        squares = (features - deepest.detach()) ** 2
        found["byot_hint"] = found["byot_hint"] + squares.sum() / squares.numel()
    return found


@pytest.mark.parametrize(("limit", "accumulate"), [(None, 1), (2, 1), (None, 3)])
def test_a_fit_equals_a_loop_by_hand(
    limit: int | None, accumulate: int, noisy_loader: Any, sgd: Any, trainer: Any, copy_at_start: Any
) -> None:
    student = three_stages()
    start = copy_at_start
    module = SelfDistillation(
        student, BYOT(["stages.0", "stages.1"], temperature=TEMPERATURE), task=Classification(5), optimizer=sgd
    )
    runner = trainer(
        max_epochs=2,
        precision="64-true",
        limit_train_batches=1.0 if limit is None else limit,
        accumulate_grad_batches=accumulate,
        val_check_interval=2,
        callbacks=[start],
    )
    runner.fit(module, noisy_loader(), noisy_loader(shuffle=False))

    networks = nn.ModuleDict(start.networks).double()
    optimizer, loader = sgd(networks.parameters()), noisy_loader()
    for epoch in range(2):
        loader.sampler.set_epoch(epoch)
        batches = list(loader)[:limit]
        for number, batch in enumerate(batches):
            terms = plain_terms(dict(networks.items()), batch.data[0].double(), batch.data[1])
            (sum(WEIGHTS[name] * value for name, value in terms.items()) / accumulate).backward()
            if (number + 1) % accumulate == 0 or number + 1 == len(batches):
                optimizer.step()
                optimizer.zero_grad()
    for name, network in module.networks.items():
        ours, theirs = network.state_dict(), networks[name].state_dict()
        for key, value in theirs.items():
            torch.testing.assert_close(ours[key], value, rtol=1e-8, atol=1e-11, msg=f"{name}.{key}")
    shown = {name: float(value) for name, value in runner.callback_metrics.items()}
    for name, value in terms.items():
        assert shown[f"train/loss_{name}"] == pytest.approx(float(value.detach()), rel=1e-6)


def test_metrics_of_each_exit_and_of_all_together(loader: Any, trainer: Any) -> None:
    module = SelfDistillation(three_stages(), BYOT(["stages.0", "stages.1"]), task=Classification(5))
    runner = trainer()
    runner.fit(module, loader(), loader())
    module.eval()
    x, y = loader().dataset.tensors
    with torch.no_grad():
        first = module.student.stages[0](x)
        second = module.student.stages[1](first)
        answers = [module.student(x), module.networks["exit1"](first), module.networks["exit2"](second)]
    answers.append(sum(answers) / 3)
    for suffix, answer in zip(("", "_exit1", "_exit2", "_ensemble"), answers, strict=True):
        accuracy = float((answer.argmax(1) == y).float().mean())
        assert float(runner.callback_metrics[f"val/acc{suffix}"]) == pytest.approx(accuracy)
    given = {id(p) for group in runner.optimizers[0].param_groups for p in group["params"]}
    assert given == {id(p) for network in module.networks.values() for p in network.parameters()}


def test_callbacks_stand_between_exits_and_the_student(loader: Any, trainer: Any, copy_at_start: Any) -> None:
    start = copy_at_start
    module = SelfDistillation(
        three_stages(),
        BYOT(["stages.0", "stages.1"]),
        task=Classification(5),
        weights={"task": 0.0, "exits": 0.0, "byot": 0.0, "byot_hint": 0.0, "rkd_exit2": 3.0},
        optimizer=lambda p: torch.optim.SGD(p, lr=1.0),
    )
    callbacks = [
        FeatureKD(FitNet(relu=False), {"features": "stages.1"}, weight=2.0),
        RelationKD(RKD(), {"pre_logits": "pre_logits"}),
        start,
    ]
    runner = trainer(max_steps=1, callbacks=callbacks)
    runner.fit(module, loader())
    assert sorted(module.adapters) == ["fit_net_exit1", "fit_net_exit2", "rkd_exit1", "rkd_exit2"]
    shown = {name: float(value) for name, value in runner.callback_metrics.items()}
    x, _ = next(iter(loader()))
    student: Any = start.networks["student"]
    maps = [student.stages[0](x)]
    maps += [student.stages[1](maps[0])]
    target = student.pool(student.stages[2](maps[1])).flatten(1).detach()
    for number, inputs in enumerate(maps, start=1):
        part: Any = start.networks[f"exit{number}"]
        expected = rkd_loss(part.features(inputs).mean((2, 3)), target)
        assert shown[f"train/loss_rkd_exit{number}"] == pytest.approx(float(expected.detach()), rel=1e-5)
    hints = shown["train/loss_fit_net_exit1"] + shown["train/loss_fit_net_exit2"]
    total = 2 * hints + shown["train/loss_rkd_exit1"] + 3 * shown["train/loss_rkd_exit2"]
    assert shown["train/loss"] == pytest.approx(total, rel=1e-5)
    assert torch.equal(module.student.fc.weight, student.fc.weight), "the student's end is a constant to the exits"
    assert not torch.equal(module.student.stages[0][0].weight, student.stages[0][0].weight)


def sequence(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 5))


def transformer() -> nn.Module:
    sizes = {"img_size": 32, "patch_size": 8, "depth": 3, "embed_dim": 16, "num_heads": 2}
    return timm_model("vit_tiny_patch16_224", num_classes=5, options=sizes)


STUDENTS = {
    "signals": (lambda: three_stages(dimensions=1), ["stages.0", "stages.1"], None, (1, 20), "pool:input"),
    "vectors": (sequence, ["1", "2"], "5:input", (1, 8, 8), "5:input"),
    "tokens": (transformer, ["blocks.0", "blocks.1"], "norm", (3, 32, 32), "norm"),
    "tokens and a vector": (transformer, ["blocks.0", "blocks.1"], None, (3, 32, 32), "pre_logits"),
    "torchvision's names": (
        lambda: timm_model("resnet10t", num_classes=5, in_chans=1),
        ["layer1", "layer2"],
        None,
        (1, 32, 32),
        "global_pool:input",
    ),
}


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("kind", STUDENTS)
def test_students_of_every_kind(kind: str, precision: str, trainer: Any) -> None:
    build, taps, deepest, shape, found = STUDENTS[kind]
    data = TensorDataset(torch.randn(8, *shape), torch.arange(8) % 5)
    module = SelfDistillation(build(), BYOT(taps, deepest=deepest), task=Classification(5))
    runner = trainer(precision=precision)
    runner.fit(module, DataLoader(data, 4), DataLoader(data, 4))
    assert module.teacher.deepest == found
    assert list(module.networks) == ["student", "exit1", "exit2"]
    assert all(torch.isfinite(value) for value in runner.callback_metrics.values())
    signed = any(isinstance(layer, nn.ReLU) for layer in list(module.networks["exit1"].features.layers)[-1:])
    assert signed == (kind != "tokens")


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_broken_run_ends_where_the_undisturbed_one_ends(
    accumulate: int, noisy_loader: Any, fit_until: Any, same_state: Any
) -> None:
    def run(name: str, stop: int | None = None) -> Any:
        return fit_until(
            name,
            lambda: SelfDistillation(three_stages(dropout=0.3), BYOT(["stages.0"]), task=Classification(5)),
            *(noisy_loader(), noisy_loader(shuffle=False)),
            stop=stop,
            accumulate_grad_batches=accumulate,
            callbacks=[EMA(0.5)],
        )

    whole = run("whole")
    run("cut", 1)
    run("cut", 2)
    same_state(whole, run("cut"))


@pytest.fixture
def trained(loader: Any, trainer: Any, tmp_path: Path) -> tuple[SelfDistillation, dict[str, float], Path]:
    """A module, its scores and its checkpoint."""
    module = SelfDistillation(three_stages(), BYOT(["stages.0", "stages.1"]), task=Classification(5))
    runner = trainer(max_epochs=2, callbacks=[LatestCheckpoint(dirpath=str(tmp_path))])
    runner.fit(module, loader(), loader())
    scores = {name: float(value) for name, value in runner.callback_metrics.items() if name.startswith("val/")}
    return module, scores, tmp_path / "last.ckpt"


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
def test_a_checkpoint_brings_its_exits(trained: Any, loader: Any, trainer: Any, same_state: Any) -> None:
    module, scores, path = trained

    def fresh() -> BYOT:
        return BYOT(["stages.0", "stages.1"])

    measured = SelfDistillation(three_stages(7), fresh(), task=Classification(5))
    (found,) = trainer().validate(measured, loader(), ckpt_path=str(path), verbose=False)
    assert found == pytest.approx(scores)
    options = {"student": three_stages(8), "task": Classification(5), "weights_only": True}
    loaded = SelfDistillation.load_from_checkpoint(path, teacher=fresh(), **options)
    assert list(loaded.networks) == ["student"], "shapes are not known yet"
    (found,) = trainer().validate(loaded, loader(), verbose=False)
    assert found == pytest.approx(scores)
    same_state(loaded.teacher, module.teacher)
    assert len(trainer().predict(loaded, DataLoader(loader().dataset.tensors[0], 8))) == 4


def test_the_student_needs_no_exits(trained: Any, loader: Any, trainer: Any, same_state: Any, tmp_path: Path) -> None:
    module, scores, path = trained
    alone = SelfDistillation.load_from_checkpoint(path, student=three_stages(8), task=Classification(5))
    same_state(alone.student, module.student)
    (found,) = trainer().validate(alone, loader(), verbose=False)
    assert found == pytest.approx({name: scores[name] for name in ("val/acc", "val/loss")})
    same_state(load_student(path, three_stages(9)), module.student)
    inputs = {"shape": [1, 8, 8], "dtype": "float32"}
    done = export_student(path, tmp_path / "export", student=three_stages(9), inputs=inputs)
    assert done.difference == 0


def test_exits_at_other_places_are_refused_in_a_sentence(trained: Any, loader: Any, trainer: Any) -> None:
    _, _, path = trained
    other = SelfDistillation.load_from_checkpoint(
        path, student=three_stages(8), teacher=BYOT(["stages.1", "stages.0"]), task=Classification(5)
    )
    with pytest.raises(ConfigurationError, match="the checkpoint's exit1: features.layers.0.weight has shape"):
        trainer().validate(other, loader(), verbose=False)


def test_a_command_of_its_own_tests_the_exits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import json

    from kdlightning.cli import main

    monkeypatch.chdir(tmp_path)
    data = ["--data.init_args.train_limit=64", "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"]
    assert main(["fit", "-c", "self/byot", "--trainer.max_epochs=1", *data]) == 0
    assert main(["test", "-c", "self/byot", "--trainer.max_epochs=1", *data]) == 0
    (path,) = Path("runs/self/byot/seed0").glob("version_*/result.json")
    metrics = json.loads(path.read_text())["metrics"]["test"]["last"]
    assert {"acc", "acc_exit1", "acc_exit2", "acc_ensemble"} <= set(metrics)
    assert main(["export", str(path.parent / "checkpoints" / "last.ckpt"), "--output", "student"]) == 0


@pytest.mark.parametrize("resting", [["exits"], ["byot", "byot_hint"], ["task"], ["exits", "byot", "byot_hint"]])
def test_terms_may_rest_for_a_while(resting: list[str], loader: Any, trainer: Any) -> None:
    weights = {name: LinearSchedule(0, 1, begin=0.5, until=1.0) for name in resting}
    module = SelfDistillation(three_stages(), BYOT(["stages.0"]), task=Classification(5), weights=weights)
    seen: list[set[str]] = []

    class Note(L.Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
            seen.append(set(pl_module._last_terms) - {"loss"})

    trainer(max_epochs=2, callbacks=[Note()]).fit(module, loader())
    assert seen[0] == set(WEIGHTS) - set(resting)
    assert seen[-1] == set(WEIGHTS)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"exits": []}, "exits must name different taps"),
        ({"exits": ["stages.0", "stages.0"]}, "exits must name different taps"),
        ({"exits": "stages.0"}, "exits must name different taps"),
        ({"exits": ["stages.0"], "deepest": "stages.0"}, "not the deepest"),
        ({"exits": ["stages.0"], "temperature": 0.0}, "temperature must be positive"),
    ],
)
def test_bad_options_are_refused(options: Any, message: str) -> None:
    with pytest.raises(ConfigurationError, match=f"BYOT: .*{message}|BYOT: {message}"):
        BYOT(**options)


@pytest.mark.parametrize("task", [MultiLabel(5), Regression()])
def test_tasks_without_one_distribution_a_sample_are_refused(task: Any) -> None:
    with pytest.raises(ConfigurationError, match="BYOT compares class probabilities"):
        SelfDistillation(three_stages(), BYOT(["stages.0"]), task=task)


def test_taps_that_do_not_exist_are_named(loader: Any, trainer: Any) -> None:
    module = SelfDistillation(three_stages(), BYOT(["stages.7"]), task=Classification(5))
    with pytest.raises(ConfigurationError, match=r"stages\.7"):
        trainer().fit(module, loader())


def test_a_vector_does_not_become_a_map(loader: Any, trainer: Any) -> None:
    module = SelfDistillation(three_stages(), BYOT(["pre_logits"], "stages.2"), task=Classification(5))
    with pytest.raises(ConfigurationError, match="name a deepest tap with as many dimensions"):
        trainer().fit(module, loader())


def test_the_default_deepest_tap_is_no_exit() -> None:
    student = three_stages()
    deepest = SelfDistillation(student, BYOT(["stages.0"]), task=Classification(5)).teacher.deepest
    with pytest.raises(ConfigurationError, match="is the deepest tap, and no exit"):
        SelfDistillation(student, BYOT(["stages.0", deepest]), task=Classification(5))


def test_a_test_follows_a_fit_in_double_precision(loader: Any, trainer: Any) -> None:
    module = SelfDistillation(three_stages(), BYOT(["stages.0"]), task=Classification(5))
    x, y = loader().dataset.tensors
    data = DataLoader(TensorDataset(x, y), 8)
    for _ in range(2):
        runner = trainer(precision="64-true", callbacks=[RelationKD(RKD(), {"pre_logits": "pre_logits"})])
        runner.fit(module, data)
    scores = runner.test(module, data, verbose=False)[0]
    assert {"test/acc_exit1", "test/acc_ensemble"} <= set(scores)
