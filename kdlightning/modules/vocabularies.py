"""Whether a teacher reads a text's numbers as its student does, and the tokenizer that a run leaves behind."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from kdlightning.errors import ConfigurationError
from kdlightning.teachers import EnsembleTeacher, FrozenTeacher

if TYPE_CHECKING:
    from kdlightning.modules.base import DistillModule

_WAYS_OUT = (
    "answers are compared position by position, so both must read the same tokens: take a student of the teacher's "
    "tokenizer; if the student's vocabulary was cut from the teacher's, give FrozenTeacher(token_map=FOLDER of the cut "
    "tokenizer), token_map: same if only the embeddings' sizes differ; or make a task that gives batches teacher_inputs"
)


def check_vocabularies(module: DistillModule) -> None:
    """Refuses a frozen teacher that reads the student's tokens as other words, as far as that can be known.

    Known are the sizes of the embeddings (of which one may be the other, filled up to a multiple of 8, 64, …), and the
    teacher's tokenizer if it lies in the folder that the teacher was loaded from; the data's tokenizer says what the
    tokens mean.

    Raises:
        ConfigurationError: they differ, and the batches have no inputs of the teacher's own.
    """
    teacher = module.teacher
    members = teacher.members if isinstance(teacher, EnsembleTeacher) else [teacher]
    for member in members:
        if not isinstance(member, FrozenTeacher):
            continue
        problem = _problem(module, member)
        if problem is not None and _reads_tokens_of_the_student(module):
            raise ConfigurationError(f"{problem}: {_WAYS_OUT}")


def _problem(module: DistillModule, teacher: FrozenTeacher) -> str | None:
    ours, theirs = _rows(module.student), _rows(teacher.network)
    if ours is None or theirs is None:
        return None
    if teacher.words is not None:
        known = getattr(getattr(module.trainer, "datamodule", None), "vocabulary_size", None) or ours
        if len(teacher.words) >= known:
            return None
        return f"token_map has {len(teacher.words)} tokens, and the data's tokenizer {known}"
    if teacher.token_map == "same":
        return None
    tokenizer = getattr(getattr(module.trainer, "datamodule", None), "tokenizer", None)
    folder = getattr(getattr(teacher.network, "config", None), "_name_or_path", None)
    word = None if tokenizer is None else _differing_token(tokenizer, folder)
    if word:
        return f"the data's tokenizer numbers {word!r} otherwise than the teacher's in {folder}"
    if word is None and not _only_padded(*sorted((ours, theirs))):
        return f"the student's vocabulary has {ours} tokens and the teacher's {theirs}"
    return None


def _rows(network: nn.Module) -> int | None:
    found = getattr(getattr(network, "config", None), "vocab_size", None)
    return found if isinstance(found, int) else None


def _only_padded(small: int, large: int) -> bool:
    """Whether embeddings of these sizes may be those of one tokenizer, filled up to a round number of rows."""
    steps = [2**power for power in range(3, 10)]
    both_round = small % 64 == large % 64 == 0 and large - small < 512
    return small == large or both_round or any(-(-small // step) * step == large for step in steps)


def _differing_token(tokenizer: Any, folder: str | None) -> str | None:
    """A token that the tokenizer in a folder numbers otherwise; "" if there is none, None if it is not known."""
    if not folder or not (Path(folder) / "tokenizer_config.json").is_file():
        return None
    from kdlightning.text.tokenizers import load_tokenizer

    theirs = load_tokenizer(folder).get_vocab()
    ours = sorted(tokenizer.get_vocab().items(), key=lambda entry: entry[1])
    return next((token for token, number in ours if theirs.get(token) != number), "")


def _reads_tokens_of_the_student(module: DistillModule) -> bool:
    batch = module.sample_batch()
    return batch.teacher_inputs is None and isinstance(batch.inputs, Mapping) and "input_ids" in batch.inputs


def keep_tokenizer(module: DistillModule) -> None:
    """A logged run keeps its tokenizer, since a student that reads text is nothing without it."""
    folder = module.trainer.log_dir if module.trainer.loggers else None  # all ranks must ask
    tokenizer: Any = getattr(getattr(module.trainer, "datamodule", None), "tokenizer", None)
    if folder is not None and module.trainer.is_global_zero and hasattr(tokenizer, "save_pretrained"):
        tokenizer.save_pretrained(str(Path(folder) / "tokenizer"))
