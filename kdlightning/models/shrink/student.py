"""A smaller network with a trained one's weights."""

from __future__ import annotations

import json
from typing import Any

import torch
from torch import Tensor, nn

from kdlightning.errors import ConfigurationError, nearest
from kdlightning.models.shrink.budget import SizeBudget
from kdlightning.models.shrink.encoder import Encoder, layer_of, renamed
from kdlightning.models.shrink.importance import hidden_scores, inner_scores, most
from kdlightning.models.shrink.layers import chosen_layers
from kdlightning.models.shrink.sizes import Sizes, sizes_of
from kdlightning.models.shrink.slots import head_slots
from kdlightning.models.shrink.vision import is_vision_transformer, shallower
from kdlightning.models.shrink.vocabulary import CutVocabulary, check_positions, kept_words, renumbered_ids
from kdlightning.models.weights import load_weights

_NOT_REBUILT = ("architectures", "model_type", "transformers_version", "dtype", "torch_dtype", "_name_or_path")


def student_from_teacher(
    teacher: nn.Module,
    layers: int | list[int] | None = None,
    layer_choice: str = "uniform",
    hidden_size: int | None = None,
    hidden_choice: str = "importance",
    heads: int | None = None,
    intermediate_size: int | None = None,
    vocabulary: str | CutVocabulary | None = None,
    budget: SizeBudget | None = None,
    fresh: bool = False,
    checkpoint: str | None = None,
    key_map: dict[str, str | None] | None = None,
) -> nn.Module:
    """A smaller network of a teacher's architecture that begins with the teacher's weights.

    For encoders of transformers with layers like BERT's, RoBERTa's or DistilBERT's, with any head, and for timm's
    vision transformers (depth alone). Nothing is trained and no data are read: what is kept is chosen from the weights.
    `save_pretrained` (or timm) writes the student as a network of its library, and checkpoints of its runs load without
    the teacher. With every option left out the student is a copy.

    Args:
        teacher: the trained network; left as it is. It may be built with a `checkpoint` of its own.
        layers: how many layers are kept, or which, from 0.
        layer_choice: which, if a number is given: "uniform", "skip", "first" or "last" (`chosen_layers`).
        hidden_size: the width. Its units are the same in all layers. Of a smaller one the heads keep their own width
            where it divides, and feed-forward units go in proportion, unless they are given.
        hidden_choice: "importance": the size of a unit behind the normalisations times the weights that read it, summed
            over the network; or "first".
        heads: attention heads; kept are those that can write most, ‖O·V‖. transformers encoders share their width
            among the heads, so with the same width the kept ones become wider and carry the values of those that go.
        intermediate_size: feed-forward units; kept are those with the largest ‖reads‖·‖writes‖ of each layer.
        vocabulary: the tokens to keep: the folder of a cut tokenizer, or what to cut (`CutVocabulary`).
        budget: instead of sizes: the largest network of a family that fits it. What is given beside it is fixed.
        fresh: draw new weights, as the library does: the same small network without the teacher's, to compare with.
        checkpoint: a local file of weights for the teacher, for example of the run that fine-tuned it.
        key_map: prefixes of key names in that file, old to new; null leaves such keys out.

    Returns:
        The student, in training mode.

    Raises:
        ConfigurationError: another kind of network, sizes above the teacher's, or a budget below the smallest.
    """
    if hidden_choice not in ("importance", "first"):
        raise ConfigurationError(f"hidden_choice {hidden_choice!r}{nearest(hidden_choice, ('importance', 'first'))}")
    if checkpoint is not None and checkpoint != "None":  # jsonargparse hands the null of a nested option on as text
        load_weights(teacher, checkpoint, key_map)
    if is_vision_transformer(teacher):
        given = [hidden_size, heads, intermediate_size, vocabulary, budget]
        if any(option is not None for option in given):
            raise ConfigurationError("student_from_teacher: of timm's vision transformers only layers can be given")
        depth = len(teacher.blocks)  # type: ignore[arg-type]
        return shallower(teacher, chosen_layers(depth, layers, layer_choice), fresh).train()
    encoder = Encoder.of(teacher)
    words = kept_words(vocabulary, encoder)
    fixed = {"hidden": hidden_size, "heads": heads, "inner": intermediate_size}
    fixed["words"] = None if words is None else len(words)
    if budget is not None:
        sizes = budget.choose(encoder, layers, layer_choice, fixed)
    else:
        sizes = sizes_of(encoder, chosen_layers(encoder.depth, layers, layer_choice), **fixed)
    student = of_size(encoder, sizes, words)
    if not fresh:
        take_weights(student, encoder, sizes, words, hidden_choice)
    return student.train()


def of_size(encoder: Encoder, sizes: Sizes, words: list[int] | None) -> nn.Module:
    """A network of the encoder's class in smaller sizes, with new weights."""
    model = encoder.model
    config = type(model.config).from_dict(model.config.to_dict())
    options: dict[str, Any] = sizes.options(model.config)
    if words is not None:
        options |= renumbered_ids(model.config, words)
        check_positions(model, words)
    for name, value in options.items():
        setattr(config, name, value)
    config._attn_implementation = model.config._attn_implementation
    student = type(model)(config).to(model.dtype)
    lacking = sorted(set(dict(student.named_children())) - set(dict(model.named_children())))
    if lacking:
        raise ConfigurationError(
            f"student_from_teacher: the teacher's {', '.join(lacking)} was taken off, and {type(model).__name__} is "
            "built with it: give the network as transformers_model builds it"
        )
    student.__dict__["build_spec"] = build_spec(student)
    return student


@torch.no_grad()
def take_weights(
    student: nn.Module, encoder: Encoder, sizes: Sizes, words: list[int] | None, hidden_choice: str = "importance"
) -> None:
    """Fills a smaller network with the weights of what is kept."""
    model = encoder.model
    weights = {name: value.detach().cpu() for name, value in model.state_dict().items()}
    hidden = list(range(sizes.hidden))
    if sizes.hidden < encoder.hidden and hidden_choice == "importance":
        hidden = most(hidden_scores(encoder, weights), sizes.hidden)
    chosen = _Chosen(encoder, sizes, weights, {"hidden": hidden, "words": words or list(range(encoder.words))})
    student.load_state_dict({name: chosen.tensor(name) for name in student.state_dict()})


class _Chosen:
    """Cuts the teacher's tensors to what the student keeps."""

    def __init__(self, encoder: Encoder, sizes: Sizes, weights: dict[str, Tensor], kept: dict[str, list[int]]) -> None:
        self.encoder = encoder
        self.weights = weights
        self.layers = sizes.layers
        self.kept = kept
        self.inside: list[dict[str, list[int]]] = []
        self.slots = []
        for layer in sizes.layers:
            slots = head_slots(encoder, weights, layer, sizes.heads, sizes.hidden // sizes.heads)
            inner = most(inner_scores(encoder, weights, layer), sizes.inner)
            self.slots.append(slots)
            self.inside.append(
                {"query": slots.scores, "key": slots.scores, "value": slots.values, "output": slots.values}
                | {"inner": inner}
            )

    def tensor(self, name: str) -> Tensor:
        """The student's tensor of that name."""
        layer = layer_of(name)
        axes = self.encoder.axes[renamed(name, 0)]
        tensor = self.weights[name if layer is None else renamed(name, self.layers[layer])]
        kept = self.kept if layer is None else self.kept | self.inside[layer]
        for axis, word in enumerate(axes):
            if word and kept[word] != list(range(tensor.shape[axis])):
                tensor = tensor.index_select(axis, torch.tensor(kept[word]))
        tensor = tensor.clone()
        if layer is not None and "query" in axes and self.slots[layer].scale != 1.0:
            tensor *= self.slots[layer].scale
            tensor[self.slots[layer].silent] = 0.0
        return tensor


def build_spec(student: Any) -> dict[str, Any]:
    """How `transformers_model` builds the same network, without the teacher; plain data."""
    config = json.loads(student.config.to_json_string(use_diff=True))
    known = dir(type(student.config)())  # configurations keep options of older versions, which build nothing
    arguments = {
        "architecture": type(student).__name__,
        "model_type": student.config.model_type,
        "config": {name: value for name, value in config.items() if name in known and name not in _NOT_REBUILT},
    }
    return {"class_path": "kdlightning.transformers_model", "init_args": arguments}
