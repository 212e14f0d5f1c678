"""The plain student out of a checkpoint."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from kdlightning.errors import ConfigurationError
from kdlightning.models.weights import fill, read_plain


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """A kdlightning checkpoint, as plain data and tensors on the CPU.

    Raises:
        ConfigurationError: no such file, or another program's.
    """
    file = Path(path)
    if not file.is_file():
        raise ConfigurationError(f"no checkpoint at {file}")
    checkpoint = read_plain(file)
    if not isinstance(checkpoint, Mapping) or "state_dict" not in checkpoint:
        raise ConfigurationError(f"{file} is no checkpoint of a training run: it has no state_dict")
    if not any(name.startswith("student.") for name in checkpoint["state_dict"]):
        raise ConfigurationError(f"{file} holds no student; it was written by another program")
    for number, kept in enumerate((checkpoint.get("kdlightning", {}).get("ranks") or [])[1:]):
        # Networks of other processes, built as the student is.
        checkpoint["state_dict"].update({f"peers.{number}.{name}": v for name, v in kept["student"].items()})
    return dict(checkpoint)


def load_student(path: str | Path, student: nn.Module | None = None, *, which: str = "student") -> nn.Module:
    """The trained student alone, in evaluation mode; no teacher is built.

    Args:
        path: a checkpoint of a run.
        student: of a run from Python, the built network, whose weights are filled in. A run from YAML needs none.
        which: "student", or "peer1", "peer2", … of online distillation.

    Raises:
        ConfigurationError: the file holds no such network, or does not say how to build it.
    """
    checkpoint = read_checkpoint(path)
    prefix = "student." if which == "student" else f"peers.{_peer_number(which) - 1}."
    state = _part(checkpoint, prefix)
    if not state:
        raise ConfigurationError(f"{path} holds no {which!r}: its networks are {', '.join(networks_in(checkpoint))}")
    if built_as(checkpoint, which) != which:
        state = _part(checkpoint, "student.") | state  # a branch: the trunk is the student's
    if student is None:
        student = _build(checkpoint, which, path)
    return fill(student, state, str(path)).eval()


def networks_in(checkpoint: Mapping[str, Any]) -> list[str]:
    """Names of the learning networks in a checkpoint: "student", "peer1", …."""
    numbers = {int(k.split(".")[1]) + 1 for k in checkpoint["state_dict"] if k.startswith("peers.")}
    return ["student", *(f"peer{number}" for number in sorted(numbers))]


def built_as(checkpoint: Mapping[str, Any], which: str) -> str:
    """The network whose specification builds another: the student's for a branch or a rank's network, else its own."""
    own = checkpoint.get("kdlightning", {})
    return "student" if own.get("branches") or own.get("ranks") else which


def _part(checkpoint: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    return {k[len(prefix) :]: v for k, v in checkpoint["state_dict"].items() if k.startswith(prefix)}


def _peer_number(which: str) -> int:
    number = which.removeprefix("peer")
    if not which.startswith("peer") or not number.isdigit() or number == "0":
        raise ConfigurationError(f"which must be student, peer1, peer2, …, not {which!r}")
    return int(number)


def spec_of(checkpoint: Mapping[str, Any], which: str) -> Mapping[str, Any]:
    """How a network of a checkpoint is built, without weights to load; empty where a run from Python does not say.

    A network that was made of another says itself how it is built without that one.
    """
    name = built_as(checkpoint, which)
    built = checkpoint.get("kdlightning", {}).get("built", {}).get(name)
    if built is not None:
        return built
    settings = checkpoint.get("hyper_parameters", {})
    peers = settings.get("peers") or []
    number = 0 if name == "student" else _peer_number(name)
    spec = settings.get("student") if number == 0 else peers[number - 1] if number <= len(peers) else None
    return _without_files(plain_spec(spec)) if isinstance(spec, Mapping) and "class_path" in spec else {}


def _build(checkpoint: Mapping[str, Any], which: str, path: str | Path) -> nn.Module:
    """Builds a network as `spec_of` says."""
    spec = spec_of(checkpoint, which)
    if not spec:
        raise ConfigurationError(
            f"{path} was written by a run from Python and does not say how to build the {which}: "
            f"call load_student(path, student=the_network)"
        )
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--network", type=nn.Module)
    return parser.instantiate_classes(parser.parse_object({"network": dict(spec)})).network


def plain_spec(spec: Mapping[str, Any]) -> Mapping[str, Any]:
    """How a network itself is built, without the weights of an earlier run that it was started from."""
    while str(spec.get("class_path", "")).rpartition(".")[2] == "started_from":
        spec = spec["init_args"]["model"]
    return spec


def _without_files(spec: Mapping[str, Any]) -> dict[str, Any]:
    """The same specification without weights to load, so that a moved teacher or start file is no obstacle.

    Pretrained weights and checkpoints of the beginning are not needed again: a state dict follows.
    Networks inside a network, as that of a `ProjectedStudent`, are meant too.
    """
    options = dict(spec.get("init_args") or {})
    for name, empty in (("checkpoint", None), ("pretrained", False)):
        if name in options:
            options[name] = empty
    for name, value in options.items():
        if isinstance(value, Mapping) and "class_path" in value:
            options[name] = _without_files(plain_spec(value))
    return {**spec, "init_args": options}


def load_exported(folder: str | Path) -> nn.Module:
    """The student in a folder that `kdlightning export` (or transformers) wrote, in evaluation mode.

    Raises:
        ConfigurationError: it is no folder of a transformers model.
    """
    import transformers

    try:
        made = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))["architectures"][0]
        return getattr(transformers, made).from_pretrained(folder).eval()
    except (OSError, ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise ConfigurationError(f"{folder} is no folder of a transformers model, as export writes it") from error
