"""What the user did wrong, in one short sentence with the way out."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class ConfigurationError(ValueError):
    """A wrong option, name, path or shape. The message is one sentence that names it and says what to do.

    The command line prints the message alone and exits with code 2.
    """


class MissingExtraError(ConfigurationError):
    """A feature needs a package of an extra that is not installed."""

    def __init__(self, package: str, extra: str, feature: str) -> None:
        super().__init__(f"{feature} needs {package}: pip install 'kdlightning[{extra}]'")


class NonFiniteLossError(RuntimeError):
    """A term of the loss became NaN or infinite."""


def unwritable(error: OSError) -> str:
    """A sentence for a file or folder that cannot be used, with the way out."""
    return f"{error.filename}: {str(error.strerror).lower()}; choose another place, or free this one"


def nearest(name: str, known: Iterable[str], *, most: int = 3) -> str:
    """The known names closest to `name`, as the tail of an error message.

    Returns:
        `"; did you mean a or b?"`, or `"; known: …"` when nothing is close, or an empty string without known names.
    """
    names = sorted(set(known))
    close = difflib.get_close_matches(name, names, n=most, cutoff=0.5)
    if not close:
        folded = {n.lower(): n for n in names}
        close = [folded[n] for n in difflib.get_close_matches(name.lower(), list(folded), n=most, cutoff=0.5)]
    if close:
        return f"; did you mean {' or '.join(close)}?"
    if not names:
        return ""
    shown = ", ".join(names[:12]) + (", …" if len(names) > 12 else "")
    return f"; known: {shown}"
