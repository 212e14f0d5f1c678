"""Requests as plain data, and their hash."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdlightning.errors import ConfigurationError
from kdlightning.generation.base import Origin, Request, Sampling, TextGenerator, require


def test_key_is_the_same_in_another_process() -> None:
    code = (
        "from kdlightning.generation.base import Request, Sampling;"
        "print(Request('naïve?', sampling=Sampling(temperature=0.7, seed=3), stop=('\\n',)).key('m'))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    here = Request("naïve?", sampling=Sampling(temperature=0.7, seed=3), stop=("\n",)).key("m")
    assert out.stdout.strip() == here
    assert len(here) == 64


def test_key_is_pinned() -> None:
    # Stores made by earlier versions must stay readable.
    content = b'{"identity":"","prompt":"a","sampling":{"max_tokens":256,"temperature":0.0}}'
    assert Request("a").key() == hashlib.sha256(content).hexdigest()


def test_number_of_samples_and_origin_do_not_change_the_key() -> None:
    key = Request("a").key()
    assert Request("a", samples=8, first_sample=2).key() == key
    assert Request("a", origin=Origin("b", "step")).key() == key


@pytest.mark.parametrize(
    "other",
    [
        Request("b"),
        Request(messages=[{"role": "user", "content": "a"}]),
        Request("a", stop=("\n",)),
        Request("a", sampling=Sampling(max_tokens=3)),
        Request("a", sampling=Sampling(temperature=0.5)),
    ],
)
def test_everything_else_changes_the_key(other: Request) -> None:
    assert other.key() != Request("a").key()
    assert other.key("model") != other.key("another")


def test_options_that_do_not_change_a_greedy_answer_do_not_change_its_key() -> None:
    assert Request("a", sampling=Sampling(seed=5, top_k=3)).key() == Request("a").key()
    warm, other = (Request("a", sampling=Sampling(temperature=1, seed=seed)) for seed in (0, 1))
    assert warm.key() != other.key()


def test_whole_temperatures_are_one_number() -> None:
    one, other = (Request("a", sampling=Sampling(temperature=value)) for value in (1, 1.0))
    assert one.key() == other.key()


@given(st.text(), st.text(), st.floats(0, 5), st.floats(0.01, 1), st.integers(0, 50), st.integers(0, 2**40))
def test_keys_of_plain_prompts_are_those_of_the_whole_request(
    prompt: str, identity: str, temperature: float, top_p: float, top_k: int, seed: int
) -> None:
    request = Request(prompt, sampling=Sampling(7, temperature, top_p, top_k, seed))
    plain = {**request.to_dict(), "identity": identity}
    whole = json.dumps(plain, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    assert request.key(identity) == hashlib.sha256(whole.encode()).hexdigest()


@given(st.text(), st.text())
def test_prompts_and_keys_correspond(one: str, other: str) -> None:
    assert (Request(one).key() == Request(other).key()) == (one == other)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({}, "prompt or messages"),
        ({"prompt": "a", "messages": []}, "prompt or messages"),
        ({"prompt": "a", "samples": 0}, "0 samples"),
        ({"messages": [{"role": "user"}]}, "role and a content"),
        ({"prompt": "a", "stop": "end"}, "list of texts"),
        ({"prompt": "a", "stop": ("",)}, "list of texts"),
    ],
)
def test_wrong_requests_are_refused(options: dict, named: str) -> None:
    with pytest.raises(ConfigurationError, match=named):
        Request(**options)


@pytest.mark.parametrize(
    ("option", "value"), [("max_tokens", 0), ("temperature", -1.0), ("top_p", 0.0), ("top_p", 1.5), ("top_k", -1)]
)
def test_wrong_sampling_options_are_named(option: str, value: float) -> None:
    with pytest.raises(ConfigurationError, match=option):
        Sampling(**{option: value})  # type: ignore[arg-type]


def test_missing_capability_is_named(scripted: type[TextGenerator]) -> None:
    require(scripted(), frozenset({"text"}), "the filter")
    with pytest.raises(ConfigurationError, match="the filter needs logits.*ScriptedGenerator gives only text"):
        require(scripted(), frozenset({"text", "logits"}), "the filter")


def test_unknown_capability_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="telepathy"):
        type("Odd", (TextGenerator,), {"capabilities": frozenset({"telepathy"})})
