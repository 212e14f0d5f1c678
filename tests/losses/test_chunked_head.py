from __future__ import annotations

from kdlightning.losses.chunked_head import LOGITS_OF_CHUNK, SMALLEST_CHUNK, default_chunk


def test_chunks_fill_a_buffer_of_fixed_size_and_stay_useful() -> None:
    for device in ("cpu", "cuda"):
        assert default_chunk(32000, device) == LOGITS_OF_CHUNK[device] // 32000
        assert default_chunk(10**8, device) == SMALLEST_CHUNK
    assert default_chunk(32000, "mps") == default_chunk(32000, "cuda")
