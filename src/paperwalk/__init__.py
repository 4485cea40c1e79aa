"""Paperwalk: executable walkthroughs of deep-learning papers, one module a paper."""

__version__ = "0.1.0"
