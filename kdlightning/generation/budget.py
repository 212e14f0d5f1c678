"""How much may be spent, and what a run would cost."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from kdlightning.errors import ConfigurationError
from kdlightning.generation.usage import Usage, counted, priced

if TYPE_CHECKING:
    from kdlightning.generation.engine import EngineResult


@dataclass
class Budget:
    """The most that may be spent, by all runs that share this object.

    Before each request the most that it can cost is set aside (its prompt, and `max_tokens` for each sample); when it
    is answered the real cost takes its place. A request that would exceed a limit is not sent. Prompts are counted by
    estimate (`TextGenerator.count_tokens`), so tokens and money can pass their limit by what the estimate is short.

    Attributes:
        requests: calls, each attempt counted; None is no limit.
        tokens: tokens of prompts and answers together; None is no limit.
        money: dollars; None is no limit.
        spent: what was spent so far.
    """

    requests: int | None = None
    tokens: int | None = None
    money: float | None = None
    spent: Usage = field(default_factory=Usage, init=False)
    _reserved: Usage = field(default_factory=Usage, init=False, repr=False)

    def __post_init__(self) -> None:
        for name, limit in self._limits().items():
            if limit is not None and not limit >= 0:
                raise ConfigurationError(f"budget: {name} is {limit}: give 0 or more, or leave it out for no limit")

    def _limits(self) -> dict[str, float | None]:
        return {"requests": self.requests, "tokens": self.tokens, "money": self.money}

    @property
    def limited(self) -> bool:
        """Whether there is any limit."""
        return any(limit is not None for limit in self._limits().values())

    def exceeded(self, cost: Usage) -> str | None:
        """The name of a limit that this cost would exceed, with what is in flight; None if it fits."""
        total = self.spent + self._reserved + cost
        if self.requests is not None and total.requests > self.requests:
            return "requests"
        if self.tokens is not None and total.tokens > self.tokens:
            return "tokens"
        # Sums of prices are not exact: a budget of ten times a price allows ten.
        if self.money is not None and total.money > self.money * (1 + 1e-9) + 1e-12:
            return "money"
        return None

    def reserve(self, most: Usage) -> None:
        """Sets the most that a request can cost aside."""
        self._reserved += most

    def settle(self, most: Usage, actual: Usage) -> None:
        """Puts what a request did cost in the place of what was set aside."""
        self._reserved -= most
        self.spent += actual

    @property
    def left(self) -> str:
        """What is left of each limit, in words."""
        parts: list[str] = []
        if self.requests is not None:
            parts.append(counted(max(0, self.requests - self.spent.requests), "request"))
        if self.tokens is not None:
            parts.append(counted(max(0, self.tokens - self.spent.tokens), "token"))
        if self.money is not None:
            parts.append(priced(max(0.0, self.money - self.spent.money)))
        return " and ".join(parts) if parts else "no limit"


class BudgetSpentError(ConfigurationError):
    """The next request would exceed the budget; everything that was answered is stored.

    Attributes:
        result: what was answered before.
        missing: samples that were not asked for.
        earlier: results of the rounds before this one, where there were some.
    """

    def __init__(self, budget: Budget, which: str, result: EngineResult, missing: int) -> None:
        super().__init__(
            f"the budget of {which} ends before the next request: {budget.spent} spent, {budget.left} left, "
            f"{counted(missing, 'answer')} not asked for; raise it and start again, what is answered is stored"
        )
        self.result = result
        self.missing = missing
        self.earlier: list[EngineResult] = []


@dataclass(frozen=True)
class Estimate:
    """What a run would ask and cost at most, by what the store lacks.

    Attributes:
        answers: samples that would be asked for.
        stored: samples that the store has.
        most: requests, and the most tokens and money that they can cost.
    """

    answers: int = 0
    stored: int = 0
    most: Usage = field(default_factory=Usage)

    def __add__(self, other: Estimate) -> Estimate:
        return Estimate(self.answers + other.answers, self.stored + other.stored, self.most + other.most)

    def __str__(self) -> str:
        text = (
            f"{counted(self.most.requests, 'request')} for {counted(self.answers, 'answer')} "
            f"({self.stored:,} from the store): about {counted(self.most.prompt_tokens, 'token')} sent, "
            f"at most {self.most.completion_tokens:,} back"
        )
        return text + (f", at most {priced(self.most.money)}" if self.most.money else "")
