"""Several frozen networks teach as one, are bit for bit what they were, and nobody sees them."""

from __future__ import annotations

import copy
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from kdlightning import (
    AT,
    KD,
    CausalLM,
    Classification,
    ConfigurationError,
    ConvNet,
    EnsembleTeacher,
    FeatureKD,
    ForwardKL,
    FrozenTeacher,
    LatestCheckpoint,
    MultiLabel,
    OfflineDistillation,
    Regression,
    load_student,
    resumable,
    transformers_model,
)
from kdlightning.data.batch import Batch
from kdlightning.losses import kd_loss
from kdlightning.teachers.ensemble import confidence_weights


def net(width: int, **options: Any) -> nn.Module:
    model = ConvNet(5, widths=(width, 2 * width), **options)
    with torch.no_grad():  # running statistics that differ from any batch's
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2)
    return model


class Fixed(nn.Module):
    """Answers what it is told."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.register_buffer("logits", logits)

    def forward(self, x: Tensor) -> Tensor:
        return self.logits[: len(x)]


@pytest.fixture
def three() -> list[Tensor]:
    generator = torch.Generator().manual_seed(5)
    return [3 * torch.randn(6, 4, generator=generator, dtype=torch.float64) for _ in range(3)]


def answer(teacher: EnsembleTeacher, target: Tensor | None = None) -> Tensor:
    logits: Tensor = teacher(Batch(torch.zeros(6, 1), target), None).logits
    return logits


def ensemble(answers: list[Tensor], **options: Any) -> EnsembleTeacher:
    return EnsembleTeacher([Fixed(logits) for logits in answers], **options)


def test_logits_are_averaged_plainly_or_by_weight(three: list[Tensor]) -> None:
    assert torch.allclose(answer(ensemble(three)), sum(three) / 3)
    assert torch.allclose(answer(ensemble(three, weights=[1, 0, 3])), 0.25 * three[0] + 0.75 * three[2])


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_probabilities_are_averaged_at_their_temperature(three: list[Tensor], temperature: float) -> None:
    teacher = ensemble(three, weights=[1, 0, 3], average="probabilities", temperature=temperature)
    expected = 0.25 * (three[0] / temperature).softmax(1) + 0.75 * (three[2] / temperature).softmax(1)
    assert torch.allclose((answer(teacher) / temperature).softmax(1), expected)


def test_averaged_probabilities_give_the_gradient_of_the_averaged_losses(three: list[Tensor]) -> None:
    target = torch.tensor([0, 1, 2, 3, 0, 1])
    student = torch.randn(6, 4, dtype=torch.float64, requires_grad=True)
    teacher = ensemble(three, confidence=True, average="probabilities", temperature=4.0)
    (ours,) = torch.autograd.grad(kd_loss(student, answer(teacher, target)), student)
    weights = confidence_weights(three, target)
    losses = [weights[k, i] * kd_loss(student[i : i + 1], three[k][i : i + 1]) / 6 for k in range(3) for i in range(6)]
    (theirs,) = torch.autograd.grad(sum(losses), student)
    assert torch.allclose(ours, theirs)


@pytest.mark.parametrize("soft", [False, True])
def test_confidence_is_the_formula(three: list[Tensor], soft: bool) -> None:
    target = torch.tensor([0, 3, 2, 1, 1, 0])
    given = 0.8 * nn.functional.one_hot(target, 4).double() + 0.05 if soft else target
    expected = torch.zeros(6, 4, dtype=torch.float64)
    for i in range(6):
        errors = []
        for logits in three:
            probabilities = [torch.exp(value) for value in logits[i]]
            logs = [torch.log(p / sum(probabilities)) for p in probabilities]
            hard = -logs[int(target[i])]
            errors.append(-sum(t * log for t, log in zip(given[i], logs, strict=True)) if soft else hard)
        for k, logits in enumerate(three):
            share = torch.exp(errors[k]) / sum(torch.exp(error) for error in errors)
            expected[i] += (1 - share) / 2 * logits[i]
    assert torch.allclose(answer(ensemble(three, confidence=True), given), expected)


def test_a_member_sure_of_the_label_outweighs_one_sure_of_another() -> None:
    right, wrong = torch.tensor([[30.0, 0, 0]]), torch.tensor([[0.0, 30, 0]])
    weights = confidence_weights([right, wrong], torch.tensor([0]))
    assert torch.allclose(weights, torch.tensor([[1.0], [0.0]]), atol=1e-6)
    weights = confidence_weights([right * 1e30, wrong * 1e30, wrong * 0], torch.tensor([1]))
    assert torch.allclose(weights.sum(0), torch.ones(1))
    forbids = torch.tensor([[-torch.inf, 0.0, 0.0]])
    weights = confidence_weights([right, forbids], torch.tensor([0]))
    assert torch.equal(weights, torch.tensor([[1.0], [0.0]]))


def test_labels_are_read_in_training_alone(three: list[Tensor]) -> None:
    target = torch.tensor([0, 3, 2, 1, 1, 0])
    teacher = ensemble(three, confidence=True)
    assert not torch.allclose(answer(teacher, target), sum(three) / 3)
    teacher.eval()
    for labels in (target, None):
        assert torch.allclose(answer(teacher, labels), sum(three) / 3)
    teacher.train()
    with pytest.raises(ConfigurationError, match="confidence reads labels, and this batch has none"):
        answer(teacher)


@pytest.mark.parametrize("confidence", [False, True])
def test_no_training_changes_its_members(confidence: bool, samples: Any, trainer: Any) -> None:
    members = [net(6, dropout=0.5), net(5)]
    before = [copy.deepcopy(member.state_dict()) for member in members]
    teacher = EnsembleTeacher([members[0], FrozenTeacher(members[1])], confidence=confidence)
    module = OfflineDistillation(net(4), teacher, task=Classification(5))
    trainer(max_epochs=2).fit(module, DataLoader(samples, 8), DataLoader(samples, 8))
    module.train()
    trainer().fit(module, DataLoader(samples, 8))
    for member, state in zip(members, before, strict=True):
        assert all(torch.equal(state[name], value) for name, value in member.state_dict().items())
        assert not any(p.requires_grad for p in member.parameters())
        assert not any(m.training for m in member.modules())


def test_module_tree_does_not_have_the_members() -> None:
    members = [net(6), net(5)]
    module = OfflineDistillation(net(4), EnsembleTeacher(members), task=Classification(5))
    inside = {id(p) for member in members for p in member.parameters()}
    assert not inside & {id(p) for p in module.parameters()}
    assert not any(name.startswith("teacher") for name in module.state_dict())
    copied = copy.deepcopy(module)
    assert [member.network for member in copied.teacher.members] == members


def test_averages_of_the_module_leave_the_members_alone(samples: Any, trainer: Any) -> None:
    from lightning.pytorch.callbacks import EMAWeightAveraging

    members = [net(6), net(5)]
    before = [copy.deepcopy(member.state_dict()) for member in members]
    module = OfflineDistillation(net(4), EnsembleTeacher(members), task=Classification(5))
    trainer(max_epochs=2, callbacks=[EMAWeightAveraging(decay=0.5)]).fit(module, DataLoader(samples, 8))
    for member, state in zip(members, before, strict=True):
        assert all(torch.equal(state[name], value) for name, value in member.state_dict().items())


def test_moves_follow() -> None:
    members = [net(6), net(5)]
    module = OfflineDistillation(net(4), EnsembleTeacher(members, weights=[1, 2]), task=Classification(5))
    module.double()
    assert {p.dtype for member in members for p in member.parameters()} == {torch.float64}
    module.bfloat16()
    assert {p.dtype for member in members for p in member.parameters()} == {torch.float64}, "never to less"
    module.to("meta")
    assert {p.device.type for member in members for p in member.parameters()} == {"meta"}


def test_it_is_scored_without_the_labels(samples: Any, trainer: Any) -> None:
    members = [net(6), net(5)]
    module = OfflineDistillation(net(4), EnsembleTeacher(members, confidence=True), task=Classification(5))
    runner = trainer(max_epochs=2)
    runner.fit(module, DataLoader(samples, 8), resumable(samples, batch_size=8, shuffle=False))
    x, y = samples.tensors
    mean = sum(member(x) for member in members) / 2
    assert float(runner.callback_metrics["val/teacher_acc"]) == pytest.approx(
        float((mean.argmax(1) == y).float().mean())
    )
    ours = module.student.eval()(x)
    kl = nn.functional.kl_div(ours.log_softmax(1), mean.log_softmax(1), log_target=True, reduction="batchmean")
    assert float(runner.callback_metrics["val/kl"]) == pytest.approx(float(kl.detach()), abs=1e-5)
    rows = trainer().predict(module, DataLoader(samples.tensors[0], 8))
    assert len(rows) == 3


def test_training_learns_from_the_average_of_the_moment(samples: Any, trainer: Any) -> None:
    class Read(L.Callback):
        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            losses.append(float(trainer.callback_metrics["train/loss_kd"]))

    losses: list[float] = []
    members, student = [net(6), net(5)], net(4)
    x, y = samples.tensors[0][:8], samples.tensors[1][:8]
    twin = copy.deepcopy(student)
    teacher = EnsembleTeacher(members, confidence=True, average="probabilities", temperature=2.0)
    module = OfflineDistillation(student, teacher, task=Classification(5), response=KD(temperature=2.0))
    trainer(callbacks=[Read()], max_steps=1).fit(module, DataLoader(samples, 8))
    weights = confidence_weights([member(x) for member in members], y)
    target = sum(w[:, None] * (member(x) / 2).softmax(1) for w, member in zip(weights, members, strict=True))
    expected = (target * (target.log() - (twin(x) / 2).log_softmax(1))).sum(1).mean() * 4
    assert losses == [pytest.approx(float(expected.detach()), rel=1e-4)]


def test_checkpoints_load_without_it(samples: Any, trainer: Any, tmp_path: Any) -> None:
    module = OfflineDistillation(net(4), EnsembleTeacher([net(6), net(5)]), task=Classification(5))
    trainer(callbacks=[LatestCheckpoint(dirpath=str(tmp_path))]).fit(module, DataLoader(samples, 8))
    student = load_student(tmp_path / "last.ckpt", ConvNet(5, widths=(4, 8)))
    assert torch.equal(student(samples.tensors[0]), module.student.eval()(samples.tensors[0]))


def test_each_member_keeps_its_own_classes_and_normalisation(samples: Any) -> None:
    x = samples.tensors[0]
    wide, other = ConvNet(9), net(5)
    mapping = [8, 0, 3, 4, 1]
    normalised = FrozenTeacher(other, student_normalization=([0.5], [0.2]), teacher_normalization=([0.1], [0.7]))
    teacher = EnsembleTeacher([FrozenTeacher(wide, label_map=mapping), normalised])
    expected = (wide.eval()(x)[:, mapping] + other((x * 0.2 + 0.5 - 0.1) / 0.7)) / 2
    assert torch.allclose(teacher(Batch(x), None).logits, expected, atol=1e-5)
    with pytest.raises(ConfigurationError, match=r"member 0 gives logits \(22, 9\) and member 1 \(22, 5\).*label_map"):
        EnsembleTeacher([ConvNet(9), net(5)])(Batch(x), None)


def test_taps_are_refused_with_the_reason(samples: Any, trainer: Any) -> None:
    module = OfflineDistillation(net(4), EnsembleTeacher([net(6), net(5)]), task=Classification(5))
    callback = FeatureKD(AT(), {"stages.0": "stages.0"})
    with pytest.raises(ConfigurationError, match="inside the teacher, and EnsembleTeacher provides logits only"):
        trainer(callbacks=[callback]).fit(module, DataLoader(samples, 8))


def test_nothing_runs_if_nobody_reads_logits(samples: Any, trainer: Any) -> None:
    passes: list[int] = []
    members = [net(6), net(5)]
    members[0].register_forward_hook(lambda *_: passes.append(1))
    module = OfflineDistillation(net(4), EnsembleTeacher(members), task=Classification(5), response=None)
    trainer().fit(module, DataLoader(samples, 8))
    assert passes == []


def test_a_member_that_shares_weights_with_the_student_is_refused() -> None:
    student = net(4)
    for shared in (student, nn.Sequential(student)):
        with pytest.raises(ConfigurationError, match="build two networks"):
            OfflineDistillation(student, EnsembleTeacher([net(6), shared]), task=Classification(5))


class Pixels(Classification):
    """A task with an answer for each pixel."""

    dense = True


@pytest.mark.parametrize(
    ("options", "task", "sentence"),
    [
        ({"average": "probabilities"}, Pixels(5), "Pixels has none: set average: logits"),
        ({"confidence": True}, Pixels(5), "Pixels has not one class a sample: leave confidence out"),
        ({"average": "probabilities"}, Regression(5), "Regression has none: set average: logits"),
        ({"average": "probabilities"}, MultiLabel(5), "MultiLabel has none: set average: logits"),
        ({"confidence": True}, MultiLabel(5), "MultiLabel has not one class a sample: leave confidence out"),
        ({"confidence": True}, CausalLM(), "CausalLM has not one class a sample: leave confidence out"),
    ],
)
def test_tasks_without_what_it_reads_are_refused(options: dict[str, Any], task: Any, sentence: str) -> None:
    with pytest.raises(ConfigurationError, match=sentence):
        OfflineDistillation(net(4), EnsembleTeacher([net(6), net(5)], **options), task=task, response=None)


def test_other_tasks_average_logits(trainer: Any) -> None:
    data = TensorDataset(torch.randn(12, 3), torch.randn(12, 2))
    members = [nn.Linear(3, 2), nn.Linear(3, 2)]

    class Mine(OfflineDistillation):
        def distill_terms(self, step: Any) -> dict[str, Tensor]:
            assert torch.allclose(step.teacher.logits, sum(member(step.batch.inputs) for member in members) / 2)
            return {"mine": nn.functional.mse_loss(step.student.logits, step.teacher.logits)}

    module = Mine(nn.Linear(3, 2), EnsembleTeacher(members), task=Regression(2), response=None)
    trainer().fit(module, DataLoader(data, 4), DataLoader(data, 4))


def test_language_models_are_averaged_token_by_token(trainer: Any) -> None:
    def model(hidden: int) -> nn.Module:
        config = {"vocab_size": 19, "n_embd": hidden, "n_layer": 1, "n_head": 2, "n_positions": 16}
        ends = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
        return transformers_model(architecture="AutoModelForCausalLM", model_type="gpt2", config={**config, **ends})

    rows = [
        {"input_ids": ids, "attention_mask": torch.ones(8).long(), "labels": ids}
        for ids in torch.arange(3, 19).repeat(2).view(4, 8)
    ]
    teacher = EnsembleTeacher([model(8), model(12)], average="probabilities")
    module = OfflineDistillation(model(4), teacher, task=CausalLM(), response=ForwardKL())
    runner = trainer()
    runner.fit(module, DataLoader(rows, 2), DataLoader(rows, 2))
    assert torch.isfinite(runner.callback_metrics["train/loss_forward_kl"])
    assert torch.isfinite(runner.callback_metrics["val/teacher_perplexity"])


def test_autocast_reaches_it_and_the_average_is_float32(samples: Any) -> None:
    teacher = EnsembleTeacher([net(6), net(5)], average="probabilities")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = teacher(Batch(samples.tensors[0]), None).logits
    assert logits.dtype == torch.float32


def test_large_answers_stay_finite() -> None:
    large = torch.zeros(6, 4)
    large[:, 0] = 1e30
    for options in ({"average": "probabilities"}, {}, {"confidence": True}):
        teacher = ensemble([large, -large, large.roll(1, 1)], **options)
        assert answer(teacher, torch.arange(6) % 4).isfinite().all()


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: EnsembleTeacher([nn.Linear(1, 1)]), "needs two members or more, not 1"),
        (lambda: EnsembleTeacher([nn.Linear(1, 1), 3]), "members are networks or FrozenTeacher, not int"),
        (lambda: EnsembleTeacher([nn.Linear(1, 1), EnsembleTeacher([nn.Linear(1, 1)] * 2)]), "not EnsembleTeacher"),
        (lambda: EnsembleTeacher([nn.Linear(1, 1)] * 2, weights=[1.0]), "weights has 1 entries for 2 members"),
        (lambda: EnsembleTeacher([nn.Linear(1, 1)] * 2, weights=[1, -1]), "must be 0 or more and not all 0"),
        (lambda: EnsembleTeacher([nn.Linear(1, 1)] * 2, weights=[0, 0]), "must be 0 or more and not all 0"),
        (lambda: EnsembleTeacher([nn.Linear(1, 1)] * 2, weights=[1, 1], confidence=True), "leave weights out"),
        (lambda: EnsembleTeacher([nn.Linear(1, 1)] * 2, average="mean"), "average must be logits or probabilities"),
        (lambda: EnsembleTeacher([nn.Linear(1, 1)] * 2, temperature=0), "temperature must be above 0, not 0"),
    ],
)
def test_bad_options_are_one_sentence(call: Any, sentence: str) -> None:
    with pytest.raises(ConfigurationError, match=sentence) as caught:
        call()
    assert "\n" not in str(caught.value)
