"""Measures checkpoints and writes what comes out into `result.json`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.pytorch.utilities.model_helpers import is_overridden

from kdlightning.commands.results import (
    SCHEMA,
    config_hash,
    describe_student,
    measured_hash,
    plain_metrics,
    size_on_disk,
    student_hash,
    versions,
)
from kdlightning.commands.runs import RESULT, checkpoint_file, read_result, write_json
from kdlightning.commands.words import duration, metric_words
from kdlightning.data.base import DistillDataModule
from kdlightning.errors import ConfigurationError
from kdlightning.modules import DistillModule
from kdlightning.teachers import NetworkTeacher

if TYPE_CHECKING:
    from kdlightning.commands.lightning_command import DistillCommand


def finish_fit(command: DistillCommand) -> None:
    """After training: both checkpoints on the validation split, `result.json`, and what `then` asks for."""
    run = _folder(command)
    validates = command.trainer.enable_validation
    inputs = _inputs(command.model)
    result, earlier = new_result(command, inputs), _earlier(run)
    kinds = [which for which in ("last", "best") if checkpoint_file(run, which).is_file()]
    _keep_tests(result, earlier)
    result["checkpoints"] = {which: f"checkpoints/{which}.ckpt" for which in kinds}
    if validates:
        for which in kinds:
            measure(command, result, "val", which, checkpoint_file(run, which))
    save(command, result)
    for step in command.request.then:
        if step == "test":
            _test_all(command, result, kinds)
        elif step == "export":
            _export(command, result)
    _say_result(command, result)


def report_checkpoints(command: DistillCommand, split: str) -> None:
    """`validate` and `test`: measures the command's checkpoints and adds the numbers to the run's result."""
    run = _folder(command)
    new = new_result(command, None)
    result = (None if command.request.tests_built else _earlier(run)) or new
    same = result["config"].get("measured_hash", "") in ("", new["config"]["measured_hash"])
    if split == "test" and not has_test(command.datamodule):
        command.say("these data have no test split: nothing is measured; `validate` uses the validation split")
        return
    checkpoints: list[tuple[str, Path | None]] = [*command.checkpoints] or [("built", None)]
    for which, path in checkpoints:
        measure(command, result, split, which, path)
        words = metric_words({f"val/{k}": v for k, v in result["metrics"][split][which].items() if v is not None}, 8)
        best = f" ({chosen(new)})" if which == "best" else ""
        command.say(f"{split} · {which}{best}  " + "  ".join(word.removeprefix("val/") for word in words))
    if not same:
        command.say(f"model or data differ from the run's own: {run / RESULT} is left as it is")
    elif not command.request.tests_built or (command.request.run is not None and _earlier(run) is None):
        save(command, result)


def chosen(result: Mapping[str, Any]) -> str:
    """How a run's best checkpoint was found."""
    return "chosen on test, not reportable" if result.get("validates_on_test") else "chosen by validation"


def _earlier(run: Path) -> dict[str, Any] | None:
    """What the run has measured before; a damaged file is written anew."""
    try:
        return read_result(run)
    except ConfigurationError:
        return None


def _keep_tests(result: dict[str, Any], earlier: dict[str, Any] | None) -> None:
    """A resumed run that had nothing left to train keeps the test scores of its weights."""
    if earlier is not None and earlier.get("steps") == result["steps"] and "test" in earlier["metrics"]:
        result["metrics"]["test"] = earlier["metrics"]["test"]


def measure(command: DistillCommand, result: dict[str, Any], split: str, which: str, path: Path | None) -> None:
    """Runs one checkpoint over one split; the last one's test scores also go to TensorBoard."""
    run = command.trainer.validate if split == "val" else command.trainer.test
    options: dict[str, Any] = {"ckpt_path": str(path) if path else None, "verbose": False}
    if split == "test" and which == "last":
        found = run(command.model, datamodule=command.datamodule, **options)
    else:
        with command.unlogged():
            found = run(command.model, datamodule=command.datamodule, **options)
    values = {name: value for scores in found for name, value in scores.items()}
    result["metrics"].setdefault(split, {})[which] = plain_metrics(values, split)


def has_test(data: Any) -> bool:
    """Whether a DataModule has a test split."""
    if isinstance(data, DistillDataModule):
        return data.sources.test is not None
    return is_overridden("test_dataloader", data)


def _test_all(command: DistillCommand, result: dict[str, Any], kinds: list[str]) -> None:
    if not has_test(command.datamodule):
        result["notes"].append("the data have no test split")
        command.say("these data have no test split: the validation scores stand alone")
    else:
        for which in kinds:
            measure(command, result, "test", which, checkpoint_file(_folder(command), which))
    save(command, result)


def _export(command: DistillCommand, result: dict[str, Any]) -> None:
    from kdlightning.export import export_student

    if not command.trainer.is_global_zero:
        return
    run = _folder(command)
    done = export_student(checkpoint_file(run, "last"), run / "export", inputs=result["student"].get("inputs"))
    result["export"] = {"format": done.format, "path": "export", "load": done.load_line}
    result["student"]["file_bytes"] = size_on_disk(run / "export")
    save(command, result)


def new_result(command: DistillCommand, inputs: Any) -> dict[str, Any]:
    """A result without metrics yet."""
    command._dump_config()
    config, module = command.config_dump, command.model
    result: dict[str, Any] = {
        "schema": SCHEMA,
        "config": {
            "name": command.request.name,
            "hash": config_hash(config),
            "student_hash": student_hash(config),
            "measured_hash": measured_hash(config),
            "files": [str(path) for path, _ in command.request.configs],
        },
        "seed": command.place.seed,
        "module": type(module).__name__,
        "labels_alone": module.labels_alone and getattr(command.datamodule, "labels_alone", True),
        "monitor": {"name": module.task.monitor, "mode": module.task.monitor_mode},
        "metrics": {},
        "history": command.history.curves,
        "seconds": round(command.history.total_seconds, 3),
        "epochs": command.trainer.current_epoch,
        "steps": command.trainer.global_step,
        "student": describe_student(module.student, inputs),
        "versions": versions(),
        "notes": [],
    }
    if getattr(module.teacher, "constant", False) and isinstance(module.teacher, NetworkTeacher):
        result["teacher"] = describe_student(module.teacher.network, None)
    if getattr(command.datamodule, "validates_on_test", False):
        result["validates_on_test"] = True
        result["notes"].append("validation reads the test split: the best checkpoint is not reportable")
    return result


def save(command: DistillCommand, result: dict[str, Any]) -> None:
    """Writes the run's result, on the first rank."""
    if command.trainer.is_global_zero:
        write_json(_folder(command) / RESULT, result)


def _inputs(module: DistillModule) -> Any:
    try:
        return module.sample_batch().inputs
    except (RuntimeError, TypeError, IndexError, AttributeError, StopIteration):
        # Only the latency is lost: loaders of the user's own need not be readable out of turn.
        return None


def _say_result(command: DistillCommand, result: dict[str, Any]) -> None:
    short = command.model.task.monitor.split("/", 1)[-1]
    words = []
    for split, by_checkpoint in result["metrics"].items():
        for which, values in by_checkpoint.items():
            if values.get(short) is not None:
                words.append(f"{split}/{short} {values[short]:.4g} ({which})")
    command.say(f"done in {duration(result['seconds'])} · {'  '.join(words)} · {_folder(command) / RESULT}")
    for note in result["notes"]:
        command.say(f"note: {note}")


def _folder(command: DistillCommand) -> Path:
    assert command.run_folder is not None
    return command.run_folder
