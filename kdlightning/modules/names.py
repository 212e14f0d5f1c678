"""Names of terms: `task` and `kd` are the student's, `task_peer1` and `fit_net_exit2` those of other networks."""

from __future__ import annotations

import re

_SUFFIX = re.compile(r"_(?:peer|exit)\d+$")


def base_name(name: str) -> str:
    """The name without the network that it belongs to: `dml` of `dml_peer2`."""
    return _SUFFIX.sub("", name)


def network_of(name: str) -> str:
    """The network that a term belongs to: "peer2" of `dml_peer2`, "student" of `dml`."""
    found = _SUFFIX.search(name)
    return "student" if found is None else found.group()[1:]


def is_of_other_network(name: str) -> bool:
    """Whether a name ends as those of the terms of peers and exits do."""
    return _SUFFIX.search(name) is not None
