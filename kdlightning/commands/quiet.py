"""Keeps the screen free of what nobody can act on."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO

_NOISE = (
    r".*LightningCLI's args parameter.*",
    r".*does not have many workers.*",
    r".*in eval mode at the start of training.*",
    r".*smaller than the logging interval.*",
    r"Checkpoint directory .* exists and is not empty.*",
    r".*`isinstance\(treespec, LeafSpec\)`.*",
    r".*was configured so the validation loop will be skipped.*",
    r".*`trainer.fit\(\)` stopped.*",
    r".*Experiment logs directory .* exists.*",
    r".*The dirpath has changed from.*",
    # Lightning still calls what jsonargparse renames.
    r"(?s).*JsonargparseDeprecationWarning|.*(add_instantiator|instantiate_classes|skip_none)",
    r".*resuming from a checkpoint that ended before the epoch ended.*",
    r".*`weights_only`.*",
    # validate, test and predict need no checkpoint callback; a missing knowledge callback is named by the module.
    r".*callbacks used to create the checkpoint need to be provided.*",
)
_LOGGERS = ("lightning.pytorch", "lightning.fabric", "lightning_fabric", "pytorch_lightning", "timm")


@contextmanager
def quiet() -> Iterator[None]:
    """Inside, Lightning's notes are silent, and a warning that is left takes one line."""
    # Lightning sets the levels of its loggers when it is imported: afterwards they stay as we set them.
    import lightning.pytorch  # noqa: F401

    levels = {name: logging.getLogger(name).level for name in _LOGGERS}
    shown = warnings.showwarning
    with warnings.catch_warnings():
        for pattern in _NOISE:
            warnings.filterwarnings("ignore", message=pattern)
        warnings.showwarning = _one_line
        for name in _LOGGERS:
            logging.getLogger(name).setLevel(logging.ERROR if name == "timm" else logging.WARNING)
        try:
            yield
        finally:
            warnings.showwarning = shown
            for name, level in levels.items():
                logging.getLogger(name).setLevel(level)


def _one_line(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> Any:
    text = " ".join(str(message).split())
    print(f"kdlightning: note: {text}", file=file or sys.stderr)
