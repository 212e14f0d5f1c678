"""Networks cut out of trained ones: nothing removed is the teacher itself, what was silent is not missed."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from kdlightning import student_from_teacher, transformers_model
from kdlightning.errors import ConfigurationError
from kdlightning.models.shrink import chosen_layers

SIZES = {"hidden_size": 24, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 20}
DISTIL = {"dim": 24, "n_layers": 4, "n_heads": 4, "hidden_dim": 20}
WORDS = 40
KINDS = {
    "bert": ("bert", "BertForSequenceClassification", SIZES),
    "bert_mlm": ("bert", "BertForMaskedLM", SIZES),
    "bert_alone": ("bert", "BertModel", SIZES),
    "roberta": ("roberta", "RobertaForSequenceClassification", SIZES),
    "roberta_mlm": ("roberta", "RobertaForMaskedLM", SIZES),
    "distilbert": ("distilbert", "DistilBertForSequenceClassification", DISTIL),
    "distilbert_mlm": ("distilbert", "DistilBertForMaskedLM", DISTIL),
}


def teacher_of(kind: str = "bert") -> Any:
    model_type, architecture, sizes = KINDS[kind]
    torch.manual_seed(0)
    config = {**sizes, "vocab_size": WORDS, "max_position_embeddings": 32}
    config |= {} if kind.endswith(("mlm", "alone")) else {"num_labels": 3}
    model = transformers_model(architecture=architecture, model_type=model_type, config=config)
    with torch.no_grad():
        for parameter in model.parameters():  # biases and normalisations that are not all alike
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return model.eval()


def answer(model: nn.Module) -> Tensor:
    ids = torch.randint(4, WORDS, (3, 7), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[0, 5:] = 0
    with torch.no_grad():
        output = model.eval()(input_ids=ids, attention_mask=mask)
    return output.logits if "logits" in output else output.last_hidden_state


@pytest.mark.parametrize("kind", KINDS)
def test_with_nothing_removed_answers_are_bit_equal(kind: str) -> None:
    teacher = teacher_of(kind)
    before = copy.deepcopy(teacher.state_dict())
    student = student_from_teacher(teacher)
    assert student.training
    assert torch.equal(answer(student), answer(teacher))
    assert not {id(p) for p in student.parameters()} & {id(p) for p in teacher.parameters()}
    with torch.no_grad():
        next(student.parameters()).zero_()
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())


@pytest.mark.parametrize("kind", KINDS)
def test_a_cut_network_loads_with_transformers_alone(kind: str, tmp_path: Path) -> None:
    import transformers

    student = student_from_teacher(teacher_of(kind), layers=2, hidden_size=12)
    config = student.config
    assert (config.num_hidden_layers, config.hidden_size, config.num_attention_heads) == (2, 12, 2)
    student.save_pretrained(tmp_path)
    loaded = getattr(transformers, type(student).__name__).from_pretrained(tmp_path)
    assert torch.equal(answer(loaded), answer(student))
    rebuilt = transformers_model(**student.build_spec["init_args"])
    rebuilt.load_state_dict(student.state_dict())
    assert torch.equal(answer(rebuilt), answer(student))


@pytest.mark.parametrize("kind", ["bert", "roberta_mlm", "distilbert"])
def test_feed_forward_units_that_write_nothing_are_not_missed(kind: str) -> None:
    teacher = teacher_of(kind)
    silent = {0: [1, 2, 19], 1: [0, 5, 7], 2: [3, 4, 11], 3: [10, 12, 13]}
    writers = [m for n, m in teacher.named_modules() if n.endswith((".output.dense", ".lin2")) and "attention" not in n]
    with torch.no_grad():
        for layer, units in silent.items():
            writers[layer].weight[:, units] = 0
    student = student_from_teacher(teacher, intermediate_size=17)
    torch.testing.assert_close(answer(student), answer(teacher), rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", ["bert", "roberta_mlm", "distilbert"])
def test_heads_that_write_nothing_are_not_missed(kind: str) -> None:
    teacher = teacher_of(kind)
    names = ("attention.output.dense", "attention.out_lin")
    writers = [m for n, m in teacher.named_modules() if n.endswith(names)]
    with torch.no_grad():
        for layer, heads in enumerate([(0, 1), (1, 2), (0, 3), (2, 3)]):
            for head in heads:
                writers[layer].weight[:, head * 6 : head * 6 + 6] = 0
    student = student_from_teacher(teacher, heads=2)
    assert (student.config.num_attention_heads, student.config.hidden_size) == (2, 24)
    torch.testing.assert_close(answer(student), answer(teacher), rtol=0, atol=1e-6)
    student.train()
    student(input_ids=torch.randint(4, WORDS, (4, 6)))[0].sum().backward()
    queries = next(p for n, p in student.named_parameters() if n.endswith(("self.query.weight", "q_lin.weight")))
    assert (queries.grad[6:12] != 0).any(), "places that begin silent can learn"


def test_units_inside_heads_that_neither_score_nor_write_are_not_missed() -> None:
    teacher = teacher_of()
    gone = [0, 7, 14, 23]  # one of each head
    layer = teacher.bert.encoder.layer[0].attention
    with torch.no_grad():
        for linear in (layer.self.query, layer.self.key):
            linear.weight[gone] = 0
            linear.bias[gone] = 0
        layer.output.dense.weight[:, gone] = 0
    # Four units of the width go too, which normalisations feel: what attention sees before them is compared.
    student = student_from_teacher(teacher, layers=[0], hidden_size=20, heads=4, hidden_choice="first").eval()
    ours, theirs = student.bert.encoder.layer[0].attention, layer
    states = torch.randn(2, 5, 24)
    states[..., 20:] = 0
    kept = [unit for unit in range(24) if unit not in gone]
    scale = (5 / 6) ** 0.5
    torch.testing.assert_close(ours.self.query(states[..., :20]), scale * theirs.self.query(states)[..., kept])
    torch.testing.assert_close(ours.self.value(states[..., :20]), theirs.self.value(states)[..., kept])
    torch.testing.assert_close(
        ours.self(states[..., :20])[0] @ ours.output.dense.weight.T,
        (theirs.self(states)[0] @ theirs.output.dense.weight.T)[..., :20],
        rtol=1e-5,
        atol=1e-6,
    )


def test_whole_heads_go_with_the_width_by_what_they_can_write() -> None:
    teacher = teacher_of()
    student = student_from_teacher(teacher, layers=[1], hidden_size=12)
    attention = teacher.bert.encoder.layer[1].attention
    value, output = attention.self.value.weight.double(), attention.output.dense.weight.double()
    written = [(output[:, 6 * h : 6 * h + 6] @ value[6 * h : 6 * h + 6]).norm() for h in range(4)]
    heads = sorted(sorted(range(4), key=lambda head: -written[head])[:2])
    rows = [6 * head + unit for head in heads for unit in range(6)]
    columns = _kept_width(teacher, 12)
    expected = attention.self.key.weight[rows][:, columns]
    assert torch.equal(student.bert.encoder.layer[0].attention.self.key.weight, expected)
    embedded = teacher.bert.embeddings.word_embeddings.weight[:, columns]
    assert torch.equal(student.bert.embeddings.word_embeddings.weight, embedded)
    assert torch.equal(student.classifier.weight, teacher.classifier.weight[:, columns])
    first = student_from_teacher(teacher, hidden_size=12, hidden_choice="first")
    assert torch.equal(first.classifier.weight, teacher.classifier.weight[:, :12])


def _kept_width(teacher: Any, count: int) -> list[int]:
    """The width's units by a plain loop over every module."""
    size, read = torch.zeros(24).double(), torch.zeros(24).double()
    for name, module in teacher.named_modules():
        if isinstance(module, nn.LayerNorm):
            size += module.weight.double() ** 2 + module.bias.double() ** 2
        reads_inside = name.endswith(("self.query", "self.key", "self.value", "intermediate.dense"))
        if reads_inside or name.endswith(("pooler.dense", "classifier")):
            read += (module.weight.double() ** 2).sum(0)
    return sorted((size * read).argsort(descending=True)[:count].tolist())


@pytest.mark.parametrize(
    ("layers", "choice", "expected"),
    [
        (6, "uniform", [1, 3, 5, 7, 9, 11]),
        (6, "skip", [0, 2, 4, 6, 8, 10]),
        (5, "uniform", [2, 4, 7, 9, 11]),
        (3, "first", [0, 1, 2]),
        (3, "last", [9, 10, 11]),
        ([0, 2, 4, 7, 9, 11], "uniform", [0, 2, 4, 7, 9, 11]),
        ([0, -1], "uniform", [0, 11]),
        (None, "first", list(range(12))),
    ],
)
def test_chosen_layers(layers: Any, choice: str, expected: list[int]) -> None:
    assert chosen_layers(12, layers, choice) == expected


@given(depth=st.integers(1, 40), share=st.floats(0, 1), choice=st.sampled_from(["uniform", "skip", "first", "last"]))
@settings(max_examples=60, deadline=None)
def test_every_choice_names_as_many_layers_as_asked(depth: int, share: float, choice: str) -> None:
    count = max(1, round(share * depth))
    found = chosen_layers(depth, count, choice)
    assert len(set(found)) == count
    assert found == sorted(found)
    assert 0 <= found[0] <= found[-1] < depth


def test_layers_are_the_teachers() -> None:
    teacher = teacher_of()
    student = student_from_teacher(teacher, layers=[0, 3])
    shallow = copy.deepcopy(teacher)
    shallow.bert.encoder.layer = nn.ModuleList([teacher.bert.encoder.layer[0], teacher.bert.encoder.layer[3]])
    assert torch.equal(answer(student), answer(shallow))


def test_fresh_weights_have_the_same_sizes() -> None:
    cut, fresh = (student_from_teacher(teacher_of(), layers=2, hidden_size=12, fresh=fresh) for fresh in (False, True))
    shapes = {name: value.shape for name, value in cut.state_dict().items()}
    assert {name: value.shape for name, value in fresh.state_dict().items()} == shapes
    assert not torch.equal(cut.classifier.weight, fresh.classifier.weight)


def test_a_folder_with_options_of_older_versions(tmp_path: Path) -> None:
    import json

    teacher = teacher_of()
    teacher.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    names = {"id2label": {"0": "bad", "1": "so so", "2": "good"}, "label2id": {"bad": 0, "so so": 1, "good": 2}}
    config |= {"gradient_checkpointing": False, "made_by": {"who": "me"}, **names}
    (tmp_path / "config.json").write_text(json.dumps(config))
    student = student_from_teacher(transformers_model(str(tmp_path)), layers=1)
    rebuilt = transformers_model(**student.build_spec["init_args"])
    rebuilt.load_state_dict(student.state_dict())
    assert torch.equal(answer(rebuilt), answer(student))
    assert rebuilt.config.id2label == {0: "bad", 1: "so so", 2: "good"}


def test_the_checkpoint_of_a_fine_tuned_teacher(tmp_path: Path) -> None:
    tuned = teacher_of()
    torch.save({"state_dict": {f"student.{k}": v for k, v in tuned.state_dict().items()}}, tmp_path / "last.ckpt")
    plain = transformers_model(
        model_type="bert", config={**SIZES, "vocab_size": WORDS, "max_position_embeddings": 32, "num_labels": 3}
    )
    student = student_from_teacher(plain, layers=3, checkpoint=str(tmp_path / "last.ckpt"))
    assert torch.equal(answer(student), answer(student_from_teacher(tuned, layers=3)))


def test_shallower_vision_transformers() -> None:
    import timm

    sizes = {"img_size": 32, "patch_size": 16, "embed_dim": 24, "num_heads": 2, "depth": 4, "num_classes": 5}
    teacher = timm.create_model("vit_tiny_patch16_224", **sizes).eval()
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(student_from_teacher(teacher).eval()(images), teacher(images))
    student = student_from_teacher(teacher, layers=2, layer_choice="skip").eval()
    shallow = copy.deepcopy(teacher)
    shallow.blocks = nn.Sequential(teacher.blocks[0], teacher.blocks[2])
    assert torch.equal(student(images), shallow(images))
    from kdlightning import timm_model

    again = timm_model(**student.build_spec["init_args"]).eval()
    again.load_state_dict(student.state_dict())
    assert torch.equal(again(images), student(images))
    with pytest.raises(ConfigurationError, match="only layers can be given"):
        student_from_teacher(teacher, hidden_size=12)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"layers": 5}, "layers must be from 1 to the teacher's 4"),
        ({"layers": [2, 1]}, "ascending, each once"),
        ({"layers": 2, "layer_choice": "frist"}, "did you mean first"),
        ({"hidden_size": 25}, "hidden_size must be from 1 to the teacher's 24"),
        ({"hidden_size": 21}, "hidden_size 21 is no multiple of 4 heads"),
        ({"heads": 5}, "heads must be from 1 to the teacher's 4"),
        ({"intermediate_size": 0}, "intermediate_size must be from 1"),
        ({"hidden_choice": "norm"}, "hidden_choice 'norm'"),
    ],
)
def test_wrong_sizes_are_named(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigurationError, match=sentence):
        student_from_teacher(teacher_of(), **options)


def test_a_teacher_whose_pooler_was_taken_off_is_refused() -> None:
    teacher = teacher_of("bert_alone")
    teacher.pooler = None
    with pytest.raises(ConfigurationError, match="the teacher's pooler was taken off, and BertModel is built with it"):
        student_from_teacher(teacher, layers=2)


def test_other_networks_are_refused_with_what_is_possible() -> None:
    from kdlightning import ConvNet

    decoder = transformers_model(
        architecture="AutoModelForCausalLM",
        model_type="gpt2",
        config={"n_embd": 8, "n_layer": 2, "n_head": 2, "vocab_size": 20, "bos_token_id": 0, "eos_token_id": 0},
    )
    for model in (ConvNet(3), decoder):
        with pytest.raises(ConfigurationError, match=r"BERT-, RoBERTa- and DistilBERT-like encoders"):
            student_from_teacher(model, layers=1)
