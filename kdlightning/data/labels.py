"""Labels of any kind as class numbers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from kdlightning.errors import ConfigurationError, nearest


def names_of(values: Iterable[Any]) -> list[str]:
    """The classes that occur: numbers in their order, anything else alphabetically.

    Raises:
        ConfigurationError: if there are fewer than two.
    """
    names = {str(value) for value in values}
    if len(names) < 2:
        raise ConfigurationError(
            f"the training labels are all {next(iter(names), 'missing')!r}: two classes are needed"
        )
    if all(name.removeprefix("-").isdecimal() for name in names):
        return sorted(names, key=int)
    return sorted(names)


def label_numbers(values: Sequence[Any], names: Sequence[str], where: str) -> Tensor:
    """The number of each value's name `(N,)` int64.

    A label that is itself the number of a class, when no class is called so, counts as that number.

    Args:
        values: labels.
        names: of the classes, in the order of their numbers.
        where: whose labels they are, for the message.

    Raises:
        ConfigurationError: for a label that is none of the classes.
    """
    numbers = {name: number for number, name in enumerate(names)}
    if not any(str(number) in numbers for number in range(len(names))):
        numbers |= {str(number): number for number in range(len(names))}
    try:
        return torch.tensor([numbers[str(value)] for value in values])
    except KeyError as error:
        label = str(error.args[0])
        raise ConfigurationError(
            f"{where} have the label {label!r}, which the training data lack{nearest(label, names)}"
        ) from error
