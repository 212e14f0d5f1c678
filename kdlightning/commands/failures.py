"""Which exceptions of a run are mistakes of its input, and what is said about them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from lightning.fabric.utilities.exceptions import MisconfigurationException

from kdlightning.commands.sentences import explain
from kdlightning.errors import ConfigurationError, NonFiniteLossError, unwritable

_SHAPES = re.compile(
    "|".join(
        (
            r"shapes? cannot be multiplied",
            r"size mismatch",
            r"must match the size",
            r"expected input\[",
            r"[Ee]xpected \d-?D",
            r"Target \d+ is out of bounds",
            r"index out of range in self",
            r"Kernel size can't be greater",
            r"normalized_shape",
            r"Expected target size",
            r"batch_size .* to match target",
            r"Given groups=",
        )
    )
)
_OF_VALUES = (ValueError, TypeError, LookupError, ImportError, AssertionError, RuntimeError, ArithmeticError)
_MEMORY = re.compile(r"out of memory", re.IGNORECASE)


def as_configuration_error(error: Exception) -> Exception | None:
    """The sentence for an exception, or None if it is no mistake of the user's input."""
    if isinstance(error, (ConfigurationError, NonFiniteLossError)):
        return None
    explained = explain(error)
    if explained is not None:
        return explained
    first = first_line(error)
    if isinstance(error, MisconfigurationException):
        return ConfigurationError(first)
    if isinstance(error, FileNotFoundError):
        return ConfigurationError(f"there is no file or folder {error.filename or first}")
    if isinstance(error, OSError) and error.filename and error.strerror:
        return ConfigurationError(unwritable(error))
    if _MEMORY.search(str(error)):
        return ConfigurationError("out of memory: lower --data.batch_size or raise --trainer.accumulate_grad_batches")
    if "Error(s) in loading state_dict" in str(error):
        return ConfigurationError(f"the checkpoint does not fit the networks of this configuration: {_misfit(error)}")
    if _SHAPES.search(str(error)):
        return ConfigurationError(f"data and network do not fit each other: {first}")
    return None


def as_building_error(error: Exception) -> Exception | None:
    """Like `as_configuration_error`; before anything runs, whatever an option's value brings about is its fault."""
    if isinstance(error, (ConfigurationError, NonFiniteLossError)):
        return None
    found = as_configuration_error(error)
    if found is None and isinstance(error, _OF_VALUES):
        return ConfigurationError(f"{first_line(error)} (--debug shows where)")
    return found


@contextmanager
def reraise(translate: Callable[[Exception], Exception | None]) -> Iterator[None]:
    """Replaces an exception by its translation, and keeps it as the cause."""
    try:
        yield
    except Exception as error:
        other = translate(error)
        if other is None:
            raise
        raise other from error


def first_line(error: Exception) -> str:
    """The first line of a message that is not empty, or the exception's name."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def _misfit(error: Exception) -> str:
    """The second line of what torch says, with the first of many keys."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    line = lines[1] if len(lines) > 1 else lines[0]
    keys = re.findall(r'"([^"]+)"', line)
    kind = re.match(r"(Missing|Unexpected) key", line)
    if kind and len(keys) > 1:
        return f"{len(keys)} {kind[1].lower()} keys, {keys[0]!r} among them"
    return line
