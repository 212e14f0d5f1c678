"""What may be spent is never passed, and nothing that was paid for is lost."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdlightning.errors import ConfigurationError
from kdlightning.generation.base import Answer, Completion, Request, Sampling, UnavailableError
from kdlightning.generation.budget import Budget, BudgetSpentError
from kdlightning.generation.engine import Engine
from kdlightning.generation.store import CompletionStore
from kdlightning.generation.usage import Usage

SHORT = Sampling(max_tokens=10)


@pytest.fixture
def metered(scripted):
    """Ten tokens sent and four back for each request, at a dollar and ten dollars a million, answered out of order."""

    class Metered(scripted):
        price_per_million_input, price_per_million_output = 1.0, 10.0

        def count_tokens(self, text: str) -> int:
            return 10 if text else 0

        async def generate_async(self, requests: Sequence[Request]) -> list[Answer]:
            await asyncio.sleep(0.002 * random.random())
            answers = self.generate(requests)
            for answer in answers:
                answer.usage = {answer.request.first_sample: self.priced(Usage(1, 10, 4))}
            return answers

    return Metered


def requests(count: int) -> list[Request]:
    return [Request(f"p{number}", sampling=SHORT) for number in range(count)]


@pytest.mark.parametrize("concurrency", [1, 4, 16])
@pytest.mark.parametrize(
    ("limits", "answered"),
    [({"requests": 7}, 7), ({"tokens": 100}, 6), ({"money": 1e-4}, 0), ({"money": 5e-4}, 8), ({"tokens": 19}, 0)],
)
def test_the_engine_stops_before_a_request_that_would_exceed_it(
    metered, limits: dict, answered: int, concurrency: int
) -> None:
    # A request is 10 tokens and at most 10 more, and 4 in the end: of 100 tokens the sixth leaves 16, short of 20.
    store, budget, generator = CompletionStore(":memory:"), Budget(**limits), metered(concurrency=concurrency)
    with pytest.raises(BudgetSpentError) as caught:
        Engine(generator, store, progress=False, budget=budget).run(requests(40))
    assert len(generator.asked) == len(store) == answered
    assert budget.spent == Usage(answered, 10 * answered, 4 * answered, pytest.approx(5e-5 * answered))
    assert caught.value.missing == 40 - answered
    assert caught.value.result.asked == answered
    assert sum(len(answer.texts) for answer in caught.value.result.answers) == answered
    assert caught.value.result.failures == []


def test_the_sentence_says_what_was_spent_and_what_is_left(metered) -> None:
    budget = Budget(requests=9, money=1.2e-4)
    with pytest.raises(BudgetSpentError) as caught:
        Engine(metered(), progress=False, budget=budget).run(requests(5))
    assert str(caught.value) == (
        "the budget of money ends before the next request: 1 request, 14 tokens, $5e-05 spent, "
        "8 requests and $7e-05 left, "
        "4 answers not asked for; raise it and start again, what is answered is stored"
    )


def test_a_budget_is_shared_by_runs_and_stored_answers_are_free(metered) -> None:
    store, budget = CompletionStore(":memory:"), Budget(requests=5)
    Engine(metered(), store, progress=False, budget=budget).run(requests(3))
    Engine(metered(), store, progress=False, budget=budget).run(requests(5))
    assert budget.spent.requests == 5
    assert len(store) == 5
    Engine(metered(), store, progress=False, budget=budget).run(requests(5))
    with pytest.raises(BudgetSpentError):
        Engine(metered(), store, progress=False, budget=budget).run(requests(6))


def test_attempts_count(metered) -> None:
    class Busy(metered):
        retries, first_wait = 9, 0.001

        async def generate_async(self, requests: Sequence[Request]) -> list[Answer]:
            raise UnavailableError("busy")

    with pytest.raises(BudgetSpentError) as caught:
        Engine(Busy(), progress=False, budget=Budget(requests=4)).run(requests(3))
    assert caught.value.result.usage.requests == 4
    assert caught.value.missing == 3


def test_a_batch_is_cut_to_what_fits(scripted) -> None:
    generator = scripted(batch_size=8)
    with pytest.raises(BudgetSpentError):
        Engine(generator, progress=False, budget=Budget(requests=11)).run(requests(20))
    assert generator.calls == [8, 3]


def test_what_is_put_back_from_a_batch_is_counted_once(scripted) -> None:
    class Busy(scripted):
        retries, first_wait, attempts = 1, 0.001, 0

        def generate(self, requests: Sequence[Request]) -> list[Answer]:
            self.attempts += 1
            if self.attempts == 1:
                raise UnavailableError("busy", usage=Usage(1, 20))
            return super().generate(requests)

    # Two of three requests are left after the first attempt, and all of them in the end.
    generator, budget = Busy(batch_size=3), Budget(tokens=43)
    result = Engine(generator, progress=False, budget=budget).run(requests(3))
    assert generator.calls == [2, 1]
    assert result.asked == 3


def test_tokens_are_estimated_where_nobody_counts_them(scripted) -> None:
    result = Engine(scripted(), progress=False, budget=Budget(tokens=1000)).run(requests(2))
    assert result.usage == Usage(2, 2, 2, estimated=True)


def test_money_needs_prices(scripted) -> None:
    with pytest.raises(ConfigurationError, match="price_per_million_input and price_per_million_output"):
        Engine(scripted(), budget=Budget(money=1.0))


@pytest.mark.parametrize("limits", [{"requests": -1}, {"tokens": -1}, {"money": float("nan")}])
def test_wrong_limits_are_named(limits: dict) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(limits))):
        Budget(**limits)


@given(st.integers(1, 30), st.integers(0, 60), st.integers(0, 400), st.lists(st.integers(0, 10), max_size=30))
def test_what_is_set_aside_never_passes_a_limit(requests: int, most: int, tokens: int, costs: list[int]) -> None:
    budget, open_ = Budget(requests=requests, tokens=tokens), []
    for cost in costs:
        reserved = Usage(1, most, 0)
        if budget.exceeded(reserved) is None:
            budget.reserve(reserved)
            open_.append((reserved, Usage(1, min(cost, most), 0)))
        elif open_:
            budget.settle(*open_.pop(0))
    while open_:
        budget.settle(*open_.pop())
    assert budget.spent.requests <= requests
    assert budget.spent.tokens <= tokens
    assert budget._reserved == Usage()


# -- estimates ---------------------------------------------------------------------------------------------------------


def test_an_estimate_asks_nothing_and_counts_what_the_store_lacks(metered) -> None:
    store, generator = CompletionStore(":memory:"), metered()
    several = [Request("p", samples=4, sampling=Sampling(max_tokens=10, temperature=1.0)), *requests(3)]
    store.put(several[0].key("script"), 1, Completion("x"))
    store.put(several[1].key("script"), 0, Completion("x"))
    estimate = Engine(generator, store, progress=False).estimate([*several, several[2]])
    assert generator.asked == []
    # Sample 0, samples 2 and 3, and two other requests.
    assert (estimate.answers, estimate.stored) == (5, 2)
    assert estimate.most == Usage(4, 40, 50, pytest.approx(540e-6), estimated=True)
    assert str(estimate) == (
        "4 requests for 5 answers (2 from the store): about 40 tokens sent, at most 50 back, at most $0.00054"
    )


def test_an_estimate_of_what_is_stored_is_nothing(metered) -> None:
    store = CompletionStore(":memory:")
    Engine(metered(), store, progress=False).run(requests(3))
    estimate = Engine(metered(), store).estimate(requests(3))
    assert (estimate.answers, estimate.stored, estimate.most) == (0, 3, Usage())


def test_usage_is_stored_with_answers_and_old_stores_open(metered, tmp_path) -> None:
    path = tmp_path / "store.sqlite"
    with CompletionStore(path) as store:
        Engine(metered(), store, progress=False).run(requests(3))
        for table in ("usage", "logprobs"):  # as earlier versions made it
            store._connection.execute(f"DROP TABLE {table}")
    with CompletionStore(path) as store:
        assert store.usage() == Usage()
        Engine(metered(), store, progress=False).run(requests(5))
        assert len(store) == 5
        assert store.usage() == Usage(2, 20, 8, pytest.approx(1e-4))
