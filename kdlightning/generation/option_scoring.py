"""How likely a causal language model finds given continuations."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch

Tokens = tuple[int, ...]


@torch.no_grad()
def mean_nll(
    model: Any, prompts: Sequence[Sequence[int]], options: Sequence[Sequence[Tokens]], pad: int, batch_size: int
) -> list[list[float]]:
    """Mean negative log-likelihood a token of each prompt's continuations.

    Continuations that differ in their last token alone share a row, so a choice between single tokens costs one
    pass over the prompt.

    Args:
        model: a causal language model of transformers, in evaluation mode.
        prompts: tokens, at least one each.
        options: for each prompt its continuations, each of at least one token.
        pad: token that fills rows up.
        batch_size: rows of a pass.
    """
    rows = [
        (place, tokens) for place, own in enumerate(options) for tokens in _longest({option[:-1] for option in own})
    ]
    rows.sort(key=lambda row: len(prompts[row[0]]) + len(row[1]))
    found: list[dict[Tokens, float]] = [{} for _ in prompts]
    for start in range(0, len(rows), batch_size):
        part = rows[start : start + batch_size]
        for (place, tokens), log_probs in zip(part, _log_probs(model, prompts, part, pad), strict=True):
            for option in options[place]:
                if tokens[: len(option) - 1] == option[:-1]:
                    chosen = log_probs[torch.arange(len(option)), torch.tensor(option)]
                    found[place][option] = -float(chosen.double().mean())
    return [[found[place][option] for option in own] for place, own in enumerate(options)]


def _longest(beginnings: set[Tokens]) -> list[Tokens]:
    """Those that are no beginning of another one, in a fixed order."""
    return sorted(
        each
        for each in beginnings
        if not any(len(other) > len(each) and other[: len(each)] == each for other in beginnings)
    )


def _log_probs(
    model: Any, prompts: Sequence[Sequence[int]], rows: Sequence[tuple[int, Tokens]], pad: int
) -> list[torch.Tensor]:
    """Log-probabilities behind each prompt and behind each token after it, `(1 + tokens, V)` in float32 on the CPU."""
    whole = [[*prompts[place], *tokens] for place, tokens in rows]
    length = max(len(row) for row in whole)
    device = next(model.parameters()).device
    # Padded on the right, where no position before it is affected: positions count as in training.
    ids = torch.tensor([row + [pad] * (length - len(row)) for row in whole], device=device)
    mask = torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in whole], device=device)
    wanted = [range(len(prompts[place]) - 1, len(prompts[place]) + len(tokens)) for place, tokens in rows]
    positions = sorted({position for each in wanted for position in each})
    options: dict[str, Any] = {}
    if "logits_to_keep" in inspect.signature(model.forward).parameters:
        # Logits of a whole prompt would be the largest tensor by far.
        options["logits_to_keep"] = torch.tensor(positions, device=device)
    else:
        positions = list(range(length))
    logits = model(input_ids=ids, attention_mask=mask, **options).logits
    place_of = {position: number for number, position in enumerate(positions)}
    return [
        logits[row, [place_of[position] for position in each]].float().log_softmax(dim=-1).cpu()
        for row, each in enumerate(wanted)
    ]
