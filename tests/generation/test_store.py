"""The store keeps what was answered, whoever is killed."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdlightning.errors import ConfigurationError
from kdlightning.generation.base import Completion, Request
from kdlightning.generation.store import CompletionStore


def test_answers_survive_closing(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "store.sqlite"
    request = Request("Hello")
    with CompletionStore(path) as store:
        store.put(request.key(), 3, Completion("World", "length"), request=request, identity="me")
    with CompletionStore(path) as store:
        assert store.get(request.key(), range(5)) == {3: Completion("World", "length")}
        assert store.get(request.key(), [0, 1]) == {}
        assert store.get("other", range(5)) == {}
        assert len(store) == 1


def test_the_first_answer_stays() -> None:
    store = CompletionStore(":memory:")
    assert store.put("k", 0, Completion("one")) == Completion("one")
    assert store.put("k", 0, Completion("two")) == Completion("one")
    assert store.get("k", [0]) == {0: Completion("one")}


def test_the_request_is_stored_beside_its_answers(tmp_path: Path) -> None:
    path = tmp_path / "store.sqlite"
    request = Request("Grüße")
    with CompletionStore(path) as store:
        for number in range(2):
            store.put(request.key("me"), number, Completion("x"), request=request, identity="me")
    rows = sqlite3.connect(path).execute("SELECT * FROM requests").fetchall()
    assert len(rows) == 1
    assert rows[0][:2] == (request.key("me"), "me")
    assert "Grüße" in rows[0][2]


@given(st.lists(st.tuples(st.text(min_size=1), st.integers(0, 5), st.text()), max_size=20))
def test_behaves_like_a_dictionary_where_the_first_value_stays(rows: list[tuple[str, int, str]]) -> None:
    store, model = CompletionStore(":memory:"), dict[tuple[str, int], str]()
    for key, number, text in rows:
        text = text.encode("utf-8", "replace").decode()
        key = Request(key).key()
        assert store.put(key, number, Completion(text)).text == model.setdefault((key, number), text)
    assert {(key, number): text for key, number, text in store.rows()} == model
    assert len(store) == len(model)


def test_a_committed_answer_is_seen_by_others_at_once(tmp_path: Path) -> None:
    path = tmp_path / "store.sqlite"
    one, other = CompletionStore(path), CompletionStore(path)
    one.put("k", 0, Completion("a"))
    assert other.get("k", [0]) == {0: Completion("a")}


def test_threads_may_share_a_store(tmp_path: Path) -> None:
    store = CompletionStore(tmp_path / "store.sqlite")

    def fill(part: int) -> None:
        for number in range(50):
            store.put(f"k{number}", part, Completion(f"{number}/{part}"))

    threads = [threading.Thread(target=fill, args=(part,)) for part in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(text == f"{key[1:]}/{sample}" for key, sample, text in store.rows())
    assert len(store) == 200


def test_foreign_and_damaged_files_are_refused_and_left_alone(tmp_path: Path) -> None:
    foreign, damaged = tmp_path / "foreign.sqlite", tmp_path / "damaged.sqlite"
    with sqlite3.connect(foreign) as connection:
        connection.execute("CREATE TABLE theirs (a)")
    connection.close()
    damaged.write_bytes(b"no database at all" * 100)
    for path, named in ((foreign, "something else"), (damaged, "damaged or no SQLite file")):
        before = path.read_bytes()
        with pytest.raises(ConfigurationError, match=named):
            CompletionStore(path)
        assert path.read_bytes() == before


def test_a_folder_is_no_store(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="is a folder"):
        CompletionStore(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError, match="no folder for"):
        CompletionStore(tmp_path / "file" / "store.sqlite")


def test_a_locked_store_says_so(tmp_path: Path) -> None:
    path = tmp_path / "store.sqlite"
    store = CompletionStore(path, timeout=0.05)
    holder = sqlite3.connect(path, isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    with pytest.raises(ConfigurationError, match="locked by another process"):
        store.put("k", 0, Completion("a"))
    holder.execute("ROLLBACK")
    store.put("k", 0, Completion("a"))
    assert len(store) == 1


def test_a_full_disk_says_so_and_loses_nothing(tmp_path: Path) -> None:
    path = tmp_path / "store.sqlite"
    store = CompletionStore(path)
    store.put("before", 0, Completion("a"))
    pages = store._connection.execute("PRAGMA page_count").fetchone()[0]
    store._connection.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(ConfigurationError, match="no space left"):
        store.put("k", 0, Completion("long " * 100_000))
    assert store.get("before", [0]) == {0: Completion("a")}
    assert store.get("k", [0]) == {}
    assert len(CompletionStore(path)) == 1


def test_processes_that_open_one_new_store_at_once_agree(tmp_path: Path) -> None:
    code = (
        "import sys; from kdlightning.generation.store import CompletionStore;"
        "from kdlightning.generation.base import Completion\n"
        "store = CompletionStore(sys.argv[1])\n"
        "for n in range(100): store.put(str(n), 0, Completion(f'{n} from {sys.argv[2]}'))"
    )
    path = tmp_path / "store.sqlite"
    workers = [
        subprocess.Popen([sys.executable, "-c", code, str(path), str(number)], stderr=subprocess.PIPE, env=os.environ)
        for number in range(3)
    ]
    for worker in workers:
        _, errors = worker.communicate(timeout=60)
        assert worker.returncode == 0, errors.decode()
    rows = list(CompletionStore(path).rows())
    assert len(rows) == 100
    assert all(text.split(" from ")[0] == key for key, _, text in rows)
