"""The error of a spec that cannot run."""


class SpecError(Exception):
    """A spec that cannot run. `problems` has one line per problem: field path, reason, fix."""

    def __init__(self, problems: list[str]):
        super().__init__("\n".join(problems))
        self.problems = problems
