"""`kdlightning taps`: the tensors inside a model that a method can read, with their shapes."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from kdlightning.commands.options import Parser
from kdlightning.commands.precheck import Request, read_request
from kdlightning.errors import ConfigurationError, nearest

if TYPE_CHECKING:
    from torch import nn

_ROLES = ("student", "teacher")


def main(arguments: list[str]) -> int:
    """Prints the taps of a named model, or of a configuration's networks."""
    options = _parse(arguments)
    # Mistakes in names are found before the import, which takes seconds.
    request = read_request("fit", ["-c", options.config], weights=False) if options.config else None
    shape = _shape(options.input)
    from kdlightning.commands.quiet import quiet

    with quiet():
        if request is not None:
            networks, inputs = _configured(request, options.role)
        else:
            networks, inputs = {"": _named(options.model, shape)}, None
        listed = {role: _list(model, inputs, shape) for role, model in networks.items()}
    if options.json:
        print(json.dumps(listed[""] if request is None else listed, indent=2))
        return 0
    for role, rows in listed.items():
        if role:
            print(f"{role}: {type(networks[role]).__name__}")
        print(table(rows))
    return 0


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = Parser("taps")
    parser.add_argument("model", nargs="?")
    parser.add_argument("-c", "--config")
    parser.add_argument("--role")
    parser.add_argument("--input")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    if (options.model is None) == (options.config is None):
        raise ConfigurationError("taps needs a model's name or -c CONFIG: `kdlightning taps --help` has examples")
    if options.role is not None and options.role not in _ROLES:
        raise ConfigurationError(f"--role {options.role}{nearest(options.role, _ROLES)}")
    if options.role is not None and options.config is None:
        raise ConfigurationError("--role chooses between the networks of a configuration: give -c CONFIG")
    return options


def _shape(text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    parts = text.replace("x", ",").split(",")
    if not all(part.strip().isdigit() and int(part) > 0 for part in parts):
        raise ConfigurationError(f"--input {text!r}: write the shape of one sample, for example 3,32,32")
    return tuple(int(part) for part in parts)


def _named(name: str, shape: tuple[int, ...] | None) -> nn.Module:
    from kdlightning.models import cifar_model, timm_model, transformers_model

    family, _, member = name.partition("/")
    if family == "cifar":
        return cifar_model(member, in_channels=3 if shape is None else shape[0])

    if (Path(name) / "config.json").is_file():
        settings = json.loads((Path(name) / "config.json").read_text(encoding="utf-8"))
        if "architecture" in settings:
            return timm_model(f"local-dir:{name}")
        return transformers_model(name=name, architecture=settings.get("architectures", ["AutoModel"])[0])
    if Path(name).exists():
        raise ConfigurationError(f"{name} is no folder of a timm or transformers model (no config.json); use -c CONFIG")
    if shape is not None and shape[0] != 3:
        return timm_model(name, in_chans=shape[0])
    return timm_model(name)


def _configured(request: Request, role: str | None) -> tuple[dict[str, nn.Module], Any]:
    """The networks of a configuration, and two samples of its data."""
    import yaml

    from kdlightning.teachers.base import NetworkTeacher

    # No run: the Trainer is only built, and writes nothing. Shapes need no trained weights.
    with TemporaryDirectory() as folder:
        request.arguments = []
        for number, (_, content) in enumerate(request.configs):
            path = Path(folder) / f"{number}.yaml"
            path.write_text(yaml.safe_dump(_without_weights(content)), encoding="utf-8")
            request.arguments += ["--config", str(path)]
        command = _built(request)
    module = command.model
    found: dict[str, nn.Module] = {"student": module.student}
    if isinstance(module.teacher, NetworkTeacher):
        found["teacher"] = module.teacher.network
    if role is not None and role not in found:
        raise ConfigurationError(f"--role {role}: {type(module).__name__} of this configuration has no {role} network")
    return ({role: found[role]} if role else found), _two_samples(command)


def _without_weights(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_weights(item) for key, item in value.items() if key not in ("checkpoint", "pretrained")}
    return [_without_weights(item) for item in value] if isinstance(value, list) else value


def _built(request: Request) -> Any:
    from kdlightning.commands.lightning_command import DistillCommand

    request.arguments += ["--trainer.logger=false", "--trainer.enable_checkpointing=false", "--trainer.accelerator=cpu"]
    request.arguments += ["--trainer.fast_dev_run=true"]
    return DistillCommand(request)


def _two_samples(command: Any) -> Any:
    data = command.datamodule
    data.prepare_data()
    data.setup("fit")
    loader = data.train_dataloader()
    samples = [loader.dataset[0], loader.dataset[1]]
    return command.model.task.batch(loader.collate_fn(samples)).inputs


def _list(model: nn.Module, inputs: Any, shape: tuple[int, ...] | None) -> list[dict[str, Any]]:
    import torch

    from kdlightning.taps import example_inputs, list_taps

    if shape is not None:
        inputs = torch.zeros(2, *shape)
    elif inputs is None:
        inputs = example_inputs(model)
    model.eval()
    try:
        found = list_taps(model, inputs)
    except (RuntimeError, AssertionError) as error:
        given = f"--input {','.join(str(side) for side in shape)}" if shape else "the data"
        reason = str(error).splitlines()[0]
        raise ConfigurationError(f"{given}: {type(model).__name__} refuses that shape: {reason}") from error
    return [{"name": info.name, "shape": list(info.shape), "kind": info.kind, "layout": info.layout} for info in found]


def table(rows: list[dict[str, Any]]) -> str:
    """One tap a line: name, shape without the batch, class of the module."""
    if not rows:
        return "  no taps"
    names = max(len(row["name"]) for row in rows)
    shapes = [" × ".join(str(side) for side in row["shape"][1:]) for row in rows]
    width = max(len(shape) for shape in shapes)
    lines = zip(rows, shapes, strict=True)
    return "\n".join(f"  {row['name']:<{names}}  {shape:<{width}}  {row['kind']}" for row, shape in lines)
