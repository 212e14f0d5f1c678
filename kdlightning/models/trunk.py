"""What branches of one network share, and how they read it in one pass."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, autograd, nn
from torch.func import functional_call

from kdlightning.errors import ConfigurationError


class Trunk:
    """What the shared modules answered in the pass that runs, to be recalled by the other branches.

    Args:
        split: path of the last shared module.
        gradient_scale: factor of the gradient that flows from all branches into the trunk.
    """

    def __init__(self, split: str, gradient_scale: float = 1.0) -> None:
        self.split = split
        self.gradient_scale = gradient_scale
        self.kept: dict[str, list[Any]] | None = None
        self.passes = 0
        self._sealed = False
        self._versions: dict[str, list[int]] = {}

    @contextmanager
    def running(self) -> Iterator[None]:
        """While the branches run: the first one fills, the others recall."""
        self.kept, self._versions, self._sealed = {}, {}, False
        self.passes += 1
        try:
            yield
            self._check_untouched()
        finally:
            self.kept = None

    def keep(self, name: str, answer: Any, *, stateless: bool) -> Any:
        """Keeps what a shared module answered to the first branch; one without state may run again behind the split."""
        if self.kept is None or (stateless and self.split in self.kept):
            return answer
        if not stateless and (name in self.kept or self.split in self.kept):
            raise ConfigurationError(
                f"split: {name!r} stands before {self.split!r} and runs "
                + ("twice in one pass" if name in self.kept else "after it")
                + ": name a module by which all before it is done, or one inside it"
            )
        if name == self.split:
            if self.gradient_scale != 1.0:
                answer = _scaled(answer, self.gradient_scale)
            self._versions[name] = _versions([answer])
        self.kept.setdefault(name, []).append(answer)
        return answer

    def recall(self, name: str, call: int) -> Any:
        """What a shared module answered to the first branch when it was called for the `call`th time."""
        assert self.kept is not None
        answers = self.kept.get(name, [])
        if call >= len(answers):
            raise ConfigurationError(
                f"split: {name!r} did not run in the student's pass, and a branch calls it: name another split"
            )
        if not self._sealed:  # the first branch is done: from now on nobody may write what it kept
            self._check_untouched()
            self._versions = {name: _versions(kept) for name, kept in self.kept.items()}
            self._sealed = True
        return answers[call]

    def _check_untouched(self) -> None:
        for name, versions in self._versions.items():
            if _versions((self.kept or {})[name]) != versions:
                raise ConfigurationError(
                    f"split: what {name!r} gives is overwritten in place by the layer that follows, before the other "
                    "branches can read it: name that layer"
                )


class Keep:
    """The hook on a shared module; an object, so that copies of a network keep in the copy of its trunk."""

    def __init__(self, trunk: Trunk, name: str, stateless: bool) -> None:
        self.trunk = trunk
        self.name = name
        self.stateless = stateless

    def __call__(self, module: nn.Module, arguments: tuple[Any, ...], answer: Any) -> Any:
        return self.trunk.keep(self.name, answer, stateless=self.stateless)


class Recall(nn.Module):
    """Stands where a branch has a shared module: gives what that answered in this pass, or asks it.

    It passes for the shared module: networks ask their layers for options, and libraries look for layers of a class, as
    transformers does to gather hidden states.
    """

    def __init__(self, trunk: Trunk, name: str, module: nn.Module) -> None:
        super().__init__()
        self.trunk = trunk
        self.name = name
        self.stateless = is_stateless(module)
        self._calls = (0, 0)  # the pass that runs, and how often this was called in it
        self._shared = (module,)  # in a tuple: the module belongs to the first branch

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        """The shared module's class; `type` gives its own."""
        shared = self.__dict__.get("_shared")
        return Recall if shared is None else type(shared[0])

    def __getattr__(self, name: str) -> Any:
        """An attribute of the shared module."""
        shared = self.__dict__.get("_shared")
        if shared is None or name.startswith("__"):
            return super().__getattr__(name)
        return getattr(shared[0], name)

    def __reduce__(self) -> Any:
        """Copies are made by hand, since the class is not what it says."""
        return _blank, (), self.__dict__

    def forward(self, *arguments: Any, **options: Any) -> Any:
        """The shared module's answer. A branch that is called alone leaves no trace in the trunk's statistics."""
        if self.trunk.kept is not None:
            number = self._calls[1] if self._calls[0] == self.trunk.passes else 0
            self._calls = (self.trunk.passes, number + 1)
            if not self.stateless or number < len(self.trunk.kept.get(self.name, [])):
                return self.trunk.recall(self.name, number)
        (module,) = self._shared
        modes = [(part, part.training) for part in module.modules()]
        buffers = {name: buffer.clone() for name, buffer in module.named_buffers()}
        module.train(self.training)
        try:
            return functional_call(module, buffers, arguments, options)
        finally:
            for part, training in modes:
                part.training = training


def _blank() -> Recall:
    return Recall.__new__(Recall)


def _versions(answer: Any) -> list[int]:
    """How often each tensor of an answer was written; those of inference mode do not count."""
    if isinstance(answer, Tensor):
        return [] if answer.is_inference() else [answer._version]
    parts = answer.values() if isinstance(answer, dict) else answer if isinstance(answer, (tuple, list)) else ()
    return [version for part in parts for version in _versions(part)]


class _ScaleGradient(autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, scale: float) -> Tensor:
        ctx.scale = scale
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0] * ctx.scale, None


def _scaled(answer: Any, scale: float) -> Any:
    if isinstance(answer, Tensor):
        return _ScaleGradient.apply(answer, scale)
    if isinstance(answer, (tuple, list)):
        return type(answer)(_scaled(part, scale) for part in answer)
    return answer


def is_stateless(module: nn.Module) -> bool:
    """Whether a module has neither parameters nor buffers."""
    return not any(True for _ in module.parameters()) and not any(True for _ in module.buffers())
