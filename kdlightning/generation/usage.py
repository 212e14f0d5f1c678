"""What answers cost."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Usage:
    """What requests cost; sums of it are added up by `+`.

    Attributes:
        requests: calls of the server, each attempt counted.
        prompt_tokens: tokens that were sent.
        completion_tokens: tokens that came back.
        money: their price in dollars.
        estimated: whether any part is an estimate and not the server's own count.
    """

    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    money: float = 0.0
    estimated: bool = False

    @property
    def tokens(self) -> int:
        """Both kinds together."""
        return self.prompt_tokens + self.completion_tokens

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.requests + other.requests,
            self.prompt_tokens + other.prompt_tokens,
            self.completion_tokens + other.completion_tokens,
            self.money + other.money,
            self.estimated or other.estimated,
        )

    def __sub__(self, other: Usage) -> Usage:
        return Usage(
            self.requests - other.requests,
            self.prompt_tokens - other.prompt_tokens,
            self.completion_tokens - other.completion_tokens,
            self.money - other.money,
            self.estimated,
        )

    def __str__(self) -> str:
        text = f"{counted(self.requests, 'request')}, {counted(self.tokens, 'token')}"
        text += f", {priced(self.money)}" if self.money else ""
        return f"{text} (partly estimated)" if self.estimated else text


def counted(number: int, word: str) -> str:
    """`1,234 requests`."""
    return f"{number:,} {word}{'' if number == 1 else 's'}"


def priced(money: float) -> str:
    """An amount in dollars: two decimals, more where it is small."""
    return f"${money:,.2f}" if money >= 1 or not money else f"${money:.3g}"


def estimated_tokens(text: str) -> int:
    """A text's tokens where nobody counts them: a quarter of its characters, rounded up."""
    return -(-len(text) // 4)
