"""What every configuration of a model checks about its sizes."""

from typing import Any


def check_sizes(config: Any, *names: str) -> None:
    """Raise a ValueError unless each of these fields is an int of at least 1."""
    for name in names:
        value = getattr(config, name)
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"{name}={value!r}, expected an int of at least 1")


def check_multiple(config: Any, whole: str, part: str) -> None:
    """Raise a ValueError unless the field `whole` is a multiple of the field `part`."""
    large, small = getattr(config, whole), getattr(config, part)
    if large % small:
        raise ValueError(f"{whole}={large} is not a multiple of {part}={small}, expected one that is")
