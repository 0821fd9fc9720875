"""For tools that ask for this file; what it once held is in pyproject.toml."""

from setuptools import setup

setup()
