"""Masked language models in a run: the update by hand, no full logits, resume, and text without labels."""

from __future__ import annotations

import copy
import random
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdlightning import (
    ConfigurationError,
    DistillModule,
    FeatureKD,
    FitNet,
    ForwardKL,
    MaskedLM,
    MaskedText,
    OfflineDistillation,
    OnPolicyDistillation,
    ReverseKL,
    Unlabelled,
)

transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.filterwarnings("ignore:.*(exists and is not empty|Checkpoint directory)")

WORDS = 80
FAMILIES = {
    "bert": ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"),
    "distilbert": ("dim", "n_layers", "n_heads", "hidden_dim"),
}


def net(
    seed: int, kind: str = "bert", width: int = 8, layers: int = 1, architecture: str = "AutoModelForMaskedLM"
) -> Any:
    sizes = dict(zip(FAMILIES[kind], (width, layers, 2, 2 * width), strict=True))
    config = transformers.AutoConfig.for_model(kind, vocab_size=WORDS, max_position_embeddings=40, **sizes)
    for dropout in ("hidden_dropout_prob", "attention_probs_dropout_prob", "dropout", "attention_dropout"):
        if hasattr(config, dropout):
            setattr(config, dropout, 0.0)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return getattr(transformers, architecture).from_config(config)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    words = random.Random(0)
    lines = [" ".join(words.choice(["a", "big", "cat", "sees", "dogs"]) for _ in range(3 + n % 9)) for n in range(120)]
    path.write_text("\n".join(lines))
    return path


def data(path: Path, **options: Any) -> MaskedText:
    fixed = {"pack": False, "vocab_size": 40, "max_length": 24, "batch_size": 16, "seed": 3, "val_split": 0.1}
    return MaskedText(str(path), **(fixed | options))


def plain_sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=1.0)


def hand_loss(student: nn.Module, teacher: nn.Module, batch: dict[str, Tensor], distill_on: str) -> Tensor:
    """0.5·CE over the chosen tokens + 0.5·KL(teacher ‖ student), a mean over what is distilled on, from full logits."""
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    ours = student(**inputs).logits
    with torch.no_grad():
        theirs = teacher(**inputs).logits
    chosen = batch["labels"] != -100
    where = chosen if distill_on == "masked" else batch["attention_mask"] == 1
    p, q = theirs[where].log_softmax(-1), ours[where].log_softmax(-1)
    return 0.5 * F.cross_entropy(ours[chosen], batch["labels"][chosen]) + 0.5 * (p.exp() * (p - q)).sum(-1).mean()


@pytest.mark.parametrize("kind", FAMILIES)
@pytest.mark.parametrize("distill_on", ["masked", "all"])
def test_one_step_is_the_gradient_by_hand(kind: str, distill_on: Any, corpus: Path, trainer: Any) -> None:
    student, teacher = net(0, kind), net(1, "bert", width=12, layers=2).eval()
    twin, text = copy.deepcopy(student), data(corpus)
    task = MaskedLM(distill_on)
    module = OfflineDistillation(student, copy.deepcopy(teacher), task=task, optimizer=plain_sgd)
    assert isinstance(module.response, ForwardKL)
    runner = trainer(limit_train_batches=1)
    runner.fit(module, datamodule=text)
    loss = hand_loss(twin, teacher, next(iter(data(corpus).train_dataloader())).data, distill_on)
    gradients = torch.autograd.grad(loss, list(twin.parameters()))
    for after, before, gradient in zip(student.parameters(), twin.parameters(), gradients, strict=True):
        assert torch.allclose(before - after, gradient, rtol=1e-3, atol=1e-6)
    logged = runner.callback_metrics
    assert float(logged["train/loss"]) == pytest.approx(float(loss.detach()), rel=1e-4)
    assert {"val/perplexity", "val/acc", "val/kl", "val/agreement", "val/teacher_acc"} <= set(logged)


def test_splitting_a_window_never_changes_the_update(corpus: Path, trainer: Any) -> None:
    results = []
    for size, accumulate in ((16, 1), (4, 4)):
        student = net(0)
        module = OfflineDistillation(student, net(1), task=MaskedLM(), response=ReverseKL(), optimizer=plain_sgd)
        runner = trainer(limit_train_batches=accumulate, accumulate_grad_batches=accumulate, gradient_clip_val=0.5)
        runner.fit(module, datamodule=data(corpus, batch_size=size))
        results.append(student)
    for one, other in zip(*(student.parameters() for student in results), strict=True):
        assert torch.allclose(one, other, atol=1e-6)


def test_the_head_computes_no_logits_in_a_step(corpus: Path, trainer: Any) -> None:
    shapes: list[int] = []
    student, teacher = net(0), net(1)
    for network in (student, teacher):
        network.get_output_embeddings().register_forward_hook(lambda m, a, out: shapes.append(out.numel()))
    module = OfflineDistillation(student, teacher, task=MaskedLM("all"))
    trainer(limit_val_batches=0, num_sanity_val_steps=0).fit(module, datamodule=data(corpus))
    assert len(shapes) > 10
    assert sum(size > 0 for size in shapes) <= 2, "only where a sample is tried before training"


def test_resumed_run_ends_where_the_undisturbed_one_does(corpus: Path, fit_until: Any) -> None:
    def run(name: str, stop: int | None = None) -> DistillModule:
        make = lambda: OfflineDistillation(net(0), net(1), task=MaskedLM())  # noqa: E731
        text = data(corpus, length_bucketing=True, whole_words=True)
        return fit_until(name, make, datamodule=text, stop=stop)

    whole = run("whole").student.state_dict()
    run("cut", stop=8)
    again = run("cut").student.state_dict()
    assert all(torch.equal(value, again[name]) for name, value in whole.items())


def test_it_learns_alone_and_predicts(corpus: Path, trainer: Any) -> None:
    fast = lambda parameters: torch.optim.AdamW(parameters, lr=1e-2)  # noqa: E731
    module = DistillModule(net(0, width=16), task=MaskedLM(), optimizer=fast)
    runner = trainer(max_epochs=8)
    text = data(corpus)
    runner.fit(module, datamodule=text)
    assert float(runner.callback_metrics["val/perplexity"]) < 8, "five words and the special tokens"
    rows = [row for rows in runner.predict(module, datamodule=text) for row in rows]
    assert {"index", "prediction", "target", "perplexity", "tokens"} == set(rows[0])
    assert len(rows) == len(text.part("test"))


def test_text_without_labels_serves_methods_that_read_the_insides(corpus: Path, trainer: Any) -> None:
    student, teacher = (net(seed, architecture="AutoModel") for seed in (0, 1))
    module = OfflineDistillation(student, teacher, task=Unlabelled(), response=None)
    callback = FeatureKD(FitNet(), {"hidden_states.1": "hidden_states.1"})
    runner = trainer(callbacks=[callback], max_epochs=2)
    runner.fit(module, datamodule=data(corpus, labels=False))
    assert set(runner.callback_metrics) >= {"val/cka", "train/loss_fit_net"}


def test_padding_does_not_enter_the_embedding_that_is_judged() -> None:
    task, inputs = Unlabelled(), torch.randint(5, WORDS, (2, 6))
    mask = torch.tensor([[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1]])
    network = net(0, architecture="AutoModel").eval()
    from kdlightning.taps import TapReader
    from kdlightning.tasks.unlabelled import embedding

    reader = TapReader(network)
    batch = {"input_ids": inputs, "attention_mask": mask}
    together = embedding(reader(batch), task.batch(batch))
    short = {name: value[:1, :4] for name, value in batch.items()}
    assert torch.allclose(together[0], embedding(reader(short), task.batch(short))[0], atol=1e-6)


def test_a_student_that_writes_is_no_masked_one() -> None:
    with pytest.raises(ConfigurationError, match="writes text: the task must be CausalLM, not MaskedLM"):
        OnPolicyDistillation(net(0), net(1), task=MaskedLM())
