"""Terms on the layers of two transformers: which are paired, what is computed of them, padding, resume."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from kdlightning import (
    VID,
    Classification,
    ConfigurationError,
    FeatureKD,
    FitNet,
    LayerKD,
    OfflineDistillation,
    TinyBERTAttention,
    TinyBERTHidden,
    Unlabelled,
    timm_model,
)
from kdlightning.data.loader import ResumableLoader
from kdlightning.modules.layer_pairs import layer_map
from kdlightning.text.sequences import TokenSequences

WORDS = 40


def encoder(width: int, layers: int, seed: int, heads: int = 2, kind: str = "bert", **options: Any) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = transformers.AutoConfig.for_model(
            kind,
            vocab_size=WORDS,
            hidden_size=width,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            max_position_embeddings=32,
            num_labels=3,
            pad_token_id=0,
            initializer_range=0.3,
            **({"intermediate_size": 2 * width} if kind == "bert" else {"hidden_dim": 2 * width}),
            **options,
        )
        return transformers.AutoModelForSequenceClassification.from_config(config)


def texts(count: int = 12, longest: int = 7) -> TokenSequences:
    generator = torch.Generator().manual_seed(4)
    lengths = torch.randint(2, longest + 1, (count,), generator=generator).tolist()
    ids = [torch.randint(1, WORDS, (length,), generator=generator).tolist() for length in lengths]
    return TokenSequences({"input_ids": ids}, torch.arange(count) % 3)


def loader(batch_size: int = 4, **options: Any) -> ResumableLoader:
    return ResumableLoader(texts(**options), batch_size, shuffle=True, seed=3)


def module(student: nn.Module, teacher: nn.Module, **options: Any) -> OfflineDistillation:
    given = {"task": Classification(3), "response": None, "weights": {"task": 0.0}}
    return OfflineDistillation(student, teacher=teacher, **(given | options))


def both(**options: Any) -> list[LayerKD]:
    return [LayerKD(TinyBERTAttention(), **options), LayerKD(TinyBERTHidden(), **options)]


# -- which layers ------------------------------------------------------------------------------------------------------


@given(st.integers(1, 12), st.integers(1, 24))
def test_maps_by_name_are_their_definitions(student: int, teacher: int) -> None:
    uniform = dict(layer_map("uniform", student, teacher, "me"))
    assert list(uniform) == list(range(1, student + 1))
    assert uniform[student] == teacher
    for ours, theirs in uniform.items():
        wanted = ours * teacher / student
        assert 1 <= theirs <= teacher
        assert abs(theirs - wanted) <= max(0.5, 1 - wanted)
    if teacher % student == 0:  # the paper's
        assert uniform == {ours: ours * (teacher // student) for ours in range(1, student + 1)}
    assert list(uniform.values()) == sorted(uniform.values())
    assert layer_map("final", student, teacher, "me") == [(student, teacher)]
    if student > 1:
        assert layer_map("skip", student, teacher, "me") == list(uniform.items())[:-1]
    if student <= teacher:
        last = layer_map("last", student, teacher, "me")
        assert [theirs for _, theirs in last] == list(range(teacher - student + 1, teacher + 1))
    chosen = {ours: 1 + ours % teacher for ours in range(1, student + 1)}
    assert layer_map(chosen, student, teacher, "me") == list(chosen.items())
    assert layer_map(list(chosen.values()), student, teacher, "me") == list(chosen.items())
    assert layer_map({-1: -1}, student, teacher, "me") == [(student, teacher)]


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ("unifrom", "layers 'unifrom'; did you mean uniform"),
        ("last", "layers=last needs a teacher as deep as the student"),
        ("skip", "the student has only one"),
        ([], "layers is empty; give uniform, last, skip, final or pairs"),
        ({0: 1}, "the student has layers 1 to 2, and layers names 0"),
        ({1: 5}, "the teacher has layers 1 to 4, and layers names 5"),
        ([1, 2, 3], "the student has layers 1 to 2, and layers names 3"),
        ({1: -5}, "layers names -5"),
        ({"first": 1}, "layers counts from 1, and names 'first'"),
        ({1: 1.5}, "layers counts from 1, and names 1.5"),
    ],
)
def test_wrong_maps_are_refused_with_the_way_out(layers: Any, message: str) -> None:
    student = {"skip": 1, "last": 6}.get(layers, 2) if isinstance(layers, str) else 2
    with pytest.raises(ConfigurationError, match=message):
        layer_map(layers, student, 4, "LayerKD(tiny_bert_hidden)")


@pytest.mark.parametrize(
    ("layers", "embedding", "pairs"),
    [
        ("uniform", None, [(0, 0), (1, 2), (2, 4)]),
        ("last", False, [(1, 3), (2, 4)]),
        ("skip", None, [(0, 0), (1, 2)]),
        ("final", False, [(2, 4)]),
        ([1, -1], False, [(1, 1), (2, 4)]),
        ({2: 3}, True, [(0, 0), (2, 3)]),
    ],
)
def test_pairs_of_a_run(layers: Any, embedding: Any, pairs: list[tuple[int, int]], trainer: Any) -> None:
    run = module(encoder(8, 2, 0), encoder(12, 4, 1))
    callback = LayerKD(TinyBERTHidden(), layers, embedding)
    trainer(callbacks=[callback], max_steps=1).fit(run, loader())
    assert [(pair.student, pair.teacher) for pair in callback.pairs] == [
        (f"hidden_states.{ours}", f"hidden_states.{theirs}") for ours, theirs in pairs
    ]


def test_what_cannot_be_paired_is_refused(trainer: Any) -> None:
    def fit(student: nn.Module, teacher: nn.Module, *callbacks: Any) -> None:
        trainer(callbacks=list(callbacks)).fit(module(student, teacher), loader())

    with pytest.raises(ConfigurationError, match="embedding is for losses on hidden states, not TinyBERTAttention"):
        LayerKD(TinyBERTAttention(), embedding=True)
    with pytest.raises(
        ConfigurationError, match=r"tiny_bert_attention: the student has 2 attention heads and the teacher 4: make"
    ):
        fit(encoder(8, 2, 0), encoder(12, 2, 1, heads=4), LayerKD(TinyBERTAttention()))
    with pytest.raises(ConfigurationError, match=r"LayerKD\(tiny_bert_hidden\): the teacher has layers 1 to 2"):
        fit(encoder(8, 2, 0), encoder(8, 2, 1), LayerKD(TinyBERTHidden(), [1, 3]))
    with pytest.raises(ConfigurationError, match="two terms are named 'tiny_bert_hidden'"):
        fit(encoder(8, 2, 0), encoder(8, 2, 1), LayerKD(TinyBERTHidden(), [1]), LayerKD(TinyBERTHidden(), {2: 2}))


# -- what is computed --------------------------------------------------------------------------------------------------


def layer_inputs(model: nn.Module, inputs: dict[str, Tensor]) -> tuple[Tensor, ...]:
    """Hidden states 0 to N of a copy, without any tap."""
    return model.bert(**inputs, output_hidden_states=True).hidden_states


def scores_of(model: Any, states: Tensor, layer: int, heads: int) -> Tensor:
    own = model.bert.encoder.layer[layer].attention.self
    queries, keys = (part(states).unflatten(2, (heads, -1)).transpose(1, 2) for part in (own.query, own.key))
    return queries @ keys.transpose(2, 3) / math.sqrt(queries.shape[3])


def test_a_steps_terms_are_those_by_hand_and_fused_attention_stays_on(trainer: Any) -> None:
    student, teacher = encoder(8, 2, 0, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0), encoder(12, 4, 1)
    before, taught = copy.deepcopy(student), copy.deepcopy(teacher).eval()
    run = module(student, teacher, optimizer=lambda p: torch.optim.SGD(p, 0.0))
    runner = trainer(callbacks=both(), max_steps=1)
    runner.fit(run, loader(12))
    batch = next(iter(loader(12))).data
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    mask = inputs["attention_mask"].bool()
    assert not mask.all(), "some texts are padded"
    ours, theirs = layer_inputs(before, inputs), layer_inputs(taught, inputs)
    maps = run.adapters["tiny_bert_hidden"]["teacher"].losses[0].projections
    hidden = sum(
        (maps["embedding" if n == 0 else "hidden"](ours[n]) - theirs[2 * n])[mask].square().mean() for n in range(3)
    )
    attention = torch.zeros(())
    for layer in range(2):
        own = scores_of(before, ours[layer], layer, 2)
        other = scores_of(taught, theirs[2 * layer + 1], 2 * layer + 1, 2)
        entries = (mask[:, None, :, None] & mask[:, None, None, :]).expand_as(own)
        attention = attention + (own - other)[entries].square().mean()
        # These are the scores that the model's own attention takes the softmax of.
        eager = copy.deepcopy(taught)
        eager.set_attn_implementation("eager")
        shown = eager.bert(**inputs, output_attentions=True).attentions[2 * layer + 1]
        masked = other.masked_fill(~mask[:, None, None, :], float("-inf"))
        torch.testing.assert_close(masked.softmax(-1)[entries], shown[entries])
    logged = {name: float(value.detach()) for name, value in runner.callback_metrics.items()}
    assert logged["train/loss_tiny_bert_hidden"] == pytest.approx(float(hidden.detach()), rel=1e-5)
    assert logged["train/loss_tiny_bert_attention"] == pytest.approx(float(attention.detach()), rel=1e-5)
    assert logged["train/loss"] == pytest.approx(float((hidden + attention).detach()), rel=1e-5)
    assert "train/loss_task" not in logged
    for model in (student, teacher):
        assert model.config._attn_implementation == "sdpa", "nobody has switched to attention that can be looked at"


class Padding:
    """Adds columns of padding to a batch, wherever it is asked for."""

    def __init__(self, more: int) -> None:
        self.more = more

    def __call__(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        filled = {name: nn.functional.pad(value, (0, self.more), value=5) for name, value in inputs.items()}
        filled["attention_mask"][:, inputs["attention_mask"].shape[1] :] = 0
        return filled


LAYERS = {f"hidden_states.{n}": f"hidden_states.{2 * n}" for n in range(3)}


@pytest.mark.parametrize(
    "callbacks",
    [
        pytest.param(both, id="tinybert"),
        pytest.param(lambda: [FeatureKD(FitNet(relu=False), LAYERS)], id="fit_net"),
        pytest.param(lambda: [LayerKD(FitNet())], id="fit_net_by_layer"),
        pytest.param(lambda: [FeatureKD(VID(), LAYERS)], id="vid"),
    ],
)
def test_padding_changes_neither_loss_nor_gradient_nor_statistics(
    callbacks: Any, trainer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = []
    for more in (0, 5):
        student = encoder(8, 2, 0, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0).double()
        run = module(student, encoder(12, 4, 1).double(), optimizer=lambda p: torch.optim.SGD(p, 0.0))
        pad, load = Padding(more), TokenSequences.load

        def padded(self: Any, *given: Any, pad: Padding = pad, load: Any = load) -> dict[str, Tensor]:
            batch = load(self, *given)
            inputs = pad({name: batch[name] for name in ("input_ids", "attention_mask")})
            return {**inputs, "labels": batch["labels"]}

        with monkeypatch.context() as patch:
            patch.setattr(TokenSequences, "load", padded)
            torch.manual_seed(0)
            run._seed = 5
            kept: dict[str, Tensor] = {}
            run.on_before_optimizer_step = lambda *_, run=run, kept=kept: kept.update(
                {n: p.grad.clone() for n, p in run.named_parameters() if p.grad is not None}
            )
            runner = trainer(callbacks=callbacks(), max_steps=1, precision="64-true")
            runner.fit(run, loader(6))
        buffers = {name: value for name, value in run.adapters.named_buffers() if "running" in name}
        results.append((float(runner.callback_metrics["train/loss"]), kept, buffers))
    (loss, gradients, buffers), (other, others, other_buffers) = results
    assert loss == pytest.approx(other, rel=1e-12)
    assert gradients.keys() == others.keys()
    assert max(float(value.abs().max()) for value in gradients.values()) > 1e-4
    torch.testing.assert_close(gradients, others, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(buffers, other_buffers, rtol=1e-12, atol=0)


def test_a_resumed_run_ends_where_the_undisturbed_one_ends(fit_until: Any) -> None:
    def train(name: str, stop: int | None = None) -> Any:
        def make() -> Any:
            return module(encoder(8, 2, 0), encoder(12, 4, 1), optimizer=lambda p: torch.optim.AdamW(p, 1e-2))

        return fit_until(name, make, loader(), stop=stop, callbacks=both(), best=False)

    whole = train("whole")
    train("cut", 4)
    resumed = train("cut")
    assert resumed.global_step == whole.global_step == 6
    ours, theirs = whole.state_dict(), resumed.state_dict()
    assert ours.keys() == theirs.keys()
    assert sum("projections" in name for name in ours) == 2
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


@pytest.mark.parametrize("precision", ["bf16-mixed", "32-true"])
def test_terms_fall_in_training_and_survive_half_precision(precision: str, trainer: Any) -> None:
    run = module(encoder(8, 2, 0), encoder(12, 4, 1), optimizer=lambda p: torch.optim.AdamW(p, 2e-2))
    values: list[float] = []
    run.on_train_batch_end = lambda *_: values.append(float(run._last_terms["loss"]))
    trainer(callbacks=both(), max_epochs=10, precision=precision).fit(run, loader(12))
    assert values[-1] < 0.7 * values[0]
    assert run._last_terms["loss"].dtype == torch.float32


def test_families_may_differ_and_text_needs_no_labels(trainer: Any) -> None:
    student = encoder(8, 2, 0, kind="distilbert")
    runner = trainer(callbacks=both(), max_epochs=1)
    run = OfflineDistillation(student, teacher=encoder(12, 4, 1), task=Unlabelled(neighbours=0), response=None)
    runner.fit(run, ResumableLoader(TokenSequences({"input_ids": [[3, 4, 5], [6, 7]] * 4}), 4, seed=0))
    assert {name for name in runner.callback_metrics if name.startswith("train/loss")} == {
        "train/loss",
        "train/loss_tiny_bert_attention",
        "train/loss_tiny_bert_hidden",
    }


def test_vision_transformers_of_timm(trainer: Any) -> None:
    def vit(width: int, depth: int) -> nn.Module:
        options = {"img_size": 16, "patch_size": 8, "embed_dim": width, "depth": depth, "num_heads": 3}
        return timm_model("vit_tiny_patch16_224", num_classes=3, options=options)

    student, teacher = vit(12, 2), vit(24, 4)
    images = torch.randn(8, 3, 16, 16)
    run = module(student, teacher, optimizer=lambda p: torch.optim.SGD(p, 0.0))
    runner = trainer(callbacks=both(), max_epochs=1)
    data = torch.utils.data.TensorDataset(images, torch.arange(8) % 3)
    runner.fit(run, torch.utils.data.DataLoader(data, 8))
    maps = run.adapters["tiny_bert_hidden"]["teacher"].losses[0].projections

    def states(model: Any) -> list[Tensor]:
        x = model.norm_pre(model.patch_drop(model._pos_embed(model.patch_embed(images))))
        found = [x]
        for block in model.blocks:
            found.append(block(found[-1]))
        return found

    def scores(model: Any, x: Tensor, layer: int) -> Tensor:
        block = model.blocks[layer]
        queries, keys, _ = block.attn.qkv(block.norm1(x)).unflatten(2, (3, 3, -1)).permute(2, 0, 3, 1, 4)
        return queries @ keys.transpose(2, 3) / math.sqrt(queries.shape[3])

    with torch.no_grad():
        ours, theirs = states(student), states(teacher.eval())
        hidden = sum(
            (maps["embedding" if n == 0 else "hidden"](ours[n]) - theirs[2 * n]).square().mean() for n in range(3)
        )
        attention = sum(
            (scores(student, ours[n], n) - scores(teacher, theirs[2 * n + 1], 2 * n + 1)).square().mean()
            for n in range(2)
        )
    logged = {name: float(value) for name, value in runner.callback_metrics.items()}
    assert logged["train/loss_tiny_bert_hidden"] == pytest.approx(float(hidden), rel=1e-4)
    assert logged["train/loss_tiny_bert_attention"] == pytest.approx(float(attention), rel=1e-4)
