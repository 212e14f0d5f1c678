"""Sentence encoders: pooling by the mask, folders that sentence-transformers describes, and their mistakes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from kdlightning import ConfigurationError, SentenceEncoder, sentence_encoder, transformers_model
from kdlightning.models.sentence_encoder import pooled
from kdlightning.taps import TapReader

SIZES = {
    "bert": {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16},
    "distilbert": {"dim": 8, "n_layers": 1, "n_heads": 2, "hidden_dim": 16},
    "roberta": {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16},
}


def encoder(kind: str = "bert") -> Any:
    torch.manual_seed(3)
    config = {"vocab_size": 30, "max_position_embeddings": 24, **SIZES[kind]}
    return transformers_model(architecture="AutoModel", model_type=kind, config=config)


def texts(*, padding: int = 0, left: bool = False) -> dict[str, Tensor]:
    """Two texts of five and three tokens with `padding` further columns."""
    ids = torch.tensor([[5, 6, 7, 8, 9], [10, 11, 12, 0, 0]])
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    extra = torch.zeros(2, padding, dtype=torch.long)
    join = (lambda x: torch.cat([extra, x], 1)) if left else (lambda x: torch.cat([x, extra], 1))
    return {"input_ids": join(ids), "attention_mask": join(mask), "token_type_ids": join(torch.zeros_like(ids))}


@pytest.mark.parametrize("pooling", ["mean", "cls", "max"])
def test_pooling_is_a_loop_over_the_tokens(random, pooling: str) -> None:
    hidden, mask = random(3, 4, 5), torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [0, 0, 1, 1]])
    rows = []
    for states, kept in zip(hidden, mask, strict=True):
        own = [state for state, inside in zip(states, kept, strict=True) if inside]
        whole = torch.stack(own)
        rows.append({"mean": sum(own) / len(own), "cls": own[0], "max": whole.amax(0)}[pooling])
    assert torch.equal(pooled(hidden, mask, "cls"), pooled(hidden, mask.bool(), "cls"))
    torch.testing.assert_close(pooled(hidden, mask, pooling), torch.stack(rows))
    full = torch.ones(3, 4, dtype=torch.long)
    assert torch.equal(pooled(hidden, None, pooling), pooled(hidden, full, pooling))


@pytest.mark.parametrize("kind", ["bert", "distilbert"])
@pytest.mark.parametrize("pooling", ["mean", "cls", "max"])
def test_padding_changes_neither_embedding_nor_gradient(pooling: str, kind: str) -> None:
    network: Any = sentence_encoder(encoder(kind), pooling, width=6).double().eval()
    found = []
    for padding in (0, 4):
        network.zero_grad()
        vectors = network(**texts(padding=padding))
        (vectors * torch.arange(12.0).view(2, 6)).sum().backward()
        found.append((vectors.detach(), [p.grad.clone() for p in network.parameters() if p.grad is not None]))
    torch.testing.assert_close(found[0][0], found[1][0])
    for one, other in zip(found[0][1], found[1][1], strict=True):
        torch.testing.assert_close(one, other)
    assert len(found[0][1]) == len(list(network.parameters()))  # no pooler that never learns


def test_what_is_behind_the_mask_may_be_anything() -> None:
    hidden = torch.zeros(1, 2, 3, requires_grad=True)
    with torch.no_grad():
        hidden[0, 1] = torch.inf
    for pooling in ("mean", "max", "cls"):
        assert not pooled(hidden, torch.tensor([[1, 0]]), pooling).any()


def test_embeddings_have_unit_length_and_the_asked_width() -> None:
    network: Any = sentence_encoder(encoder(), width=6).eval()
    assert network.width == 6
    torch.testing.assert_close(network(**texts()).norm(dim=1), torch.ones(2))
    plain: Any = sentence_encoder(encoder(), normalize=False)
    assert plain.width == 8
    assert plain.projection is None


def test_taps_of_the_encoder_are_read() -> None:
    network: Any = sentence_encoder(encoder()).eval()
    names = ["logits", "hidden_states.1", "attentions.0", "queries.1", "encoder.encoder.layer.0"]
    output = TapReader(network, names)(texts())
    assert output.taps["logits"].shape == (2, 8)
    assert output.taps["hidden_states.1"].shape == (2, 5, 8)
    assert output.taps["attentions.0"].shape == (2, 2, 5, 5)
    assert torch.equal(output.taps["hidden_states.1"], output.taps["encoder.encoder.layer.0"])
    torch.testing.assert_close(output.logits, network(**texts()))


@pytest.mark.parametrize(
    ("kind", "pooling", "normalize", "width"),
    [("bert", "mean", True, None), ("roberta", "cls", False, 6), ("distilbert", "max", True, 6)],
)
def test_a_folder_gives_the_same_network_again(
    tmp_path: Path, kind: str, pooling: str, normalize: bool, width: int | None
) -> None:
    network: Any = sentence_encoder(encoder(kind), pooling, normalize, width).eval()
    network.save_pretrained(tmp_path / "made")
    again: Any = sentence_encoder(str(tmp_path / "made")).eval()
    assert (again.pooling, again.normalize, again.width) == (pooling, normalize, network.width)
    assert torch.equal(again(**texts()), network(**texts()))
    listed = [module["type"].rsplit(".", 1)[-1] for module in json.loads((tmp_path / "made/modules.json").read_text())]
    assert listed == ["Transformer", "Pooling"] + ["Dense"] * (width is not None) + ["Normalize"] * normalize
    modes = json.loads((tmp_path / "made/1_Pooling/config.json").read_text())
    assert modes["word_embedding_dimension"] == 8
    assert [name for name, on in modes.items() if on is True] == [
        {"mean": "pooling_mode_mean_tokens", "cls": "pooling_mode_cls_token", "max": "pooling_mode_max_tokens"}[pooling]
    ]
    other: Any = sentence_encoder(str(tmp_path / "made"), pooling="mean", normalize=True, width=3)
    assert (other.pooling, other.normalize, other.width) == ("mean", True, 3)


def test_newer_and_older_folders_are_read(tmp_path: Path) -> None:
    network: Any = sentence_encoder(encoder(), "cls", normalize=False).eval()
    network.save_pretrained(tmp_path / "new")
    (tmp_path / "new/1_Pooling/config.json").write_text('{"embedding_dimension": 8, "pooling_mode": "cls"}')
    assert torch.equal(sentence_encoder(str(tmp_path / "new")).eval()(**texts()), network(**texts()))
    old = tmp_path / "old"
    network.encoder.save_pretrained(old / "0_Transformer")
    (old / "1_Pooling").mkdir()
    (old / "1_Pooling/config.json").write_text('{"pooling_mode_cls_token": true}')
    kinds = [("0_Transformer", "Transformer"), ("1_Pooling", "Pooling")]
    (old / "modules.json").write_text(json.dumps([{"path": path, "type": f"models.{kind}"} for path, kind in kinds]))
    assert torch.equal(sentence_encoder(str(old)).eval()(**texts()), network(**texts()))
    network.encoder.save_pretrained(tmp_path / "plain")
    plain: Any = sentence_encoder(str(tmp_path / "plain"))
    assert (plain.pooling, plain.normalize) == ("mean", True)


def test_weights_of_a_classifier_fill_it(tmp_path: Path) -> None:
    torch.manual_seed(4)
    config = {"vocab_size": 30, **SIZES["bert"]}
    classifier: Any = transformers_model(model_type="bert", config=config).eval()
    torch.save(classifier.state_dict(), tmp_path / "weights.pt")
    names = {"bert.pooler.": None, "classifier.": None, "bert.": "encoder."}
    bare = transformers_model(architecture="AutoModel", model_type="bert", config=config)
    network = sentence_encoder(bare, checkpoint=str(tmp_path / "weights.pt"), key_map=names).eval()
    hidden = classifier.bert(**texts()).last_hidden_state
    expected = torch.nn.functional.normalize(pooled(hidden, texts()["attention_mask"], "mean"), dim=1)
    torch.testing.assert_close(network(**texts()), expected)


def test_mistakes_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="pooling 'meen'; did you mean mean"):
        sentence_encoder(encoder(), "meen")
    with pytest.raises(ConfigurationError, match="width must be at least 1"):
        SentenceEncoder(encoder(), width=0)
    with pytest.raises(ConfigurationError, match="encoder without a head.*BertForSequenceClassification is none"):
        SentenceEncoder(transformers_model(model_type="bert", config={"vocab_size": 30, **SIZES["bert"]}))
    with pytest.raises(ConfigurationError, match="encoder without a head.*Linear is none"):
        SentenceEncoder(torch.nn.Linear(2, 2))
    with pytest.raises(ConfigurationError, match="there is no folder"):
        sentence_encoder(str(tmp_path / "missing"))
    with pytest.raises(ConfigurationError, match="holds no encoder of transformers"):
        sentence_encoder(str(tmp_path))
    folder = tmp_path / "made"
    sentence_encoder(encoder(), width=4).save_pretrained(folder)
    pooling, dense, modules = (
        folder / name for name in ("1_Pooling/config.json", "2_Dense/config.json", "modules.json")
    )
    kept = dense.read_text()
    dense.write_text(json.dumps({**json.loads(kept), "activation_function": "torch.nn.modules.activation.Tanh"}))
    with pytest.raises(ConfigurationError, match="Dense module of .* ends with Tanh: only Identity is known"):
        sentence_encoder(str(folder))
    dense.write_text(kept)
    pooling.write_text('{"pooling_mode_mean_tokens": true, "pooling_mode_max_tokens": true}')
    with pytest.raises(ConfigurationError, match="pools by mean and max: known are mean, cls and max"):
        sentence_encoder(str(folder))
    modules.write_text('[{"path": "", "type": "models.Transformer"}, {"path": "1", "type": "models.LSTM"}]')
    with pytest.raises(ConfigurationError, match="module 1 of .* is LSTM"):
        sentence_encoder(str(folder))
    modules.write_text("{")
    with pytest.raises(ConfigurationError, match="modules.json is not JSON"):
        sentence_encoder(str(folder))


@pytest.fixture
def random() -> Any:
    draw = torch.Generator().manual_seed(7)
    return lambda *shape: torch.randn(*shape, generator=draw, dtype=torch.float64)
