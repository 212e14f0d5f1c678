"""Keeps every answer the moment it arrives."""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import astuple
from pathlib import Path
from types import TracebackType
from typing import Any

from kdlightning.errors import ConfigurationError
from kdlightning.generation.base import Completion, Request, TokenLogprob
from kdlightning.generation.usage import Usage

_APPLICATION = 0x6B646C31  # "kdl1": tells our files from other SQLite files
_TABLES = """
CREATE TABLE IF NOT EXISTS completions (
    request TEXT NOT NULL, sample INTEGER NOT NULL, text TEXT NOT NULL, finish TEXT NOT NULL,
    PRIMARY KEY (request, sample)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS requests (
    request TEXT PRIMARY KEY, identity TEXT NOT NULL, content TEXT NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS usage (
    request TEXT NOT NULL, sample INTEGER NOT NULL, requests INTEGER NOT NULL, prompt_tokens INTEGER NOT NULL,
    completion_tokens INTEGER NOT NULL, money REAL NOT NULL, estimated INTEGER NOT NULL,
    PRIMARY KEY (request, sample)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS claims (
    request TEXT NOT NULL, sample INTEGER NOT NULL, owner TEXT NOT NULL, since REAL NOT NULL,
    PRIMARY KEY (request, sample)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS logprobs (
    request TEXT NOT NULL, sample INTEGER NOT NULL, content TEXT NOT NULL,
    PRIMARY KEY (request, sample)
) WITHOUT ROWID;
"""
_FIND = """
SELECT c.request, c.sample, c.text, c.finish, l.content FROM completions c
LEFT JOIN logprobs l ON l.request = c.request AND l.sample = c.sample WHERE c.request
"""


class CompletionStore:
    """Answers by (request hash, sample number), in an SQLite file.

    Each answer is committed in a transaction of its own, with what it cost and the probabilities of its tokens where
    they are known. The first answer to a sample stays: whoever comes second is
    given the first. Several processes of one machine may share a file (it is in write-ahead mode, which network
    folders do not support). A killed process loses nothing that was committed; a power failure may cost the last
    moments.

    Args:
        path: the file, made with its folder if missing; ":memory:" keeps everything in memory.
        timeout: seconds to wait for another process before giving up.
    """

    def __init__(self, path: str | Path, *, timeout: float = 60.0) -> None:
        self.path = str(path)
        self._lock = threading.RLock()
        if self.path != ":memory:":
            if Path(self.path).is_dir():
                raise ConfigurationError(f"store: {self.path} is a folder; give the path of a file")
            try:
                Path(self.path).parent.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise ConfigurationError(f"store: no folder for {self.path} ({error.strerror})") from error
        with self._sentences():
            # Without Python's implicit transactions a statement is a transaction.
            self._connection = sqlite3.connect(
                self.path, timeout=timeout, isolation_level=None, check_same_thread=False
            )
        try:
            with self._sentences():
                self._prepare()
        except BaseException:
            self._connection.close()
            raise

    def _prepare(self) -> None:
        application = self._connection.execute("PRAGMA application_id").fetchone()[0]
        if application != _APPLICATION:
            if self._connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] and not self._ours():
                raise ConfigurationError(f"store: {self.path} is a database of something else; give another path")
            self._connection.execute(f"PRAGMA application_id = {_APPLICATION}")
        self._connection.execute("PRAGMA journal_mode = WAL")
        self._connection.execute("PRAGMA synchronous = NORMAL")
        self._connection.execute("PRAGMA cache_size = -32768")  # 32 MB: all but the leaves of some million rows
        for statement in _TABLES.split(";"):
            self._connection.execute(statement)

    def _ours(self) -> bool:
        # Another process may be making the file at this moment: its tables are there and the mark is not seen yet.
        names = {row[0] for row in self._connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        return names <= {"completions", "requests", "usage", "claims", "logprobs"}

    def get(self, key: str, numbers: Iterable[int]) -> dict[int, Completion]:
        """The stored answers among the given samples of a request."""
        wanted = set(numbers)
        with self._sentences():
            rows = self._connection.execute(f"{_FIND} = ?", (key,)).fetchall()
        return {row[1]: _completion(*row[2:]) for row in rows if row[1] in wanted}

    def get_many(self, keys: Sequence[str]) -> list[tuple[str, int, Completion]]:
        """All stored answers to some hundreds of requests, as (request hash, sample number, answer)."""
        marks = ", ".join("?" * len(keys))
        with self._sentences():
            rows = self._connection.execute(f"{_FIND} IN ({marks})", keys).fetchall()
        return [(key, number, _completion(text, finish, tokens)) for key, number, text, finish, tokens in rows]

    def put(
        self,
        key: str,
        number: int,
        completion: Completion,
        *,
        request: Request | None = None,
        identity: str = "",
        usage: Usage | None = None,
    ) -> Completion:
        """Commits an answer, and returns what the store now holds for this sample: an earlier answer wins.

        Args:
            key: the request's hash.
            number: the sample's number.
            completion: the answer.
            request: stored beside its first answer, for those who read the file.
            identity: who answered.
            usage: what it cost, stored beside it.
        """
        with self.transaction() as connection:
            self._insert(key, number, completion, usage)
            if request is not None:
                content = json.dumps(request.to_dict(), ensure_ascii=False, sort_keys=True)
                connection.execute("INSERT OR IGNORE INTO requests VALUES (?, ?, ?)", (key, identity, _clean(content)))
            row = connection.execute(f"{_FIND} = ? AND c.sample = ?", (key, number)).fetchone()
        return _completion(*row[2:])

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """All statements inside or none of them, unseen by others until the end; one inside another is part of it."""
        with self._sentences():
            if self._connection.in_transaction:
                yield self._connection
                return
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise

    def _insert(self, key: str, number: int, completion: Completion, usage: Usage | None) -> None:
        row = (key, number, _clean(completion.text), completion.finish)
        new = self._connection.execute("INSERT OR IGNORE INTO completions VALUES (?, ?, ?, ?)", row).rowcount
        self._connection.execute("DELETE FROM claims WHERE request = ? AND sample = ?", (key, number))
        if usage is not None:
            # What was spent on an answer that came second was spent all the same: the sample's costs add up.
            self._connection.execute(
                "INSERT INTO usage VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET "
                "requests = requests + excluded.requests, prompt_tokens = prompt_tokens + excluded.prompt_tokens, "
                "completion_tokens = completion_tokens + excluded.completion_tokens, "
                "money = money + excluded.money, estimated = max(estimated, excluded.estimated)",
                (key, number, *astuple(usage)),
            )
        if new and completion.logprobs is not None:
            content = json.dumps([[each.token, each.logprob, each.top] for each in completion.logprobs])
            self._connection.execute("INSERT OR REPLACE INTO logprobs VALUES (?, ?, ?)", (key, number, content))

    def usage(self) -> Usage:
        """What all stored answers cost together, as far as it is known."""
        sums = "sum(requests), sum(prompt_tokens), sum(completion_tokens), sum(money), max(estimated)"
        with self._sentences():
            row = self._connection.execute(f"SELECT {sums} FROM usage").fetchone()
        if row[0] is None:
            return Usage()
        requests, sent, back, money, estimated = row
        return Usage(requests, sent, back, money, bool(estimated))

    def rows(self) -> Iterator[tuple[str, int, str]]:
        """All answers as (request hash, sample number, text), by key."""
        with self._sentences():
            rows = self._connection.execute(
                "SELECT request, sample, text FROM completions ORDER BY request, sample"
            ).fetchall()
        yield from rows

    def __len__(self) -> int:
        with self._sentences():
            return int(self._connection.execute("SELECT count(*) FROM completions").fetchone()[0])

    def close(self) -> None:
        """Closes the file."""
        with self._lock:
            self._connection.close()

    def __del__(self) -> None:
        connection = getattr(self, "_connection", None)
        if connection is not None:
            connection.close()

    def __enter__(self) -> CompletionStore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @contextmanager
    def _sentences(self) -> Iterator[None]:
        """One thread at a time, and SQLite's errors as sentences that say what to do."""
        with self._lock:
            try:
                yield
            except sqlite3.Error as error:
                raise ConfigurationError(_sentence(self.path, error)) from error


def _completion(text: str, finish: str, content: str | None) -> Completion:
    if content is None:
        return Completion(text, finish)
    tokens = [
        TokenLogprob(token, value, tuple((name, each) for name, each in top))
        for token, value, top in json.loads(content)
    ]
    return Completion(text, finish, tuple(tokens))


def _clean(text: str) -> str:
    """Half a surrogate pair, which JSON can hold and SQLite cannot, becomes a question mark."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _sentence(path: str, error: Any) -> str:
    text = str(error)
    if "locked" in text or "busy" in text:
        return f"store: {path} is locked by another process; wait for it or end it"
    if "full" in text:
        return f"store: no space left for {path}; make room and start again, nothing stored is lost"
    if "not a database" in text or "malformed" in text:
        return f"store: {path} is damaged or no SQLite file ({text}); move it away or give another path"
    if "readonly" in text or "unable to open" in text:
        return f"store: {path} cannot be written ({text}); check the folder's permissions"
    return f"store: {path}: {text}"
