"""Search over the division of GPUs: what it proposes takes the hours that it says, fits, and leaves little idle."""

import pytest
import yaml

from layersweep.cli import main
from layersweep.orchestrator.planning import split_search
from layersweep.orchestrator.planning.cluster_forecast import plan_on
from layersweep.orchestrator.planning.cluster_shape import parse_cluster
from layersweep.orchestrator.planning.split_search import fastest_split
from tests.orchestrator.planning.test_cluster_forecast import FOLDER, preset

ONE_AND_EIGHT = "qwen3-1.7b-numinamath-grpo-8gpu"


def forecast(name: str, cluster: str, **sections):
    return plan_on(preset(name, **sections), parse_cluster(cluster))


def test_engines_on_every_gpu_leave_none_idle():
    """The hours are the work of all GPUs, as the forecast counts it, over eight: nothing waits for anything else.
    Four engines on GPUs of their own are busy for a quarter longer."""
    found = forecast(ONE_AND_EIGHT, "8xH200")
    split = fastest_split(found)
    resources = split.changes["resources"]
    assert (resources["engines"], resources["engine"]["gpus"]) == (8, 0.55)
    work = min(split.forecast.mixed, split.forecast.swapped, key=lambda cost: cost.total)
    assert split.forecast.schedule.hours == pytest.approx(work.total / 8, rel=0.01)
    assert found.schedule.hours > 1.2 * split.forecast.schedule.hours


def test_what_is_proposed_is_what_a_spec_with_it_is_forecast_to_take():
    """And then nothing else is proposed."""
    split = fastest_split(forecast(ONE_AND_EIGHT, "8xH200"))
    then = forecast(ONE_AND_EIGHT, "8xH200", **split.changes)
    assert then.schedule == split.forecast.schedule
    assert fastest_split(then) is None
    assert then.schedule == forecast(f"{ONE_AND_EIGHT}-colocated", "8xH200").schedule


@pytest.mark.parametrize(
    ("name", "cluster"),
    [(ONE_AND_EIGHT, "8xL40S"), (ONE_AND_EIGHT, "8xA100-80GB"), (ONE_AND_EIGHT, "2x8xH100"),
     ("qwen3-4b-numinamath-grpo", "8xA100-80GB"), ("qwen3-4b-numinamath-grpo", "2x8xH100")],
)  # fmt: skip
def test_what_is_proposed_fits(name, cluster):
    found = forecast(name, cluster)
    if split := fastest_split(found):
        assert split.forecast.schedule.hours < 0.97 * found.schedule.hours
        assert all(memory.total <= found.cluster.gpu.memory for memory in split.forecast.memory)


def test_of_numbers_of_engines_the_least_hours_win():
    """By hand over all of them, two trainers to a GPU: the 8B preset's three engines."""
    hours = {}
    for engines in range(1, 4):
        resources = {"engines": engines, "trainer": {"cpus": 1, "gpus": 0.47}, "concurrent_runs": None}
        hours[engines] = forecast("qwen3-8b-numinamath-grpo", "8xH200", resources=resources).schedule.hours
    assert min(hours, key=hours.get) == 3
    worse = forecast("qwen3-8b-numinamath-grpo", "8xH200", resources={"engines": 2})
    split = fastest_split(worse)
    assert split.changes["resources"]["engines"] == 3
    assert split.forecast.schedule.hours == pytest.approx(hours[3])


def test_what_is_proposed_of_a_sweep_that_sleeps_is_a_valid_spec():
    """Engines on GPUs of their own have nothing to sleep for, and such a spec is refused."""
    resources = {"engines": 1, "engine": {"cpus": 2, "gpus": 0.55}, "trainer": {"cpus": 1, "gpus": 0.4}}
    name = "qwen3-8b-numinamath-grpo"
    found = forecast(name, "8xH200", resources=resources, rollout={"sleep": True, "gpu_memory_utilization": 0.4})
    changes = fastest_split(found).changes
    assert changes["resources"]["engine"]["gpus"] == 1 and changes["rollout"]["sleep"] is False
    then = forecast(name, "8xH200", resources=resources | changes["resources"],
                    rollout={"sleep": True, "gpu_memory_utilization": 0.4} | changes["rollout"])  # fmt: skip
    assert then.schedule == fastest_split(found).forecast.schedule


def test_engines_that_span_gpus_share_none():
    """Of 2 GPUs each, on eight: one to three of them."""
    plan = preset(ONE_AND_EIGHT, rollout={"tensor_parallel_size": 2}, resources={"engines": 2, "engine": {"gpus": 2}})
    engines = {
        (changes["resources"]["engines"], changes["resources"]["engine"]["gpus"])
        for alternatives in split_search._candidates(plan, parse_cluster("8xH200"))
        for changes in alternatives
    }
    assert engines == {(1, 2.0), (2, 2.0), (3, 2.0)}


@pytest.mark.parametrize(("field", "value"), [("staleness", 1), ("cuda_graphs", True)])
def test_phases_are_proposed_where_nothing_forbids_them(field, value):
    """As the last way to have engine and trainers on one GPU, when both do not fit into its memory."""

    def last(**rollout):
        *_, alternatives = split_search._candidates(preset(ONE_AND_EIGHT, rollout=rollout), parse_cluster("8xH200"))
        return alternatives[-1]["rollout"]

    assert last() == {"gpu_memory_utilization": 0.85, "sleep": True}
    assert last(**{field: value}) == {"gpu_memory_utilization": 0.3}


def test_the_command_prints_sections_to_paste(capsys):
    assert main(["plan", str(FOLDER / f"{ONE_AND_EIGHT}.yaml"), "--cluster", "8xH200"]) == 0
    shown = capsys.readouterr().out
    assert "another split  at least" in shown and "and here the GPUs of engines" in shown
    sections = yaml.safe_load("\n".join(line for line in shown.splitlines() if line.startswith(" " * 27)))
    split = fastest_split(forecast(ONE_AND_EIGHT, "8xH200"))
    assert sections == split.changes
    assert main(["plan", str(FOLDER / f"{ONE_AND_EIGHT}-colocated.yaml"), "--cluster", "8xH200"]) == 0
    assert "another split  none that fits takes fewer hours" in capsys.readouterr().out
