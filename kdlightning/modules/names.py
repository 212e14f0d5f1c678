"""Names of terms: `task` and `kd` are the student's, `task_peer1` and `fit_net_exit2` those of other networks."""

from __future__ import annotations

import re

_SUFFIX = re.compile(r"_(?:peer|exit)\d+$")


def base_name(name: str) -> str:
    """The name without the network that it belongs to: `dml` of `dml_peer2`."""
    return _SUFFIX.sub("", name)


def is_of_other_network(name: str) -> bool:
    """Whether a name ends as those of the terms of peers and exits do."""
    return _SUFFIX.search(name) is not None
