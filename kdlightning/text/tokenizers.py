"""Tokenizers: loaded by name or path, or trained on the training text."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from kdlightning.errors import ConfigurationError

TokenizerKind = Literal["wordpiece", "bpe", "characters"]

_END = "<|endoftext|>"
_PAD = "<|pad|>"
_UNKNOWN = "<|unknown|>"


def load_tokenizer(name_or_path: str) -> Any:
    """A transformers tokenizer from a folder, or by its name on the hub.

    Raises:
        ConfigurationError: if there is none, or it has neither a padding nor an end token.
    """
    from transformers import AutoTokenizer

    looks_local = Path(name_or_path).expanduser().exists() or name_or_path.startswith((".", "/", "~"))
    if looks_local and not Path(name_or_path).expanduser().is_dir():
        raise ConfigurationError(f"tokenizer: there is no folder {name_or_path}: give a saved tokenizer or a hub name")
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(Path(name_or_path).expanduser()) if looks_local else name_or_path)
    except (OSError, ValueError, KeyError) as error:
        reason = re.split(r"(?<=\.)\s|\n", str(error))[0]
        raise ConfigurationError(
            f"tokenizer {name_or_path!r} cannot be loaded ({reason}): give a folder or a hub name, or none to train one"
        ) from error
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise ConfigurationError(f"tokenizer {name_or_path!r} has no padding token: set one and save it again")
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def train_tokenizer(
    texts: Iterable[str], vocab_size: int = 4000, kind: TokenizerKind = "wordpiece", max_length: int | None = None
) -> Any:
    """Trains a tokenizer; the same texts give the same tokenizer.

    Args:
        texts: to learn the vocabulary from.
        vocab_size: most tokens, special ones included.
        kind: `"wordpiece"` for encoders (lower case, `[CLS] … [SEP]`, with `[MASK]`), `"bpe"` (byte level, nothing is
            unknown) or `"characters"` for causal language models; these two end a text with `<|endoftext|>`, which is
            not put there by itself.
        max_length: of a text, where one cuts.

    Returns:
        A `PreTrainedTokenizerFast`, to be saved by its own `save_pretrained`.

    Raises:
        ConfigurationError: for an unknown kind, a vocabulary that is too small, or no text.
    """
    from transformers import PreTrainedTokenizerFast

    texts = list(texts)
    if not any(text.strip() for text in texts):
        raise ConfigurationError("a tokenizer cannot be trained without text")
    makers = {"wordpiece": _wordpiece, "bpe": _bpe, "characters": _characters}
    if kind not in makers:
        raise ConfigurationError(f"a tokenizer is trained as wordpiece, bpe or characters, not as {kind!r}")
    tokenizer, names = makers[kind](texts, vocab_size)
    options: dict[str, Any] = {} if max_length is None else {"model_max_length": max_length}
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, padding_side="right", **names, **options
    )


def _wordpiece(texts: list[str], vocab_size: int) -> tuple[Any, dict[str, Any]]:
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

    names: dict[str, Any] = {f"{key}_token": f"[{key.upper()}]" for key in ("pad", "unk", "cls", "sep", "mask")}
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = list(names.values())
    _enough(vocab_size, len(special) + 4)
    # Left alone, the trainer numbers the pieces inside words in the order of a randomly seeded hash map, and breaks
    # ties by these numbers. Naming the alphabet and its pieces beforehand makes the outcome a function of the text.
    counts = Counter(
        character
        for text in texts
        for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(tokenizer.normalizer.normalize_str(text))
        for character in word
    )
    alphabet = sorted(_most_frequent(counts, (vocab_size - len(special)) // 3))
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size,
        special_tokens=[*special, *(f"##{character}" for character in alphabet)],
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    trained = tokenizer.get_vocab()
    settled = Tokenizer(models.WordPiece(trained, unk_token="[UNK]"))  # without the pieces as special tokens
    settled.normalizer, settled.pre_tokenizer = tokenizer.normalizer, tokenizer.pre_tokenizer
    settled.decoder = decoders.WordPiece()
    tokenizer = settled
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(name, tokenizer.token_to_id(name)) for name in ("[CLS]", "[SEP]")],
    )
    return tokenizer, names | {"model_input_names": ["input_ids", "token_type_ids", "attention_mask"]}


def _bpe(texts: list[str], vocab_size: int) -> tuple[Any, dict[str, Any]]:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    _enough(vocab_size, len(alphabet) + 2)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=[_END, _PAD], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer, {"eos_token": _END, "bos_token": _END, "pad_token": _PAD}


def _characters(texts: list[str], vocab_size: int) -> tuple[Any, dict[str, Any]]:
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    _enough(vocab_size, 4)
    special = [_END, _PAD, _UNKNOWN]
    counts = Counter(character for text in texts for character in text)
    alphabet = sorted(_most_frequent(counts, vocab_size - len(special)))
    vocabulary = {token: number for number, token in enumerate([*special, *alphabet])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=_UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    return tokenizer, {"eos_token": _END, "bos_token": _END, "pad_token": _PAD, "unk_token": _UNKNOWN}


def _most_frequent(counts: Counter[str], most: int) -> list[str]:
    return sorted(counts, key=lambda character: (-counts[character], character))[:most]


def _enough(vocab_size: int, least: int) -> None:
    if vocab_size < least:
        raise ConfigurationError(f"vocab_size must be at least {least} for this kind of tokenizer, got {vocab_size}")
