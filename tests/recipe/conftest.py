"""Fixtures of the recipe room."""

from conftest_recipe import load, refused

__all__ = ["load", "refused"]
