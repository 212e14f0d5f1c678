"""A real server on the loopback: `transformers serve` with a small model made here. It never looks at the hub."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from kdlightning.errors import ConfigurationError
from kdlightning.generation.base import Request, Sampling
from kdlightning.generation.engine import Engine
from kdlightning.generation.openai import OpenAIGenerator
from kdlightning.generation.store import CompletionStore
from kdlightning.generation.transformers import TransformersGenerator

SERVE = "from transformers.cli.transformers import main; main()"
TEMPLATE = "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}assistant:"
GREEDY = Sampling(max_tokens=6)


@dataclass
class Served:
    """Where the server is, the name of its model, and the same model here."""

    url: str
    name: str
    local: TransformersGenerator


@pytest.fixture(scope="module")
def served(model: Any, tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    import copy

    folder = tmp_path_factory.mktemp("served") / "tiny-teacher"
    speaking, sampling = copy.deepcopy(tokenizer), copy.deepcopy(model)
    speaking.chat_template = TEMPLATE
    sampling.generation_config.do_sample = True  # what the server samples is up to the model's own settings
    speaking.save_pretrained(folder)
    sampling.save_pretrained(folder)
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(folder.parent / "hub"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", SERVE, "serve", str(folder), "--host", "127.0.0.1", "--port", "0"]
    with subprocess.Popen(
        [*command, "--device", "cpu"], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment, text=True
    ) as process:
        try:
            yield Served(_address(process), str(folder), TransformersGenerator(model, speaking))
        finally:
            process.kill()


def _address(process: subprocess.Popen[str]) -> str:
    """Waits for the line in which the server tells its address."""
    assert process.stderr is not None
    said = []
    for line in process.stderr:
        said.append(line)
        if found := re.search(r"running on (http://[\d.]+:\d+)", line):
            return f"{found[1]}/v1"
    raise AssertionError("transformers serve ended: " + "".join(said[-20:]))


def test_greedy_answers_are_those_of_the_model(served: Served, tmp_path: Path) -> None:
    requests = [
        Request(messages=[{"role": "user", "content": f"Question {number}"}], sampling=GREEDY) for number in range(4)
    ]
    generator = OpenAIGenerator(served.name, served.url, concurrency=4, name="tiny")
    expected = [answer.texts for answer in served.local.generate(requests)]
    with CompletionStore(tmp_path / "store.sqlite") as store:
        result = Engine(generator, store, progress=False).run(requests)
        assert [answer.texts for answer in result.answers] == expected
        assert (result.asked, result.failures, result.usage.requests) == (4, [], 4)
        assert result.usage.completion_tokens == 24
        assert not result.usage.estimated
        assert store.usage().tokens == result.usage.tokens
        assert Engine(generator, store, progress=False).run(requests).reused == 4


def test_prompts_are_continued_as_they_stand(served: Served) -> None:
    requests = [Request("Once", answer_start=" upon a", sampling=GREEDY)]
    generator = OpenAIGenerator(served.name, served.url, endpoint="completions")
    found = Engine(generator, progress=False).run(requests).answers[0].completions
    assert found == served.local.generate(requests)[0].completions


def test_samples_that_n_did_not_bring_are_topped_up(served: Served) -> None:
    generator = OpenAIGenerator(served.name, served.url, concurrency=2)
    request = Request("Name one", samples=3, sampling=Sampling(max_tokens=6, temperature=1.0, seed=3))
    result = Engine(generator, progress=False).run([request])
    assert sorted(result.answers[0].completions) == [0, 1, 2]
    assert (result.usage.requests, result.asked, generator.samples_per_call) == (3, 3, 1)
    assert len(set(result.answers[0].texts)) > 1


def test_the_lack_of_log_probabilities_is_named(served: Served) -> None:
    generator = OpenAIGenerator(served.name, served.url, logprobs=2)
    with pytest.raises(ConfigurationError, match="gives no log-probabilities for .*tiny-teacher"):
        Engine(generator, progress=False).run([Request("p", sampling=GREEDY)])


def test_an_unknown_model_is_named_with_the_nearest(served: Served) -> None:
    generator = OpenAIGenerator(f"{served.name}r", served.url)
    with pytest.raises(ConfigurationError, match=f"has no model .*did you mean {served.name}"):
        Engine(generator, progress=False).run([Request("p", sampling=GREEDY)])
