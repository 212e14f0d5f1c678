"""Made questions whose answers are exact: last letters, coin flips, chains of sums. Nothing to download.

    python -m kdlightning.blackbox.symbolic last_letters --count 2000 --seed 0 > questions.jsonl

After Wei et al., NeurIPS 2022, and Kojima et al., NeurIPS 2022, who judge reasoning on the first two. Each record has
`question`, `answer`, `reasoning` (a chain of steps that ends in "The answer is …") and `socratic` (one line a step,
"subquestion ** step", and "#### answer" at the end). Names are made of syllables. No two records of a call share their
question, so a cut of one call into parts gives disjoint training and test questions.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from itertools import product
from typing import Any

from kdlightning.errors import ConfigurationError

Record = dict[str, Any]
_BEGIN = ("B", "C", "D", "F", "G", "H", "J", "K", "L", "M", "N", "P", "R", "S", "T", "V")
_MIDDLE = ("a", "e", "i", "o", "u")
_END = ("bell", "ben", "dar", "die", "fan", "gus", "lia", "lo", "mek", "mir", "nah", "ny", "rah", "rik", "sum", "top")


def names(count: int, seed: int = 0) -> list[str]:
    """Different names such as "Dorik", at most 1,280."""
    everything = ["".join(parts) for parts in product(_BEGIN, _MIDDLE, _END)]
    if not 1 <= count <= len(everything):
        raise ConfigurationError(f"names is {count}: give 1 to {len(everything)}")
    return random.Random(seed).sample(everything, count)


def last_letters(count: int, seed: int = 0, size: int = 4, people: int = 400) -> list[Record]:
    """Take the last letter of each name and put the letters together.

    Args:
        count: number of records.
        seed: of the draws; the names themselves are always the same.
        size: names in a question.
        people: number of names to draw from.
    """
    known = names(people)

    def make(draw: random.Random) -> Record:
        chosen = draw.sample(known, size)
        letters = [name[-1] for name in chosen]
        steps = [
            (f"What is the last letter of {name}?", draw.choice(_LETTER_STEPS).format(name=name, letter=letter))
            for name, letter in zip(chosen, letters, strict=True)
        ]
        question = f"Put the last letters of {' '.join(chosen)} together."
        return _record(question, "".join(letters), steps)

    return _different(count, seed, make)


_LETTER_STEPS = (
    "{name} ends in {letter}.",
    "{name} has {letter} last.",
    "Of {name} take {letter}.",
)


def coin_flips(count: int, seed: int = 0, size: int = 5, people: int = 400) -> list[Record]:
    """A coin begins heads up, people flip it or do not, and the question is whether it is heads up in the end.

    The reasoning numbers the people: who flipped does not matter, and a small model need not copy names.

    Args:
        count: number of records.
        seed: of the draws.
        size: people in a question.
        people: number of names to draw from.
    """
    known = names(people)

    def make(draw: random.Random) -> Record:
        heads, told, steps = True, [], []
        for number, name in enumerate(draw.sample(known, size), start=1):
            flips = draw.random() < 0.5
            heads = heads != flips
            told.append(f"{name} flips the coin." if flips else f"{name} does not flip the coin.")
            step = f"{number} {'flips' if flips else 'does not flip'}, so it is {'heads' if heads else 'tails'}."
            steps.append((f"What is up after {number}?", step))
        question = f"A coin is heads up. {' '.join(told)} Is the coin still heads up?"
        return _record(question, "yes" if heads else "no", steps)

    return _different(count, seed, make)


def arithmetic(count: int, seed: int = 0, size: int = 4, largest: int = 9) -> list[Record]:
    """A chain of sums and differences from left to right, none of whose results is negative.

    Args:
        count: number of records.
        seed: of the draws.
        size: numbers in a question.
        largest: of the numbers.
    """

    def make(draw: random.Random) -> Record:
        value = draw.randint(0, largest)
        text, steps = [str(value)], []
        for _ in range(size - 1):
            number = draw.randint(0, largest)
            minus = draw.random() < 0.5 and number <= value
            result = value - number if minus else value + number
            sign = "-" if minus else "+"
            text += [sign, str(number)]
            steps.append((f"How much is {value} {sign} {number}?", f"{value} {sign} {number} = {result}."))
            value = result
        return _record(f"How much is {' '.join(text)}?", str(value), steps)

    return _different(count, seed, make)


MAKERS: dict[str, Callable[..., list[Record]]] = {
    "last_letters": last_letters,
    "coin_flips": coin_flips,
    "arithmetic": arithmetic,
}


def _record(question: str, answer: str, steps: Sequence[tuple[str, str]]) -> Record:
    socratic = [f"{asked} ** {step}" for asked, step in steps]
    return {
        "question": question,
        "answer": answer,
        # Without a full stop: it would be taken for a part of an answer that is text.
        "reasoning": " ".join([*(step for _, step in steps), f"The answer is {answer}"]),
        "socratic": "\n".join([*socratic, f"#### {answer}"]),
    }


def _different(count: int, seed: int, make: Callable[[random.Random], Record]) -> list[Record]:
    """So many records of different questions.

    Raises:
        ConfigurationError: there are not so many.
    """
    if count < 1:
        raise ConfigurationError(f"count is {count}: give at least 1")
    found: dict[str, Record] = {}
    for record in _draws(seed, make, 20 * count + 1000):
        found.setdefault(record["question"], record)
        if len(found) == count:
            return list(found.values())
    raise ConfigurationError(
        f"count is {count}, and there seem to be only {len(found)} different questions: raise size"
    )


def _draws(seed: int, make: Callable[[random.Random], Record], most: int) -> Iterator[Record]:
    draw = random.Random(seed)
    for _ in range(most):
        yield make(draw)


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints records, one JSON object a line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=list(MAKERS))
    parser.add_argument("--count", type=int, default=1000, help="number of records")
    parser.add_argument("--seed", type=int, default=0, help="of the draws")
    parser.add_argument("--size", type=int, help="names, people or numbers in a question")
    options = parser.parse_args(arguments)
    size = {} if options.size is None else {"size": options.size}
    try:
        records = MAKERS[options.task](options.count, options.seed, **size)
    except ConfigurationError as error:
        parser.error(str(error))
    for record in records:
        sys.stdout.write(json.dumps(record) + "\n")


if __name__ == "__main__":
    main()
