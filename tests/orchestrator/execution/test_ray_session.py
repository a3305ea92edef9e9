"""A Ray of our own that does not come up in time is started again; any other failure is told at once."""

import pytest
import ray

from layersweep.orchestrator.execution.ray_session import start_ray

LATE = "The current node timed out during startup. This could happen because some of the raylet failed to startup"


@pytest.fixture
def starts(monkeypatch):
    """Failures of the next starts, first to last, and what was asked for."""
    failures, asked = [], []

    def init(address, **options):
        asked.append((address, options))
        if failures:
            raise failures.pop(0)

    monkeypatch.setattr(ray, "init", init)
    return failures, asked


def test_a_ray_that_is_late_is_started_again(starts, capsys):
    failures, asked = starts
    failures += [Exception(LATE), Exception(LATE)]
    start_ray("local", num_cpus=1)
    assert asked == [("local", {"num_cpus": 1})] * 3
    assert capsys.readouterr().err == "layersweep: Ray did not come up within 30 s; starting it again\n" * 2


@pytest.mark.parametrize(("failure", "tries"), [(LATE, 3), ("no space left on device", 1)])
def test_three_times_at_most_and_for_nothing_else(starts, failure, tries):
    failures, asked = starts
    failures += [Exception(failure)] * 5
    with pytest.raises(Exception, match=failure[:20]):
        start_ray("local")
    assert len(asked) == tries
