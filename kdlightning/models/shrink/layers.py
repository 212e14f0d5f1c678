"""Which of a teacher's layers a shallower student begins with."""

from __future__ import annotations

from collections.abc import Sequence

from kdlightning.errors import ConfigurationError, nearest

CHOICES = ("uniform", "skip", "first", "last")


def chosen_layers(depth: int, layers: int | Sequence[int] | None, choice: str = "uniform") -> list[int]:
    """Numbers of the kept layers, from 0, ascending.

    Args:
        depth: layers of the teacher.
        layers: how many are kept, or which; None keeps all.
        choice: which, if a number is given, of k out of L: "uniform" ⌈(i+1)·L/k⌉ − 1, evenly spread and with the last
            one, as TinyBERT maps its layers; "skip" ⌊i·L/k⌋, evenly spread and with the first one: every other layer
            for half of them, as DistilBERT begins; "first" or "last" the k first or last.

    Raises:
        ConfigurationError: more layers than there are, none, one twice, or an unknown choice.
    """
    if choice not in CHOICES:
        raise ConfigurationError(f"layer_choice {choice!r}{nearest(choice, CHOICES)}")
    if layers is None:
        return list(range(depth))
    if isinstance(layers, int):
        if not 1 <= layers <= depth:
            raise ConfigurationError(f"layers must be from 1 to the teacher's {depth}, not {layers}")
        ways = {
            "uniform": [-(-(number + 1) * depth // layers) - 1 for number in range(layers)],
            "skip": [number * depth // layers for number in range(layers)],
            "first": list(range(layers)),
            "last": list(range(depth - layers, depth)),
        }
        return ways[choice]
    found = [number + depth if -depth <= number < 0 else number for number in layers]
    if not found or sorted(set(found)) != found or not 0 <= found[0] <= found[-1] < depth:
        raise ConfigurationError(
            f"layers {list(layers)}: name one or more of the teacher's layers 0 to {depth - 1}, ascending, each once"
        )
    return found
