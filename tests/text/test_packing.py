"""Blocks hold every token once."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdlightning.text.packing import IGNORED, pack


@settings(deadline=None)
@given(
    documents=st.lists(st.lists(st.integers(5, 50), max_size=12), max_size=8),
    block_size=st.integers(2, 9),
    end=st.sampled_from([None, 1]),
)
def test_every_token_is_packed_once(documents: list[list[int]], block_size: int, end: int | None) -> None:
    stream = [token for document in documents for token in [*document, *([] if end is None else [end])]]
    packed = pack(documents, block_size, end=end, pad=0)
    counted = packed["attention_mask"].bool()
    kept = packed["input_ids"][counted].tolist()
    dropped = len(stream) % block_size == 1 and len(stream) > 1
    assert kept == (stream[:-1] if dropped else stream)
    assert packed["labels"][counted].tolist() == kept
    assert (packed["labels"][~counted] == IGNORED).all()
    assert (packed["input_ids"][~counted] == 0).all()
    assert all(values.shape[1] == block_size for values in packed.values())


def test_block_of_one_token_is_refused() -> None:
    with pytest.raises(ValueError, match="block_size must be at least 2"):
        pack([[1, 2]], 1)
