"""A server on the loopback that speaks as much of OpenAI's interface as a generator needs, and counts what it is asked.

    python benchmarks/loopback.py            # prints its port, and serves until its input ends

Its answer is made from the prompt alone. A caller's key is its name: each request is noted as (name, prompt, samples).
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
import sys
import threading
from collections import Counter
from types import TracebackType
from typing import Any

Asked = tuple[str, str, int]
"""The caller's key, the prompt or last message, and the number of samples."""


def answer_to(prompt: str) -> str:
    """What the server says: the same in every run, and another thing to every prompt."""
    return f"{prompt} is {hashlib.sha256(prompt.encode()).hexdigest()[:12]}"


class Loopback:
    """The server, in a thread; a context manager.

    Args:
        delay: seconds until an answer, drawn evenly from 0 to twice this.

    Attributes:
        asked: all requests in the order in which they were read, before they are answered.
        samples: how many each caller has asked for.
        connections: how many are open.
        port: where it listens.
    """

    def __init__(self, delay: float = 0.0) -> None:
        self.delay = delay
        self.asked: list[Asked] = []
        self.samples: Counter[str] = Counter()
        self.connections = 0
        self.port = 0
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)

    @property
    def url(self) -> str:
        """The base of all addresses."""
        return f"http://127.0.0.1:{self.port}/v1"

    def __enter__(self) -> Loopback:
        self._thread.start()
        self._ready.wait()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(asyncio.start_server(self._connection, "127.0.0.1", 0))
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        self._loop.run_forever()
        server.close()
        waiting = asyncio.all_tasks(self._loop)
        for task in waiting:
            task.cancel()
        self._loop.run_until_complete(asyncio.gather(*waiting, return_exceptions=True))
        self._loop.close()

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while head := await _head(reader):
                path, headers = head
                body = await reader.readexactly(int(headers.get("content-length", 0)))
                content = await self._answer(path, headers.get("authorization", ""), body)
                writer.write(
                    b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"
                    b"content-length: %d\r\n\r\n%s" % (len(content), content)
                )
                await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # the caller was killed
        finally:
            self.connections -= 1
            writer.close()

    async def _answer(self, path: str, authorization: str, body: bytes) -> bytes:
        if not body:
            return json.dumps({"object": "list", "data": [{"id": "loopback", "object": "model"}]}).encode()
        content = json.loads(body)
        chat = path.endswith("/chat/completions")
        prompt = content["messages"][-1]["content"] if chat else content["prompt"]
        samples = content.get("n") or 1
        caller = authorization.removeprefix("Bearer ")
        self.asked.append((caller, prompt, samples))
        self.samples[caller] += samples
        if self.delay:
            await asyncio.sleep(random.uniform(0, 2 * self.delay))
        return json.dumps(_completion(chat, answer_to(prompt), samples)).encode()


async def _head(reader: asyncio.StreamReader) -> tuple[str, dict[str, str]] | None:
    """Path and headers of the next request; None at the connection's end."""
    first = await reader.readline()
    if not first:
        return None
    headers: dict[str, str] = {}
    while line := (await reader.readline()).decode("latin-1").strip():
        name, _, value = line.partition(":")
        headers[name.lower()] = value.strip()
    return first.decode("latin-1").split(" ")[1].partition("?")[0], headers


def _completion(chat: bool, text: str, samples: int) -> dict[str, Any]:
    said: dict[str, Any] = {"message": {"role": "assistant", "content": text}} if chat else {"text": text}
    choices = [{"index": number, "finish_reason": "stop", "logprobs": None, **said} for number in range(samples)]
    return {
        "id": "loopback",
        "object": "chat.completion" if chat else "text_completion",
        "created": 0,
        "model": "loopback",
        "choices": choices,
        "usage": {"prompt_tokens": 10, "completion_tokens": 5 * samples, "total_tokens": 10 + 5 * samples},
    }


if __name__ == "__main__":
    with Loopback() as served:
        print(served.port, flush=True)
        sys.stdin.read()
