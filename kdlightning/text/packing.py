"""Token streams in blocks of one length, and padded batches."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

IGNORED = -100
"""The label of a token that does not count, as in torch's cross entropy and in transformers."""


def pack(
    documents: Iterable[Sequence[int]], block_size: int, *, end: int | None = None, pad: int = 0
) -> dict[str, Tensor]:
    """Lays documents end to end and cuts the stream into blocks; only the last block is padded.

    Labels are the inputs themselves, as transformers' causal models expect them: the model shifts. A block's first
    token is thus never predicted.

    Args:
        documents: token numbers of each document.
        block_size: tokens in a block.
        end: put behind each document; None puts nothing.
        pad: fills the last block up; not attended to and not counted.

    Returns:
        `input_ids`, `attention_mask` (1 = token) and `labels` (-100 = uncounted), each `(N, block_size)` int64.
        A rest of a single token, which predicts nothing, is left out unless it is all there is.
    """
    if block_size < 2:
        raise ValueError(f"block_size must be at least 2, got {block_size}")
    stream: list[int] = []
    for document in documents:
        stream.extend(document)
        if end is not None:
            stream.append(end)
    rest = len(stream) % block_size
    if rest == 1 and len(stream) > 1:
        stream.pop()
        rest = 0
    filling = (block_size - rest) % block_size
    tokens = torch.tensor(stream + [pad] * filling, dtype=torch.int64)
    counted = torch.ones_like(tokens)
    counted[len(stream) :] = 0
    labels = tokens.masked_fill(counted == 0, IGNORED)
    return {
        "input_ids": tokens.view(-1, block_size),
        "attention_mask": counted.view(-1, block_size),
        "labels": labels.view(-1, block_size),
    }
