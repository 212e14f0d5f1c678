"""An encoder that answers with one vector a text."""

from __future__ import annotations

import inspect
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from kdlightning.errors import ConfigurationError, nearest
from kdlightning.models.sentence_folder import read_sentence_folder, write_sentence_folder
from kdlightning.models.shrink.student import build_spec
from kdlightning.models.weights import load_weights

POOLINGS = ("mean", "cls", "max")


class SentenceEncoder(nn.Module):
    """A transformers encoder, pooling over its last hidden states, perhaps a linear map, perhaps unit length.

    It answers with embeddings `(B, D)`, which are its logits to tasks and losses: the tap `logits`. Padding changes
    nothing. Taps of the encoder (`hidden_states.N`, `attentions.N`, module paths below `encoder.`) are read as usual.

    Args:
        encoder: a transformers encoder without a head, such as `AutoModel` gives it. Its pooler, if it has one, is
            taken off: it would never learn.
        pooling: "mean" over the tokens, "cls" for the first token, or "max" over the tokens.
        normalize: divide by the L2 norm.
        width: of a linear map behind the pooling, so that a narrow student can give its teacher's width; None has none.
    """

    encoder: Any

    def __init__(self, encoder: Any, pooling: str = "mean", normalize: bool = True, width: int | None = None) -> None:
        super().__init__()
        if pooling not in POOLINGS:
            raise ConfigurationError(f"sentence_encoder: pooling {pooling!r}{nearest(pooling, POOLINGS)}")
        if width is not None and width < 1:
            raise ConfigurationError(f"sentence_encoder: width must be at least 1, not {width}")
        hidden = getattr(getattr(encoder, "config", None), "hidden_size", None)
        if hidden is None or encoder.config.is_encoder_decoder or _has_head(encoder):
            raise ConfigurationError(
                f"sentence_encoder needs an encoder without a head, as transformers' AutoModel gives it, and "
                f"{type(encoder).__name__} is none"
            )
        if getattr(encoder, "pooler", None) is not None:
            encoder.pooler = None
        self.encoder = encoder
        self.pooling = pooling
        self.normalize = normalize
        self.projection = None if width is None else nn.Linear(hidden, width)
        self._reads = set(inspect.signature(encoder.forward).parameters)

    @property
    def config(self) -> Any:
        """The encoder's configuration."""
        return self.encoder.config

    @property
    def width(self) -> int:
        """Width D of the embeddings."""
        return self.config.hidden_size if self.projection is None else self.projection.out_features

    def set_attn_implementation(self, name: str) -> None:
        """See transformers."""
        self.encoder.set_attn_implementation(name)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        **options: Any,
    ) -> Any:
        """Embeddings `(B, D)` of token numbers `(B, T)`.

        Args:
            input_ids: `(B, T)`.
            attention_mask: `(B, T)`, 1 for tokens, 0 for padding; all are tokens by default.
            token_type_ids: `(B, T)`; left out for encoders that read none.
            **options: of the encoder. With `output_hidden_states` or `output_attentions` the answer has these, and
                `logits`.
        """
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask, "token_type_ids": token_type_ids, **options}
        given = {name: value for name, value in inputs.items() if value is not None}
        if "token_type_ids" not in self._reads:
            given.pop("token_type_ids", None)
        output = self.encoder(**given)
        vectors = pooled(output.last_hidden_state, attention_mask, self.pooling)
        vectors = vectors if self.projection is None else self.projection(vectors)
        vectors = functional.normalize(vectors, dim=1) if self.normalize else vectors
        if not any(options.get(name) for name in ("output_hidden_states", "output_attentions")):
            return vectors
        inside = {name: getattr(output, name, None) for name in ("hidden_states", "attentions")}
        return SimpleNamespace(logits=vectors, **inside)

    def save_pretrained(self, folder: str | Path, tokenizer: Any = None) -> None:
        """Writes a folder that `sentence_transformers.SentenceTransformer` and `sentence_encoder` load.

        Args:
            folder: made if it is not there.
            tokenizer: a transformers tokenizer to write with it; without one, put it there before it is used.
        """
        write_sentence_folder(self, Path(folder))
        if tokenizer is not None:
            tokenizer.save_pretrained(str(folder))

    @property
    def build_spec(self) -> dict[str, Any]:
        """How the same network is built without the folder that its weights came from; plain data."""
        width = None if self.projection is None else self.projection.out_features
        options = {"pooling": self.pooling, "normalize": self.normalize, "width": width}
        return {
            "class_path": "kdlightning.sentence_encoder",
            "init_args": {"model": build_spec(self.encoder), **options},
        }


def _has_head(model: Any) -> bool:
    return getattr(model, "base_model", None) is not model


def pooled(hidden: Tensor, mask: Tensor | None, pooling: str) -> Tensor:
    """One vector a text `(B, H)` of hidden states `(B, T, H)`; `mask` `(B, T)` is 0 where there is padding."""
    if mask is None:
        mask = torch.ones(hidden.shape[:2], dtype=torch.long, device=hidden.device)
    if pooling == "cls":  # the first token, wherever the padding is
        first = mask.to(torch.long).argmax(dim=1)
        return hidden[torch.arange(len(hidden), device=hidden.device), first]
    inside = mask.bool()[..., None]
    if pooling == "max":
        return hidden.masked_fill(~inside, torch.finfo(hidden.dtype).min).amax(dim=1)
    return hidden.masked_fill(~inside, 0.0).sum(dim=1) / inside.sum(dim=1).clamp(min=1)


def sentence_encoder(
    model: nn.Module | str,
    pooling: str | None = None,
    normalize: bool | None = None,
    width: int | None = None,
    checkpoint: str | None = None,
    key_map: dict[str, str | None] | None = None,
) -> nn.Module:
    """A network that gives sentence embeddings; see `SentenceEncoder`.

    Args:
        model: a folder or hub name, of a plain transformers encoder or in the layout of sentence-transformers, whose
            pooling, normalisation and linear map are taken over; or an encoder, as `transformers_model(architecture:
            AutoModel)` and `student_from_teacher` make it.
        pooling: "mean", "cls" or "max"; what the folder says by default, else "mean".
        normalize: give unit vectors; what the folder says by default, else True.
        width: of a linear map behind the pooling; what the folder says by default, else none.
        checkpoint: a local file of weights: of a run whose student was a `sentence_encoder`; or with `key_map` of
            another, such as `{bert.pooler.: null, classifier.: null, bert.: encoder.}` of a BERT classifier.
        key_map: prefixes of key names in that file, old to new; null leaves such keys out.

    Raises:
        ConfigurationError: there is no such folder, or it holds modules that are not known.
    """
    found = read_sentence_folder(model) if isinstance(model, str) else None
    encoder = model if found is None else found.encoder
    asked = width if width is not None or found is None or found.projection is None else len(found.projection["weight"])
    made = SentenceEncoder(
        encoder,
        pooling or (found.pooling if found is not None else "mean"),
        (found.normalize if found is not None else True) if normalize is None else normalize,
        asked,
    )
    if found is not None and found.projection is not None and width is None:
        assert made.projection is not None
        made.projection.load_state_dict(found.projection)
    if checkpoint is not None and checkpoint != "None":  # jsonargparse hands the null of a nested option on as text
        load_weights(made, checkpoint, key_map)
    return made.train()
