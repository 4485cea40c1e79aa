"""``python -m paperwalk.data [--verify] NAME...``: fetches datasets into the cache, one line a dataset."""

import argparse
import sys
import time

from paperwalk.data import FetchError, cache_file, fetch, names, verify


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line; returns 0, or 1 if a dataset could not be had."""
    parser = argparse.ArgumentParser("python -m paperwalk.data", description="Fetch datasets into the local cache.")
    parser.add_argument("names", nargs="+", metavar="NAME", help=f"one of: {', '.join(names())}")
    parser.add_argument("--verify", action="store_true", help="only check what is in the cache; fetch nothing")
    options = parser.parse_args(arguments)
    status = 0
    for name in options.names:
        start = time.perf_counter()
        try:
            if options.verify:
                verify(name)
            origin = "cache, intact" if options.verify else fetch(name)
        except (FetchError, ValueError, OSError) as error:
            print(f"{name}: {error}", file=sys.stderr)
            status = 1
        else:
            seconds = time.perf_counter() - start
            print(f"{name}: {origin}, {seconds:.1f} s, {cache_file(name).stat().st_size / 1e6:.1f} MB")
    return status


if __name__ == "__main__":
    sys.exit(main())
