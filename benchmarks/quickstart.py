"""The quickstart recipe over several seeds: does the distilled student beat the same student on labels alone?

    python benchmarks/quickstart.py                  # seeds 0 to 4, about 40 s each on two idle cores
    python benchmarks/quickstart.py --seeds 0 1 2

Each seed is the whole recipe, `kdlightning run quickstart --seed N`, with a teacher of its own. Finished seeds are
skipped. Reported is the test accuracy of the last checkpoint; the difference is paired by seed, with Student's t
interval. Nothing is chosen on test.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from paired import by_seed, difference_words, markdown, mean_words, paired_difference, record, write

from kdlightning.commands.runs import read_result

RESULTS = Path(__file__).parent / "results" / "quickstart.json"
STAGES = {"teacher": "teacher", "alone": "student, labels alone", "distilled": "student, distilled"}


def run_recipe(seed: int, work: Path) -> list[dict[str, Any]]:
    """Runs one seed, or finds it finished; the records of its three runs."""
    command = [sys.executable, "-m", "kdlightning.cli", "run", "quickstart", "--seed", str(seed), "--output", str(work)]
    subprocess.run(command, check=True)
    recipe = read_recipe(work, seed)
    results = [read_result(Path(recipe[stage]["run"])) for stage in STAGES]
    return [{"stage": stage, **record(result)} for stage, result in zip(STAGES, results, strict=True) if result]


def read_recipe(work: Path, seed: int) -> dict[str, Any]:
    """Where the recipe's stages lie."""
    import json

    return json.loads((work / "quickstart" / "recipe" / f"seed{seed}" / "recipe.json").read_text())["stages"]


def table(records: Sequence[dict[str, Any]]) -> str:
    """Accuracies by stage, the paired difference, and the seeds one by one."""
    values = {stage: by_seed([each for each in records if each["stage"] == stage], "acc") for stage in STAGES}
    rows = [["", "test accuracy, last", "difference to labels alone (95 %)", "parameters", "by seed"]]
    for stage, label in STAGES.items():
        parameters = next(each["student"]["parameters"] for each in records if each["stage"] == stage)
        difference = paired_difference(values[stage], values["alone"]) if stage == "distilled" else None
        each = " ".join(f"{value:.4f}" for _, value in sorted(values[stage].items()))
        mean = mean_words(list(values[stage].values()))
        rows.append([label, mean, difference_words(difference), f"{parameters:,}", each])
    return markdown(rows)


def main(arguments: Sequence[str] | None = None) -> str:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(5)))
    parser.add_argument("--work", type=Path, default=Path("runs/benchmarks"), help="where runs go")
    options = parser.parse_args(arguments)
    records = [each for seed in options.seeds for each in run_recipe(seed, options.work)]
    print()
    print(text := table(records))
    write(RESULTS, records)
    return text


if __name__ == "__main__":
    main()
