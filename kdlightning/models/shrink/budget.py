"""The largest student that fits a budget."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_info

from kdlightning.errors import ConfigurationError
from kdlightning.models.shrink.encoder import Encoder
from kdlightning.models.shrink.layers import chosen_layers
from kdlightning.models.shrink.sizes import Sizes, sizes_of


@dataclass
class SizeBudget:
    """What a student may cost: parameters, milliseconds, or both; of what fits, the network with most parameters.

    The family: every depth with every width in whole heads, heads and feed-forward units in proportion to the width;
    of as many parameters the deeper one. Sizes that are given beside the budget are fixed.

    Milliseconds are the median of 15 forward passes of one text of `length` tokens in torch on this machine, after 3
    that do not count, with `threads` threads (`kdlightning.latency`). Another moment may choose otherwise: name a
    `file`, so that a run that goes on builds what it began with.

    Args:
        parameters: at most so many, embeddings included.
        latency_ms: at most so many milliseconds.
        layers: depths to choose from; by default all up to the teacher's.
        hidden_sizes: widths to choose from; by default all multiples of a head's width.
        length: tokens of the measured text.
        threads: threads that are measured with.
        file: where the choice is kept (JSON), and read from if it is there.
    """

    parameters: int | None = None
    latency_ms: float | None = None
    layers: list[int] | None = None
    hidden_sizes: list[int] | None = None
    length: int = 64
    threads: int = 1
    file: str | None = None

    def choose(
        self, encoder: Encoder, layers: int | list[int] | None, choice: str, fixed: dict[str, int | None]
    ) -> Sizes:
        """Sizes of the largest network that fits.

        Args:
            encoder: the teacher.
            layers: what is fixed of the depth, or None.
            choice: which layers a depth means.
            fixed: sizes that are fixed, by the names of `sizes_of`; None is free.

        Raises:
            ConfigurationError: no budget is given, or nothing fits.
        """
        if self.parameters is None and self.latency_ms is None:
            raise ConfigurationError("budget: give parameters or latency_ms")
        kept = self._read()
        if kept is not None:
            return kept
        if self.latency_ms is not None and int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise ConfigurationError(
                "budget: several processes would each measure latency_ms for themselves: let one process choose, and "
                "name its file"
            )
        family = self._family(encoder, layers, choice, fixed)
        counted = sorted(((sizes.parameters(encoder), len(sizes.layers), sizes) for sizes in family), key=_size)[::-1]
        fitting = [entry for entry in counted if self.parameters is None or entry[0] <= self.parameters]
        for count, _, sizes in fitting:
            took = self._milliseconds(encoder, sizes) if self.latency_ms is not None else None
            if took is None or took <= self.latency_ms:  # type: ignore[operator]
                speed = "" if took is None else f", {took:.2f} ms"
                rank_zero_info(f"student_from_teacher: {sizes}: {count:,} parameters{speed}")
                self._write(sizes)
                return sizes
        least = f"{counted[-1][0]:,} parameters"
        raise ConfigurationError(f"budget: nothing fits; the smallest of the family ({counted[-1][2]}) has {least}")

    def _family(
        self, encoder: Encoder, layers: int | list[int] | None, choice: str, fixed: dict[str, int | None]
    ) -> list[Sizes]:
        depths: list[int | list[int]] = [*(self.layers or range(1, encoder.depth + 1))] if layers is None else [layers]
        given = fixed["hidden"]
        widths = (
            [given] if given else self.hidden_sizes or range(encoder.head_width, encoder.hidden + 1, encoder.head_width)
        )
        rest = {name: value for name, value in fixed.items() if name != "hidden"}
        return [
            sizes_of(encoder, chosen_layers(encoder.depth, depth, choice), hidden=width, **rest)
            for depth in depths
            for width in widths
        ]

    def _milliseconds(self, encoder: Encoder, sizes: Sizes) -> float:
        from kdlightning.latency import torch_latency

        # The time does not depend on the weights, as long as they are numbers.
        model = sizes.blank(encoder).to_empty(device="cpu").eval()
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.data.zero_()
        text = torch.zeros(1, min(self.length, encoder.model.config.max_position_embeddings - 2), dtype=torch.long)
        inputs = {"input_ids": text, "attention_mask": torch.ones_like(text)}
        return torch_latency(model, inputs, threads=self.threads, repeats=15).milliseconds

    def _read(self) -> Sizes | None:
        if self.file is None or not Path(self.file).is_file():
            return None
        try:
            found: dict[str, Any] = json.loads(Path(self.file).read_text(encoding="utf-8"))
            return Sizes(tuple(found.pop("layers")), **found)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ConfigurationError(f"budget: {self.file} holds no choice: delete it to choose again") from error

    def _write(self, sizes: Sizes) -> None:
        if self.file is not None:
            Path(self.file).parent.mkdir(parents=True, exist_ok=True)
            Path(self.file).write_text(
                json.dumps({**vars(sizes), "layers": list(sizes.layers)}) + "\n", encoding="utf-8"
            )


def _size(entry: tuple[int, int, Sizes]) -> tuple[int, int]:
    return entry[:2]
