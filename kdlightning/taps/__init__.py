"""Tensors inside networks: how they are named, where they come from, what shape they have."""

from kdlightning.taps.layouts import canonical_shape, channels_first
from kdlightning.taps.listing import example_inputs, list_taps
from kdlightning.taps.names import Tap, TapError, TapInfo, resolve
from kdlightning.taps.reader import TapReader

__all__ = [
    "Tap",
    "TapError",
    "TapInfo",
    "TapReader",
    "canonical_shape",
    "channels_first",
    "example_inputs",
    "list_taps",
    "resolve",
]
