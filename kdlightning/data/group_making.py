"""Passages for queries, where the records have none; everything is drawn from a seed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from random import Random

import torch
from torch import Tensor

from kdlightning.data.seeding import mix
from kdlightning.errors import ConfigurationError


def passages_of_others(passages: Sequence[str], count: int, seed: int) -> list[list[str]]:
    """For each of some passages `count` different other ones.

    Raises:
        ConfigurationError: there are too few.
    """
    known = list(dict.fromkeys(passages))
    if len(known) <= count:
        raise ConfigurationError(f"TextGroups: negatives={count} of {len(known)} passages: lower negatives")
    random = Random(mix(seed))
    # One more than is wanted, in case the passage itself is drawn.
    return [[text for text in random.sample(known, count + 1) if text != passage][:count] for passage in passages]


def groups_of_classes(texts: Sequence[str], classes: Sequence[str], negatives: int, seed: int) -> list[list[str]]:
    """For each text itself, another one of its class, and `negatives` of other classes; a class of one text has none.

    Raises:
        ConfigurationError: no class has two texts, or the other classes have too few.
    """
    random = Random(mix(seed, 1))
    members = _members(texts, classes)
    found = []
    for text, name in zip(texts, classes, strict=True):
        own = [other for other in members.get(name, ()) if other != text]
        if own:
            found.append([text, random.choice(own), *_of_others(members, name, negatives, random)])
    if not found:
        raise ConfigurationError("TextGroups: no class of classes_field has two texts, so there are no positives")
    return found


def scored_pairs_of_classes(texts: Sequence[str], classes: Sequence[str], seed: int) -> tuple[list[list[str]], Tensor]:
    """For each text a partner, alternately of its own class (score 1) and of another (score 0)."""
    random = Random(mix(seed, 2))
    members = _members(texts, classes)
    pairs, scores = [], []
    for number, (text, name) in enumerate(zip(texts, classes, strict=True)):
        own = [other for other in members.get(name, ()) if other != text] if number % 2 == 0 else []
        pairs.append([text, random.choice(own) if own else _of_others(members, name, 1, random)[0]])
        scores.append(float(bool(own)))
    return pairs, torch.tensor(scores)


def _members(texts: Sequence[str], classes: Sequence[str]) -> dict[str, list[str]]:
    """The different texts of each class; one that occurs in several counts for the first."""
    members: dict[str, list[str]] = defaultdict(list)
    for text, name in dict(zip(reversed(texts), reversed(classes), strict=True)).items():
        members[name].append(text)
    return members


def _of_others(members: dict[str, list[str]], name: str, count: int, random: Random) -> list[str]:
    names = [other for other in members if other != name]
    sizes = [len(members[other]) for other in names]
    if sum(sizes) < max(count, 1):
        raise ConfigurationError(
            f"TextGroups: {count} negatives of classes other than {name!r}, which have {sum(sizes)} texts: lower "
            "negatives"
        )
    drawn: dict[str, None] = {}
    while len(drawn) < count:  # in proportion to the classes' sizes
        drawn[random.choice(members[random.choices(names, sizes)[0]])] = None
    return list(drawn)
