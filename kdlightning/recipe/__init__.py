"""Recipes: named stages, each an ordinary command in its own process, with products that later stages refer to.

A finished stage is skipped while its settings and the products that it reads are unchanged; a stage that was killed
goes on from its last checkpoint.
"""

from kdlightning.recipe.engine import Engine, Plan
from kdlightning.recipe.stages import Recipe, Stage, parse_recipe, references

__all__ = ["Engine", "Plan", "Recipe", "Stage", "parse_recipe", "references"]
