"""Students that were trained before, and language models made to fit a tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from kdlightning.errors import ConfigurationError
from kdlightning.modules.loading import load_exported, load_student


def load_partner(source: Any, student: nn.Module) -> nn.Module:
    """A trained student, frozen and in evaluation mode.

    Args:
        source: a checkpoint of a run, the folder of an export, or the network itself.
        student: the network that is being trained, which a partner cannot be.

    Raises:
        ConfigurationError: it is none of these.
    """
    if isinstance(source, (str, Path)):
        source = load_exported(source) if Path(source).is_dir() else load_student(source)
    if not isinstance(source, nn.Module):
        raise ConfigurationError(f"partners are checkpoints, exported folders or networks, not {type(source).__name__}")
    if source is student:
        raise ConfigurationError("partners: a partner and the student are the same object: build two networks")
    return source.requires_grad_(False).eval()


def is_encoder_decoder(network: nn.Module) -> bool:
    """Whether a model of transformers has an encoder and a decoder."""
    return bool(getattr(getattr(network, "config", None), "is_encoder_decoder", False))


def fit_to_tokenizer(network: Any, tokenizer: Any, name: str) -> None:
    """Gives a language model the special tokens of the tokenizer that it is used with.

    Raises:
        ConfigurationError: the tokenizer has more tokens than the model.
    """
    rows = network.get_input_embeddings().num_embeddings
    if len(tokenizer) > rows:
        raise ConfigurationError(
            f"the tokenizer has {len(tokenizer)} tokens and the {name}'s embedding {rows} rows: "
            "raise its vocab_size, or lower that of the data"
        )
    settings = getattr(network, "generation_config", None)
    ends = getattr(settings, "eos_token_id", None)
    if settings is not None and tokenizer.eos_token_id not in (ends if isinstance(ends, list) else [ends]):
        # A configuration's default names a token that means something else here, and would end answers early.
        for target in (settings, network.config):
            target.eos_token_id = tokenizer.eos_token_id
            target.bos_token_id = tokenizer.bos_token_id
            target.pad_token_id = tokenizer.pad_token_id
    if is_encoder_decoder(network) and getattr(network.config, "decoder_start_token_id", None) is None:
        for target in filter(None, (settings, network.config)):
            target.decoder_start_token_id = tokenizer.pad_token_id
