"""The error of a spec that cannot run."""

import reprlib

REFUSED = 2
"""Exit code of a command that is given what it cannot run, such as a folder that holds a sweep already."""


class SpecError(Exception):
    """A spec that cannot run. `problems` has one line per problem: field path, reason, fix."""

    def __init__(self, problems: list[str]):
        super().__init__("\n".join(problems))
        self.problems = problems


def shorten(value: object) -> str:
    """Return the value as a user would recognise it, at most a line: aliases can make a small file's value huge."""
    shortener = reprlib.Repr()
    shortener.maxlevel, shortener.maxstring, shortener.maxother, shortener.maxlong = 2, 80, 80, 80
    return shortener.repr(value)
