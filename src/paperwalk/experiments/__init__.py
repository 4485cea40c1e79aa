"""Experiments too long for a chapter: each file runs one and stores its numbers in the .json beside it."""
