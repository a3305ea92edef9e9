"""The names that LiveCodeBench and verl put before a program: a model learns to write without importing them.

Their preamble imports everything from these modules, then the modules themselves; here the names sit among Python's
builtins instead, so that a program's globals hold what it defines, and a function under test that it does not define
is missing even where the standard library has one of that name.
"""

import importlib

_MODULES = """
typing string re datetime collections heapq bisect copy math random statistics itertools functools operator io sys json
""".split()
"""Modules in the order of their imports, by which a later name hides an earlier one. `typing`, which they import last,
would hide `Counter` and `OrderedDict` of `collections`."""


def _public(module):
    return getattr(module, "__all__", None) or [name for name in vars(module) if not name.startswith("_")]


_modules = {name: importlib.import_module(name) for name in _MODULES}
NAMES = {name: getattr(module, name) for module in _modules.values() for name in _public(module)} | _modules
"""Name to value."""
