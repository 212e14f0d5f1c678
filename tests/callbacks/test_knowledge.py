"""Feature and relation callbacks in every mode whose teacher gives tensors from inside."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from kdlightning import (
    AT,
    RKD,
    SP,
    Classification,
    ConfigurationError,
    DistillModule,
    FeatureKD,
    FeatureLoss,
    FitNet,
    MeanTeacher,
    OfflineDistillation,
    OnlineDistillation,
    RelationKD,
    SelfDistillation,
    timm_model,
    transformers_model,
)


def total(metrics: Any, weights: dict[str, float]) -> float:
    return sum(weight * float(metrics[f"train/loss_{name}"]) for name, weight in weights.items())


def test_timm_pair_with_feature_and_relation(images: Any, trainer: Any) -> None:
    student = timm_model("test_resnet", num_classes=5, in_chans=1)
    teacher = timm_model("resnet10t", num_classes=5, in_chans=1)
    module = OfflineDistillation(student, teacher, task=Classification(5))
    runner = trainer(
        callbacks=[
            FeatureKD(AT(), {"intermediates.2": "intermediates.2"}, weight=10.0),
            FeatureKD(FitNet(), {"layer1": "layer1"}, weight=2.0),
            RelationKD(RKD(), {"pre_logits": "pre_logits"}, weight=0.5),
            RelationKD(SP(), {"intermediates.-1": "intermediates.-1"}),
        ]
    )
    runner.fit(module, images(size=32), images(size=32))
    m = runner.callback_metrics
    weights = {"task": 0.1, "kd": 0.9, "attention_transfer": 10, "fit_net": 2, "rkd": 0.5, "sp": 1}
    assert float(m["train/loss"]) == pytest.approx(total(m, weights), rel=1e-4)


def test_cnn_teaches_vision_transformer(images: Any, trainer: Any) -> None:
    small = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 2}
    student = timm_model("vit_tiny_patch16_224", num_classes=5, in_chans=1, options=small)
    teacher = timm_model("resnet10t", num_classes=5, in_chans=1)
    module = OfflineDistillation(student, teacher, task=Classification(5))
    runner = trainer(callbacks=[FeatureKD(FitNet(), {"blocks.1": "layer3"}), RelationKD(SP(), {"blocks.2": "layer4"})])
    runner.fit(module, images(size=32))
    assert float(runner.callback_metrics["train/loss_fit_net"]) > 0
    assert float(runner.callback_metrics["train/loss_sp"]) > 0


def bert(hidden: int, layers: int) -> Any:
    sizes = {"hidden_size": hidden, "num_hidden_layers": layers, "num_attention_heads": 2, "intermediate_size": 16}
    return transformers_model(model_type="bert", config={**sizes, "vocab_size": 31, "num_labels": 3})


@pytest.mark.parametrize("length", [7, 12])
def test_transformers_encoder_pair(length: int, trainer: Any) -> None:
    rows = []
    for number in range(8):
        ids = torch.randint(31, (length if number > 1 else 7,))
        rows.append({"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": torch.tensor(number % 3)})
    # The two samples of the probe may be shorter than what comes later.
    loader = DataLoader(rows, 2)
    module = OfflineDistillation(bert(8, 2), bert(16, 4), task=Classification(3))
    runner = trainer(
        callbacks=[
            FeatureKD(FitNet(relu=False), {"hidden_states.1": "hidden_states.2", "hidden_states.2": "hidden_states.4"}),
            RelationKD(RKD(), {"pre_logits": "pre_logits"}),
        ]
    )
    runner.fit(module, loader, loader)
    m = runner.callback_metrics
    assert float(m["train/loss"]) == pytest.approx(total(m, {"task": 0.1, "kd": 0.9, "fit_net": 1, "rkd": 1}), rel=1e-4)
    assert float(m["val/teacher_acc"]) <= 1


@pytest.mark.parametrize(
    ("mode", "keys"),
    [
        (lambda a, b: OfflineDistillation(a, b, task=Classification(5)), ["rkd"]),
        (lambda a, b: OnlineDistillation(a, [b], task=Classification(5)), ["rkd", "rkd_peer1"]),
        (lambda a, b: SelfDistillation(a, MeanTeacher(0.5), task=Classification(5)), ["rkd"]),
    ],
)
def test_relation_term_in_each_mode(mode: Any, keys: list[str], net: Any, images: Any, trainer: Any) -> None:
    module = mode(net(4), net(6, 1))
    runner = trainer(max_epochs=2, callbacks=[RelationKD(RKD(), {"pre_logits": "pre_logits"}, weight=0.1)])
    runner.fit(module, images())
    for key in keys:
        assert float(runner.callback_metrics[f"train/loss_{key}"]) > 0


def test_without_a_teacher_the_reason_is_said(net: Any, images: Any, trainer: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"FeatureKD\(fit_net\) needs somebody to learn from"):
        trainer(callbacks=[FeatureKD(FitNet(), {"stages.0": "stages.0"})]).fit(
            DistillModule(net(4), task=Classification(5)), images()
        )


def test_another_libraries_module_is_refused(images: Any, trainer: Any) -> None:
    from lightning.pytorch.demos.boring_classes import BoringModel

    with pytest.raises(ConfigurationError, match="needs a DistillModule, not BoringModel"):
        trainer(callbacks=[FeatureKD(FitNet(), {"layer": "layer"})]).fit(BoringModel())


def test_two_terms_of_one_name_are_refused_with_the_way_out(net: Any, images: Any, trainer: Any) -> None:
    callbacks = [FeatureKD(FitNet(), {f"stages.{n}": f"stages.{n}"}) for n in range(2)]
    module = OfflineDistillation(net(4), net(6, 1), task=Classification(5))
    with pytest.raises(ConfigurationError, match="two terms are named 'fit_net'.*name="):
        trainer(callbacks=callbacks).fit(module, images())
    callbacks[1].name = "second"
    trainer(callbacks=callbacks).fit(module, images())
    assert sorted(module.adapters) == ["fit_net", "second"]


@pytest.mark.parametrize("name", ["kd", "task", "two words"])
def test_a_name_that_is_taken_or_no_word_is_refused(name: str, net: Any, images: Any, trainer: Any) -> None:
    module = OfflineDistillation(net(4), net(6, 1), task=Classification(5))
    with pytest.raises(ConfigurationError, match=name):
        trainer(callbacks=[FeatureKD(FitNet(), {"stages.0": "stages.0"}, name=name)]).fit(module, images())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pairs": {}}, "pairs is empty"),
        ({"pairs": [{"student": "a"}]}, "each pair needs student and teacher"),
        ({"pairs": [{"student": "a", "techer": "b"}]}, "a pair has no 'techer'; did you mean teacher"),
        ({"adapter": "conv"}, "adapter must be one of auto, none, linear, pooled"),
        ({"loss": "FitNet"}, "loss must be a loss"),
        ({"loss": FitNet}, "loss must be a loss"),
    ],
)
def test_bad_options_are_refused_when_written(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        FeatureKD(**({"loss": FitNet(), "pairs": {"a": "b"}} | options))


@pytest.mark.parametrize(
    ("callback", "message"),
    [
        (FeatureKD(AT(), {"pre_logits": "pre_logits"}), "attention_transfer: student tap 'pre_logits'"),
        (FeatureKD(AT(), {"stages.0": "pre_logits"}), "attention_transfer: student tap 'stages.0'"),
        (FeatureKD(FitNet(), {"stages.0": "pre_logits"}), "fit_net: student tap 'stages.0'"),
        (FeatureKD(FitNet(), {"stages.0": "stages.1"}, adapter="none"), "fit_net: student tap 'stages.0'"),
        (FeatureKD(FitNet(), {"stage.0": "stages.0"}), "no module 'stage.0'; did you mean stages.0"),
    ],
)
def test_shapes_that_do_not_fit_are_found_before_training(
    callback: Any, message: str, net: Any, images: Any, trainer: Any
) -> None:
    import lightning as L

    class Started(L.Callback):
        began = False

        def on_train_start(self, *_: Any) -> None:
            Started.began = True

    module = OfflineDistillation(net(4), net(6, 1), task=Classification(5))
    with pytest.raises(ConfigurationError, match=message):
        trainer(callbacks=[callback, Started()]).fit(module, images())
    assert not Started.began


def test_pairs_have_weights(net: Any, images: Any, trainer: Any) -> None:
    values = []
    for pairs in (
        [{"student": "stages.0", "teacher": "stages.0"}],
        [{"student": "stages.1", "teacher": "stages.1"}],
        [
            {"student": "stages.0", "teacher": "stages.0", "weight": 2.0},
            {"student": "stages.1", "teacher": "stages.1", "weight": 3.0},
        ],
    ):
        module = OfflineDistillation(net(4), net(6, 1), task=Classification(5))
        runner = trainer(max_steps=1, callbacks=[FeatureKD(AT(), pairs)])
        runner.fit(module, images())
        values.append(float(runner.callback_metrics["train/loss_attention_transfer"]))
    assert values[2] == pytest.approx(2 * values[0] + 3 * values[1], rel=1e-5)


def test_joint_loss_gets_lists_in_the_order_of_the_pairs(net: Any, images: Any, trainer: Any) -> None:
    seen: list[Any] = []

    class Joint(FeatureLoss):
        joint = True
        spatial = "any"

        def adapter(self, student: Any, teacher: Any) -> None:
            return None

        def forward(self, student: Any, teacher: Any, *, batch: Any, progress: float) -> torch.Tensor:
            seen.append(([s.shape[1] for s in student], [t.shape[1] for t in teacher]))
            return sum(s.mean() for s in student)

    module = OfflineDistillation(net(4), net(6, 1), task=Classification(5))
    runner = trainer(max_steps=1, callbacks=[FeatureKD(Joint(), {"stages.1": "stages.0", "stages.0": "stages.1"})])
    runner.fit(module, images())
    assert seen[-1] == ([8, 4], [6, 12])


@pytest.mark.parametrize("adapter", ["auto", "linear"])
def test_widths_that_differ_get_a_linear_map(adapter: Any, net: Any, images: Any, trainer: Any) -> None:
    class Plain(FeatureLoss):
        def forward(self, student: Any, teacher: Any, *, batch: Any, progress: float) -> torch.Tensor:
            return (student - teacher).square().mean()

    module = OfflineDistillation(net(4), net(6, 1), task=Classification(5))
    runner = trainer(max_steps=1, callbacks=[FeatureKD(Plain(), {"stages.0": "stages.1"}, adapter=adapter)])
    runner.fit(module, images())
    shapes = [tuple(p.shape) for p in module.adapters.parameters()]
    assert shapes == [(12, 4, 1, 1), (12,)]


def test_taps_that_nobody_asks_for_install_no_hook(net: Any, images: Any, trainer: Any) -> None:
    import lightning as L

    found: dict[str, int] = {}

    class Count(L.Callback):
        def on_train_batch_start(self, trainer: Any, pl_module: Any, *_: Any) -> None:
            networks = {"student": pl_module.student, "teacher": pl_module.teacher.network}
            for name, network in networks.items():
                found[name] = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in network.modules())

    for callbacks, expected in (([], 0), ([FeatureKD(AT(), {"stages.0": "stages.0"})], 1)):
        module = OfflineDistillation(net(4), net(6, 1), task=Classification(5))
        trainer(callbacks=[*callbacks, Count()]).fit(module, images())
        assert found == {"student": expected, "teacher": expected}
        assert not any(m._forward_hooks for m in module.student.modules())


def test_one_loss_object_may_serve_two_terms(net: Any, images: Any, trainer: Any) -> None:
    loss = FitNet()
    callbacks = [FeatureKD(loss, {f"stages.{n}": f"stages.{n}"}, name=f"hint{n}") for n in range(2)]
    module = OfflineDistillation(net(4), net(6, 1), task=Classification(5))
    trainer(callbacks=callbacks).fit(module, images())
    assert len({id(p) for p in module.adapters.parameters()}) == len(list(module.adapters.parameters())) == 8


def test_another_fit_with_other_taps_builds_its_networks_anew(net: Any, images: Any, trainer: Any) -> None:
    module = OfflineDistillation(net(4), net(6, 1), task=Classification(5))
    trainer(callbacks=[FeatureKD(FitNet(), {"stages.0": "stages.0"})]).fit(module, images())
    first = module.adapters["fit_net"]
    trainer(callbacks=[FeatureKD(FitNet(), {"stages.0": "stages.0"})]).fit(module, images())
    assert module.adapters["fit_net"] is first
    trainer(callbacks=[FeatureKD(FitNet(), {"stages.1": "stages.1"})]).fit(module, images())
    assert module.adapters["fit_net"] is not first


def test_state_key_tells_callbacks_apart() -> None:
    keys = {FeatureKD(FitNet(), {"a": tap}).state_key for tap in ("b", "c")}
    keys |= {FeatureKD(AT(), {"a": "b"}).state_key, RelationKD(RKD(), {"a": "b"}).state_key}
    assert len(keys) == 4


def test_a_map_meets_a_vector_through_the_pooled_adapter(net: Any, images: Any, trainer: Any) -> None:
    module = OfflineDistillation(net(4), net(6, 1), task=Classification(5))
    feature = FeatureKD(FitNet(), {"stages.0": "pre_logits"})
    with pytest.raises(ConfigurationError, match=r"'stages.0' .* 'pre_logits' .*set adapter: pooled"):
        trainer(callbacks=[feature]).fit(module, images())
    module = OfflineDistillation(net(4), net(6, 1), task=Classification(5))
    runner = trainer(callbacks=[FeatureKD(FitNet(), {"stages.0": "pre_logits"}, adapter="pooled")])
    runner.fit(module, images())
    assert float(runner.callback_metrics["train/loss_fit_net"]) > 0


def test_a_loss_sees_networks_taps_and_labels_before_training(net: Any, images: Any, trainer: Any) -> None:
    seen = []

    class Looks(FitNet):
        def bind(self, context: Any) -> None:
            seen.append(context)

    student, teacher = net(4), net(6, 1)
    module = OfflineDistillation(student, teacher, task=Classification(5))
    loader = images()
    trainer(callbacks=[FeatureKD(Looks(), {"stages.0": "stages.1"})]).fit(module, loader)
    (context,) = seen
    assert context.student is student
    assert context.teacher is teacher
    assert (context.student_taps, context.teacher_taps) == (("stages.0",), ("stages.1",))
    assert (context.samples, context.num_classes) == (len(loader.dataset), 5)


def test_a_term_that_needs_sample_numbers_says_so(net: Any, images: Any, trainer: Any) -> None:
    class Numbered(FitNet):
        reads_fields = frozenset({"index"})

    module = OfflineDistillation(net(4), net(6, 1), task=Classification(5))
    with pytest.raises(ConfigurationError, match=r"FeatureKD\(numbered\) reads batch.index"):
        trainer(callbacks=[FeatureKD(Numbered(), {"stages.0": "stages.0"})]).fit(module, images())
