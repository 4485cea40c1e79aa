"""Our modules beside the reference implementations, on this machine: `make bench`, or `python -m bench.vit` for one.

Each part writes what it measured into results.json, with the machine, the versions and the commit; `make sync` makes
book/speed.md of it.
"""
