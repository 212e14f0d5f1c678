"""Processes that share a store do not ask for the same, and none waits for one that is gone."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from kdlightning.errors import ConfigurationError
from kdlightning.generation.base import Answer, Completion, Request, UnavailableError
from kdlightning.generation.claims import LONGEST, Claims
from kdlightning.generation.engine import Engine
from kdlightning.generation.store import CompletionStore


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store.sqlite"


def claimed(path: Path) -> int:
    with CompletionStore(path) as store, store.transaction() as connection:
        return int(connection.execute("SELECT count(*) FROM claims").fetchone()[0])


def test_a_claim_holds_until_it_is_answered_or_given_up(path: Path) -> None:
    stores = CompletionStore(path), CompletionStore(path)
    one, other = (Claims(store) for store in stores)
    with other.held():
        with one.held():
            assert one.take("k", range(3)) == {0, 1, 2}
            assert one.take("k", [1]) == {1}, "it is ours"
            assert other.take("k", range(4)) == {3}
            one.release("k", [1])
            assert other.take("k", range(4)) == {1, 3}
            assert one.take("k", range(4)) == {0, 2}
            stores[0].put("k", 0, Completion("a"))
            assert claimed(path) == 3
        assert other.take("k", [2]) == {2}
    assert claimed(path) == 0


def test_an_exception_leaves_no_claim(path: Path) -> None:
    claims = Claims(CompletionStore(path))

    def breaks() -> None:
        with claims.held():
            claims.take("k", range(3))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        breaks()
    assert claimed(path) == 0


@pytest.mark.parametrize("kind", ["dead", "dead and not waited for", "ours of another life", "old"])
def test_claims_of_those_who_are_gone_are_void(kind: str, path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    with CompletionStore(path) as store:
        theirs, ours = Claims(store), Claims(store)
        theirs.owner = f"{process.pid}-x" if kind != "ours of another life" else theirs.owner
        assert theirs.take("k", [0]) == {0}
        if kind != "ours of another life":
            assert ours.take("k", [0]) == set()
        if kind == "dead":
            process.kill()
            process.wait()
        if kind == "dead and not waited for":
            if not Path("/proc/self/stat").exists():
                pytest.skip("only where processes can be looked at")
            process.kill()
            os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        if kind == "old":
            with store.transaction() as connection:
                connection.execute("UPDATE claims SET since = ?", (time.time() - LONGEST - 1,))
        assert ours.take("k", [0]) == {0}
    process.kill()
    process.communicate()


def test_a_store_in_memory_needs_no_claims() -> None:
    store = CompletionStore(":memory:")
    one, other = Claims(store), Claims(store)
    with one.held(), other.held():
        assert one.take("k", range(3)) == other.take("k", range(3)) == {0, 1, 2}


def test_what_another_asks_for_is_waited_for(scripted, path: Path) -> None:
    requests = [Request(f"p{number}") for number in range(5)]
    with CompletionStore(path) as theirs:
        claims = Claims(theirs)
        with claims.held():
            for number in (1, 3):
                claims.take(requests[number].key("script"), [0])

            def later() -> None:
                time.sleep(0.3)
                theirs.put(requests[1].key("script"), 0, Completion("theirs"))
                claims.release(requests[3].key("script"), [0])

            thread = threading.Thread(target=later)
            thread.start()
            generator = scripted(concurrency=3)
            with CompletionStore(path) as store:
                result = Engine(generator, store, progress=False).run(requests)
            thread.join()
    assert [answer.texts for answer in result.answers] == [["p0/0"], ["theirs"], ["p2/0"], ["p3/0"], ["p4/0"]]
    assert [prompt for prompt, _ in generator.asked] == ["p0", "p2", "p4", "p3"]
    assert (result.asked, result.reused) == (4, 1)


def test_two_engines_at_once_ask_for_everything_once(scripted, path: Path) -> None:
    class Slow(scripted):
        def generate(self, requests: Sequence[Request]) -> list[Answer]:
            time.sleep(0.002)
            return super().generate(requests)

    requests = [Request(f"p{number}", samples=2) for number in range(40)]
    generators, results = [Slow(concurrency=4), Slow(concurrency=2, batch_size=3)], []

    def work(generator: Slow) -> None:
        with CompletionStore(path) as store:
            results.append(Engine(generator, store, progress=False).run(requests))

    threads = [threading.Thread(target=work, args=(generator,)) for generator in generators]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    asked = [sample for generator in generators for sample in generator.asked]
    assert len(asked) == len(set(asked)) == 80
    assert all(generator.asked for generator in generators)
    assert all(
        [answer.texts for answer in each.answers] == [[f"p{n}/0", f"p{n}/1"] for n in range(40)] for each in results
    )
    assert claimed(path) == 0


def test_a_claim_does_not_grow_old_while_its_call_is_tried_again(scripted, path: Path) -> None:
    with CompletionStore(path) as store, CompletionStore(path) as theirs:
        other = Claims(theirs)

        class Busy(scripted):
            retries, first_wait, attempts = 2, 0.001, 0

            def generate(self, requests: Sequence[Request]) -> list[Answer]:
                self.attempts += 1
                if self.attempts == 1:
                    with theirs.transaction() as connection:
                        connection.execute("UPDATE claims SET since = ?", (time.time() - LONGEST - 1,))
                if self.attempts < 3:
                    raise UnavailableError("busy")
                assert other.take(Request("p").key("script"), [0]) == set()
                return super().generate(requests)

        assert Engine(Busy(), store, progress=False).run([Request("p")]).answers[0].texts == ["p/0"]


def test_failed_samples_are_free_for_others_at_once(scripted, path: Path) -> None:
    with CompletionStore(path) as store:
        other = Claims(store)

        class Refusing(scripted):
            def generate(self, requests: Sequence[Request]) -> list[Answer]:
                if requests[0].text == "p1":
                    assert other.take(Request("p0").key("script"), [0]) == {0}
                    assert other.take(Request("p1").key("script"), [0]) == set()
                return super().generate(requests)

        generator = Refusing()
        generator.failing = {"p0"}
        assert len(Engine(generator, store, progress=False).run([Request("p0"), Request("p1")]).failures) == 1


def test_a_transaction_is_whole_or_nothing(path: Path) -> None:
    def breaks(store: CompletionStore) -> None:
        with store.transaction() as connection:
            store.put("k", 0, Completion("a"))
            connection.execute("SELECT * FROM nowhere")

    with CompletionStore(path) as store:
        with pytest.raises(ConfigurationError, match="no such table"):
            breaks(store)
        assert len(store) == 0
        store.put("k", 0, Completion("b"))
        assert store.get("k", [0]) == {0: Completion("b")}
