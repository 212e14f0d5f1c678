"""Files with a word a line, as those of the CoNLL shared tasks."""

from __future__ import annotations

from pathlib import Path

from kdlightning.data.files import read_text
from kdlightning.errors import ConfigurationError

COLUMN_SUFFIXES = tuple(
    f".{kind}{gz}" for kind in ("conll", "txt", "bio", "iob2", "tsv", "conllu") for gz in ("", ".gz")
)


def read_columns(path: Path, word_column: int = 0, tag_column: int = -1) -> tuple[list[list[str]], list[list[str]]]:
    """Words and tags of each text.

    Columns are apart by tabs, where a line has some, else by white space; an empty line ends a text. Lines that begin
    with `-DOCSTART-` are left out, and in `.conllu` files comments and the numbered joints (`3-4`, `5.1`).

    Args:
        path: the file, `.gz` or not.
        word_column: from 0; -1 is the last.
        tag_column: from 0; -1 is the last.

    Raises:
        ConfigurationError: a line lacks a column, or there is no word at all.
    """
    universal = path.name.removesuffix(".gz").endswith(".conllu")
    words: list[list[str]] = [[]]
    tags: list[list[str]] = [[]]
    for number, line in enumerate(read_text(path).split("\n"), 1):
        line = line.strip("\r\n ")
        if not line.strip():
            if words[-1]:
                words.append([])
                tags.append([])
            continue
        cells = line.split("\t") if "\t" in line else line.split()
        if cells[0] == "-DOCSTART-" or (universal and (line.startswith("#") or not cells[0].isdecimal())):
            continue
        try:
            if len(cells) < 2:
                raise IndexError
            words[-1].append(cells[word_column])
            tags[-1].append(cells[tag_column])
        except IndexError as error:
            raise ConfigurationError(
                f"{path}, line {number} has {len(cells)} columns, and the word is in {word_column}, its tag in "
                f"{tag_column}: set word_column and tag_column"
            ) from error
    kept = [place for place, text in enumerate(words) if text]
    if not kept:
        raise ConfigurationError(f"{path} has no words")
    return [words[place] for place in kept], [tags[place] for place in kept]
