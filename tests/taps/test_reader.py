"""Taps give the tensors they name, leave no trace, and are refused with a reason where they cannot be read."""

from __future__ import annotations

import copy
import random
import warnings
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from kdlightning.taps import TapError, TapReader


def hooks_in(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def test_outputs_inputs_and_logits_are_read(awkward: Any, images: Tensor) -> None:
    awkward.eval()
    reader = TapReader(awkward, ["first", "first:input", "fc:input", "pre_logits", "logits"])
    taps = reader(images).taps
    assert torch.equal(taps["first:input"], images)
    assert torch.equal(taps["first"], awkward.first(images))
    assert torch.equal(awkward.fc(taps["fc:input"]), taps["logits"])
    assert torch.equal(taps["pre_logits"], taps["fc:input"])


def test_keyword_inputs_and_tuples_give_their_first_tensor(awkward: Any, images: Tensor) -> None:
    taps = TapReader(awkward.eval(), ["pair", "pair:input"])(images).taps
    assert torch.equal(taps["pair"], 2 * taps["pair:input"])

    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = awkward

        def forward(self, x: Tensor) -> Any:
            return self.inner(x=x)

    assert torch.equal(TapReader(Wrapped().eval(), ["inner:input"])(images).taps["inner:input"], images)


def test_tensor_overwritten_in_place_is_kept_as_it_was(awkward: Any, images: Tensor) -> None:
    awkward.eval()
    expected = awkward.norm(awkward.first(images)).detach().clone()
    reader = TapReader(awkward, ["norm", "first"])
    reader.probe(images)
    assert reader.hooks.clone == {"norm"}
    taps = reader(images).taps
    assert torch.equal(taps["norm"], expected)
    assert bool((taps["norm"] < 0).any())


@pytest.mark.parametrize("name", ["bn1", "layer1.0.bn1", "layer1.0.bn2", "layer2.0.act2"])
def test_overwritten_tensors_of_a_real_network(name: str, timm_net: Any) -> None:
    model = timm_net("resnet18").eval()
    x = torch.randn(2, 1, 32, 32)
    expected: list[Tensor] = []
    handle = model.get_submodule(name).register_forward_hook(lambda m, i, o: expected.append(o.detach().clone()))
    model(x)
    handle.remove()
    reader = TapReader(model, [name])
    reader.probe(x)
    assert torch.equal(reader(x).taps[name], expected[0])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("frist", "no module 'frist'; did you mean first"),
        ("first:middle", "write input or output"),
        ("shared", "fired 2 times"),
        ("unused", "did not fire"),
        ("intermediates.0", "needs a timm model"),
        ("hidden_states.1", "needs a transformers model"),
        ("", "no module ''"),
    ],
)
def test_wrong_taps_are_refused_with_the_way_out(name: str, message: str, awkward: Any, images: Tensor) -> None:
    with pytest.raises(TapError, match=message):
        TapReader(awkward, [name]).probe(images)


@pytest.mark.parametrize("name", ["shared", "unused"])
def test_firing_is_checked_in_the_first_pass_too(name: str, awkward: Any, images: Tensor) -> None:
    with pytest.raises(TapError):
        TapReader(awkward, [name])(images)


@pytest.mark.parametrize("how", ["method", "function", "inside"])
def test_compiled_model_is_refused(how: str, awkward: Any) -> None:
    model = awkward
    if how == "method":
        model.compile(backend="eager")
    elif how == "function":
        model = torch.compile(model, backend="eager")
    else:
        model.pair = torch.compile(model.pair, backend="eager")
    with pytest.raises(TapError, match="compiled"):
        TapReader(model, ["first" if how != "function" else "_orig_mod.first"])
    TapReader(model)  # without taps it is welcome


def test_nothing_is_installed_without_taps(awkward: Any, images: Tensor) -> None:
    reader = TapReader(awkward)
    reader(images)
    assert hooks_in(awkward) == 0


def test_close_removes_what_was_installed(awkward: Any, images: Tensor) -> None:
    reader = TapReader(awkward, ["first", "norm:input"])
    assert hooks_in(awkward) == 2
    reader.close()
    assert hooks_in(awkward) == 0


def test_unarmed_hooks_keep_nothing(awkward: Any, images: Tensor) -> None:
    reader = TapReader(awkward, ["first"])
    reader(images)
    awkward(images)
    assert reader.hooks.store is None


def test_a_pass_that_fails_leaves_the_hooks_unarmed(awkward: Any, images: Tensor) -> None:
    reader = TapReader(awkward, ["first"])
    with pytest.raises(RuntimeError):
        reader(images[:, :, :1, :1].expand(-1, 3, -1, -1))
    assert reader.hooks.store is None


def test_probe_leaves_no_trace(awkward: Any, images: Tensor) -> None:
    class Random(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + random.random() + numpy.random.rand() + torch.rand(())

    awkward.noise = Random()
    awkward.first.register_forward_hook(lambda m, i, o: awkward.noise(o))
    awkward.train()
    awkward.norm.eval()
    before = copy.deepcopy(awkward.state_dict())
    states = torch.get_rng_state(), random.getstate(), numpy.random.get_state()[1].copy()
    reader = TapReader(awkward, ["first", "norm"])
    reader.probe(images)
    assert torch.equal(states[0], torch.get_rng_state())
    assert states[1] == random.getstate()
    assert (states[2] == numpy.random.get_state()[1]).all()
    assert all(torch.equal(before[name], value) for name, value in awkward.state_dict().items())
    assert awkward.training
    assert not awkward.norm.training
    assert awkward.act.training
    assert all(p.grad is None for p in awkward.parameters())


def test_gradient_flows_through_taps(awkward: Any, images: Tensor) -> None:
    reader = TapReader(awkward, ["norm", "pre_logits"])
    reader.probe(images)
    output = reader(images)
    output.taps["norm"].square().sum().backward()
    assert awkward.first.weight.grad.abs().sum() > 0
    assert awkward.fc.weight.grad is None


class Checkpointed(nn.Module):
    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.stem = nn.Linear(3, 3)
        self.body = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3))
        self.reentrant = reentrant

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(self.body, self.stem(x), use_reentrant=self.reentrant)


def test_reentrant_checkpointing_is_refused_and_the_other_kind_works() -> None:
    x = torch.randn(2, 3)
    with pytest.raises(TapError, match="non-reentrant"):
        TapReader(Checkpointed(True), ["body.0"])(x)
    model, plain = Checkpointed(False), Checkpointed(False)
    plain.load_state_dict(model.state_dict())
    output = TapReader(model, ["body.0"])(x)
    (output.taps["body.0"].square().sum() + output.logits.sum()).backward()
    hidden = plain.body[0](plain.stem(x))
    (hidden.square().sum() + plain.body[2](hidden.tanh()).sum()).backward()
    for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.allclose(ours.grad, theirs.grad)


def test_missing_gradient_is_found_after_an_evaluation(images: Tensor) -> None:
    """A run begins with a sanity check in evaluation mode: it must not count as the check of training."""
    model = Checkpointed(True)
    reader = TapReader(model, ["body.0"])
    model.eval()
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of checkpointing without gradients
        reader(torch.randn(2, 3))
    model.train()
    with pytest.raises(TapError, match="non-reentrant"):
        reader(torch.randn(2, 3))


# -- native sources ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["resnet18", "vit_tiny_patch16_224", "test_efficientnet"])
def test_timm_intermediates_equal_the_librarys(name: str, timm_net: Any) -> None:
    model = timm_net(name).eval()
    x = torch.randn(2, 1, 32, 32)
    output = TapReader(model, ["intermediates.1", "intermediates.-1"])(x)
    features = model.forward_intermediates(x, intermediates_only=True)
    assert torch.equal(output.taps["intermediates.1"], features[1])
    assert torch.equal(output.taps["intermediates.-1"], features[-1])
    assert torch.equal(output.logits, model(x))


def test_native_and_hooked_taps_go_together(timm_net: Any) -> None:
    model = timm_net("resnet18").eval()
    x = torch.randn(2, 1, 32, 32)
    output = TapReader(model, ["intermediates.2", "layer1.0.conv1", "pre_logits", "logits"])(x)
    assert torch.equal(model.fc(output.taps["pre_logits"]), output.taps["logits"])
    assert output.taps["layer1.0.conv1"].shape[1] == 64


def test_a_tap_that_is_the_answer_is_read_whoever_else_wants_it(timm_net: Any) -> None:
    model, x = timm_net("resnet18").eval(), torch.randn(2, 1, 32, 32)
    output = TapReader(model, ["intermediates.1", "logits"])(x, logits=False)
    assert torch.equal(output.taps["logits"], model(x))


def test_network_stops_early_if_nobody_reads_its_logits(timm_net: Any) -> None:
    model = timm_net("resnet18").eval()
    ran: list[str] = []
    for stage in ("layer1", "layer2", "layer3", "layer4"):
        model.get_submodule(stage).register_forward_hook(lambda m, i, o, stage=stage: ran.append(stage))
    reader = TapReader(model, ["intermediates.2"])
    output = reader(torch.randn(2, 1, 32, 32), logits=False)
    assert ran == ["layer1", "layer2"]
    assert not output.has_logits
    assert reader(torch.randn(2, 1, 32, 32)).has_logits


def test_intermediates_out_of_range_are_named(timm_net: Any) -> None:
    with pytest.raises(TapError, match=r"intermediates.0 to intermediates.4"):
        TapReader(timm_net("resnet18"), ["intermediates.7"])


@pytest.mark.parametrize("index", [0, 2, 3, -1])
def test_hidden_states_equal_the_librarys(index: int, encoder: Any) -> None:
    model = encoder().eval()
    inputs = {"input_ids": torch.randint(31, (2, 7)), "attention_mask": torch.ones(2, 7, dtype=torch.long)}
    output = TapReader(model, [f"hidden_states.{index}"])(inputs)
    states = model(**inputs, output_hidden_states=True)
    assert torch.equal(output.taps[f"hidden_states.{index}"], states.hidden_states[index])
    assert torch.allclose(output.logits, states.logits)


def test_attentions_are_probabilities(encoder: Any) -> None:
    model = encoder()
    inputs = {"input_ids": torch.randint(31, (2, 7))}
    reader = TapReader(model, ["attentions.1"])
    info = reader.probe(inputs)["attentions.1"]
    assert info.shape == (2, 2, 7, 7)
    model.eval()
    assert torch.allclose(reader(inputs).taps["attentions.1"].sum(-1), torch.ones(2, 2, 7), atol=1e-5)


@pytest.mark.parametrize("tap", ["hidden_states.9", "attentions.3"])
def test_layers_out_of_range_are_named(tap: str, encoder: Any) -> None:
    reader = TapReader(encoder(), [tap])
    with pytest.raises(TapError, match=rf"has {tap.split('.')[0]}.0 to"):
        reader.probe({"input_ids": torch.randint(31, (2, 7))})


def test_hooks_work_inside_transformers(encoder: Any) -> None:
    model = encoder().eval()
    inputs = {"input_ids": torch.randint(31, (2, 7))}
    taps = TapReader(model, ["bert.encoder.layer.1", "hidden_states.2"])(inputs).taps
    assert torch.equal(taps["bert.encoder.layer.1"], taps["hidden_states.2"])


def test_what_training_alone_overwrites_is_cloned() -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.5, inplace=True), nn.Linear(8, 3))
    reader = TapReader(model, ["0"])
    x = torch.randn(4, 6)
    state = torch.get_rng_state()
    reader.probe(x)
    assert model.training
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(reader(x).taps["0"], model[0](x))


def test_a_probe_in_training_mode_leaves_running_statistics_alone() -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))
    before = copy.deepcopy(model.state_dict())
    TapReader(model, ["1"]).probe(torch.randn(4, 6))
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
