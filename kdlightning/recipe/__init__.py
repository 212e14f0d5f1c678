"""Recipes: named stages, each an ordinary command in its own process, with products that later stages refer to.

A finished stage is skipped while its settings and the products that it reads are unchanged; a stage that was killed
goes on from its last checkpoint, a `generate` stage with what its store lacks.

`repeat: N` runs a stage N times, as NAME.1, NAME.2, …, with seeds that count up; `first: 2` begins with NAME.2. Each
repetition may read the one before it by `${previous.last}`, the first one the stage before. A `test` stage with a role
measures its student as it is built, for example an `Ensemble` of earlier products, and has a line in the table.
"""

from kdlightning.recipe.engine import Engine, Plan
from kdlightning.recipe.stages import Recipe, Stage, parse_recipe, references

__all__ = ["Engine", "Plan", "Recipe", "Stage", "parse_recipe", "references"]
