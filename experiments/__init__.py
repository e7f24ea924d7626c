"""Recipes: named, reproducible experiments, each with its claim, its source and its check."""

from . import keskar
from .recipe import Recipe

RECIPES: dict[str, Recipe] = {"keskar": keskar.RECIPE}
