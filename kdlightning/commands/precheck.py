"""What can be found wrong with a training command before Lightning is imported, which takes seconds.

Options are read one by one, as Lightning's parser will read them: `--option value` or `--option=value`.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import kdlightning
from kdlightning.commands.runs import run_of
from kdlightning.commands.shipped import config_name, find_config, shipped
from kdlightning.errors import ConfigurationError, nearest

_SHARED = ("config", "c", "print_config", "seed_everything", "trainer", "model", "data", "ckpt_path", "weights_only")
_OPTIONS: dict[str, tuple[str, ...]] = {
    "generate": ("config", "c", "print_config", "seed_everything", "trainer", "model", "data"),
    "fit": _SHARED,
    "validate": (*_SHARED, "verbose"),
    "test": (*_SHARED, "verbose"),
    "predict": (*_SHARED, "return_predictions"),
}
# What people type first, so that `--max_epochs` finds `--trainer.max_epochs`.
_USUAL = (
    *("trainer.max_epochs", "trainer.max_steps", "trainer.accelerator", "trainer.devices", "trainer.precision"),
    *("trainer.callbacks", "trainer.default_root_dir", "trainer.fast_dev_run", "trainer.limit_train_batches"),
    *("data.batch_size", "data.num_workers", "model.optimizer", "model.lr_scheduler", "model.weights", "model.student"),
    *("model.teacher", "model.response", "name"),
)
_OWN = ("name", "then", "run")
_SPECIAL_CHECKPOINTS = ("last", "best", "hpc", "registry")


@dataclass
class Request:
    """A training command, read.

    Attributes:
        command: fit, validate, test, predict or generate.
        arguments: what Lightning's parser gets, with configurations as paths.
        configs: the configuration files in their order, and what each holds.
        options: all options with values, in their order, without configurations.
        name: what the runs are called.
        then: what follows a fit in the same process: "test", "export".
        run: the exact run folder, or None to find one.
        checkpoint: value of `--ckpt_path`, or None.
        tests_built: `--ckpt_path null`: the student as it is built.
    """

    command: str
    arguments: list[str] = field(default_factory=list)
    configs: list[tuple[Path, dict[str, Any]]] = field(default_factory=list)
    options: list[tuple[str, str]] = field(default_factory=list)
    name: str = ""
    then: list[str] = field(default_factory=list)
    run: Path | None = None
    checkpoint: str | None = None
    tests_built: bool = False
    only_prints: bool = False


def read_request(command: str, argv: list[str], *, weights: bool = True, own: Sequence[str] = ()) -> Request:
    """Reads and checks the arguments of a training command.

    Args:
        command: fit, validate, test, predict or generate.
        argv: its arguments.
        weights: whether files of weights must exist.
        own: options that the command has read already, for the hint at a wrong one.

    Raises:
        ConfigurationError: the first mistake found, in one sentence.
    """
    request = Request(command)
    for option, value in _pairs(command, argv):
        _take(request, option, value, own)
    if request.only_prints:
        return request
    _take_run_config(request)
    for _, content in request.configs:
        if request.checkpoint is None and isinstance(content.get("ckpt_path"), str):
            _take_checkpoint(request, content["ckpt_path"])
    for path, content in request.configs:
        check_content(path, content, command)
    for place, value in checkpoints_of(request).items() if weights else ():
        # Who generates needs no student.
        if command != "generate" or place.startswith("data."):
            _check_file(value, place)
    if not request.name:
        request.name = _default_name(request)
    return request


def _pairs(command: str, argv: list[str]) -> Iterator[tuple[str, str | None]]:
    words = iter(range(len(argv)))
    for at in words:
        word = argv[at]
        if not word.startswith("-") or word == "-":
            hint = f"; a configuration needs -c before it: -c {word}" if "=" not in word else ""
            raise ConfigurationError(f"{command}: {word!r} belongs to no option{hint}")
        option, equals, value = word.partition("=")
        if option.startswith("-c") and not option.startswith("--") and len(option) > 2:
            yield "-c", option[2:] + equals + value
        elif equals:
            yield option, value
        elif at + 1 < len(argv) and not re.match(r"--?[A-Za-z]", argv[at + 1]):
            yield option, argv[next(words)]
        else:
            yield option, None


def _take(request: Request, option: str, value: str | None, own: Sequence[str]) -> None:
    known = _OPTIONS[request.command]
    bare = option.lstrip("-")
    head = re.split(r"[.+]", bare, maxsplit=1)[0]
    if option in ("-c", "--config"):
        path = find_config(_needed(option, value))
        request.configs.append((path, load(path)))
        request.arguments += ["--config", str(path)]
        return
    if bare in _OWN and (bare == "name" or request.command != "generate"):
        _take_own(request, bare, _needed(option, value))
        return
    if bare == "help-all":
        request.only_prints = True
        request.arguments.append("--help")
        return
    if not option.startswith("--") or head not in known:
        names = [f"--{name}" for name in (*known, *_USUAL, "help", "help-all", "debug") if name != "c"] + [*own]
        raise ConfigurationError(f"{request.command} has no option {option}{nearest(option, names)}")
    if bare.endswith(".help") or bare == "print_config":
        request.only_prints = True
    if bare == "ckpt_path":
        _take_checkpoint(request, _needed(option, value))
        return
    if bare in ("model", "data") and value is not None:
        check_class(bare, value, option)
    if value is None and not request.only_prints:
        raise ConfigurationError(f"{option} needs a value: {option}=…")
    request.arguments.append(option if value is None else f"{option}={value}")
    if value is not None:
        request.options.append((bare, value))


def _take_own(request: Request, name: str, value: str) -> None:
    if name == "run":
        request.run = Path(value)
    elif name == "then":
        request.then = value.split(",")
        for step in request.then:
            if step not in ("test", "export"):
                raise ConfigurationError(f"--then {step}{nearest(step, ('test', 'export'))}")
    elif re.fullmatch(r"[\w.+-]+(/[\w.+-]+)*", value) and ".." not in value.split("/"):
        request.name = value
    else:
        raise ConfigurationError(f"--name {value!r}: use letters, digits, and _ . + - between slashes")


def _take_checkpoint(request: Request, value: str) -> None:
    if value.lower() in ("null", "none", ""):
        if request.command == "fit":
            return
        request.tests_built = True
        return
    if value not in _SPECIAL_CHECKPOINTS and "://" not in value:
        _check_file(value, "--ckpt_path")
    request.checkpoint = value


def _take_run_config(request: Request) -> None:
    """A checkpoint alone says enough: its run keeps the configuration beside it."""
    if request.configs or any(option == "model" for option, _ in request.options) or request.checkpoint is None:
        return
    path = run_of(Path(request.checkpoint)) / "config.yaml"
    if path.is_file():
        request.configs.append((path, load(path)))
        request.arguments = ["--config", str(path), *request.arguments]


def _needed(option: str, value: str | None) -> str:
    if value is None:
        raise ConfigurationError(f"{option} needs a value")
    return value


def _check_file(value: str, option: str) -> None:
    path = Path(value).expanduser()
    if value in ("null", "None") or "://" in value or path.exists():
        return
    run = re.search(r"runs/(.+)/seed(\d+)/version_\d+/checkpoints/", value)
    if run and run[1] in shipped():
        seed = f" --seed_everything={run[2]}" if run[2] != "0" else ""
        raise ConfigurationError(f"{option}: there is no file {value}; make it with: kdlightning fit -c {run[1]}{seed}")
    beside = [other.name for other in path.parent.iterdir()] if path.parent.is_dir() else []
    close = nearest(path.name, beside) if beside else ""
    raise ConfigurationError(f"{option}: there is no file {value}{close if 'did you mean' in close else ''}")


def load(path: Path) -> dict[str, Any]:
    """The content of a YAML file whose top level is a mapping.

    Raises:
        ConfigurationError: it is no YAML, or something else than a mapping.
    """
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=loader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        reason = getattr(error, "problem", None) or "it is not a text file"
        raise ConfigurationError(f"{where}: not valid YAML, {reason}") from error
    if content is None:
        raise ConfigurationError(f"{path} is empty: write options into it, or leave it out")
    if not isinstance(content, dict):
        raise ConfigurationError(f"{path}: the top level must be options, not a {_kind(content)}")
    return content


def _kind(content: Any) -> str:
    return "list" if isinstance(content, list) else "single value"


def check_content(path: Path, content: Mapping[Any, Any], command: str) -> None:
    """Refuses unknown top-level options and unknown shipped classes."""
    if "stages" in content:
        raise ConfigurationError(f"{path} is a recipe: kdlightning run {path}")
    for key, value in content.items():
        if key in _OPTIONS:
            raise ConfigurationError(f"{path}: write the options of {key}: at the top level, without {key}: above them")
        if key not in set().union(*_OPTIONS.values()) - {"c", "config", "print_config"}:
            known = ("seed_everything", "trainer", "model", "data", "ckpt_path")
            raise ConfigurationError(f"{path}: {key!r} is no option of {command}{nearest(str(key), known)}")
        if key in ("trainer", "model", "data") and not isinstance(value, (dict, str, type(None))):
            raise ConfigurationError(f"{path}: {key}: must hold options, not a {_kind(value)}")
        if key in ("model", "data"):
            check_class(key, value.get("class_path") if isinstance(value, dict) else value, f"{path}: {key}")


def check_class(base: str, name: Any, where: str) -> None:
    """Refuses a class that is neither one of ours nor importable. `base` is model or data."""
    if not isinstance(name, str) or name.endswith((".yaml", ".yml")) or name.lstrip().startswith("{"):
        return
    folder = "modules" if base == "model" else "data"
    family = {name for name, module in kdlightning._HOME.items() if folder in module.split(".")}  # type: ignore[attr-defined]
    package, _, short = name.rpartition(".")
    if package in ("", kdlightning.__name__):
        if short not in kdlightning._HOME:  # type: ignore[attr-defined]
            raise ConfigurationError(f"{where}: kdlightning has no class {short!r}{nearest(short, family)}")
    elif not package.startswith(f"{kdlightning.__name__}."):
        top = package.split(".")[0]
        if importlib.util.find_spec(top) is None:
            raise ConfigurationError(f"{where}: cannot import {top!r} of {name!r}; is its folder on PYTHONPATH?")


def checkpoints_of(request: Request) -> dict[str, str]:
    """The files of weights that a command will read, by option, after all overrides."""
    found: dict[str, str] = {}
    for _, content in request.configs:
        for place, value in _options_in(content, ""):
            _override(found, place, value)
    for option, value in request.options:
        _override(found, option.replace(".init_args", ""), value)
    return found


def _override(found: dict[str, str], place: str, value: Any) -> None:
    for earlier in [name for name in found if name == place or name.startswith(f"{place}.")]:
        del found[earlier]
    if place.rsplit(".", 1)[-1] == "checkpoint" and isinstance(value, str) and value not in ("null", "None", ""):
        found[place] = value


def _options_in(value: Any, place: str) -> Iterator[tuple[str, Any]]:
    """Every option below a value by its name on the command line; a class comes before its own options."""
    if isinstance(value, dict):
        if "class_path" in value or not place:
            yield place, value.get("class_path")
        for key, item in value.items():
            if key == "init_args":
                yield from _options_in(item, place)
            elif key != "class_path":
                yield from _options_in(item, f"{place}.{key}" if place else str(key))
    elif isinstance(value, list):
        for number, item in enumerate(value):
            yield from _options_in(item, f"{place}[{number}]")
    else:
        yield place, value


def _default_name(request: Request) -> str:
    if request.configs:
        first, *rest = [config_name(path) for path, _ in request.configs]
        return "+".join([first, *(name.rsplit("/", 1)[-1] for name in rest)])
    model = next((value for option, value in request.options if option == "model"), None)
    if model is None:
        raise ConfigurationError(
            f"{request.command} needs a configuration or a model: "
            f"kdlightning {request.command} -c NAME (`kdlightning list` prints the names)"
        )
    return model.rsplit(".", 1)[-1]
