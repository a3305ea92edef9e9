"""Memory, hours and network of a plan on a cluster, worked out by hand for a toy model on a toy GPU."""

from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from layersweep.cli import DEMO, main
from layersweep.orchestrator.planning.checks import make_plan
from layersweep.orchestrator.planning.cluster_forecast import plan_on
from layersweep.orchestrator.planning.cluster_shape import GPUS, ClusterShape, GpuKind, parse_cluster
from layersweep.orchestrator.planning.cost_model import Assumptions, update_bytes
from layersweep.orchestrator.planning.gpu_memory import CONTEXT, memory_problems, whole_model_trainer_bytes
from layersweep.orchestrator.planning.plan import Plan, Run
from layersweep.orchestrator.spec.errors import SpecError
from layersweep.orchestrator.spec.load import load_spec, parse_spec
from layersweep.policies.model.architecture import Architecture
from layersweep.policies.selection import Selection
from layersweep.rollout.engine.memory import GRAPH, pass_bytes

FOLDER = Path(DEMO).parent
# 1020 parameters a layer, 2 * 1020 + 50 * 10 + 10 = 2550 in all: 4080 and 10,200 bytes in float32.
SHAPE = Architecture(
    name="Qwen2ForCausalLM", layers=2, hidden=10, intermediate=20, heads=1, kv_heads=1, head_dim=10, vocabulary=50,
    tied=True, qkv_bias=False, qk_norm=False, max_positions=64,
)  # fmt: skip
# A pass of 8,192 rows: twice 2 * 10 + 3 * 20 numbers each; 1,024 rows of 50 logits, four numbers each.
PASS = 4 * (8192 * 2 * 80 + 1024 * 50 * 4)
GPU = GpuKind("toy", {"float32": 1e6, "bfloat16": 1e6}, bandwidth=1e5, memory=2**31)
ALL = Assumptions(response_share=0.5, prompt_tokens=4, arithmetic=1.0, bandwidth=1.0)


def toy(**resources) -> Plan:
    """Full, layer 0 and layer 1; 2 steps of 4 prompts x 2 responses of at most 4 tokens, two optimizer steps each;
    one suite of 8 prompts x 4."""
    spec = yaml.safe_load(Path(DEMO).read_text()) | {"seeds": [0]}
    spec["training"] |= {
        "steps": 2, "prompts_per_step": 4, "group_size": 2, "minibatches": 2, "max_response_tokens": 4,
        "warmup_steps": 1,
    }  # fmt: skip
    spec["evaluation"]["suites"] = [{"name": "one", "prompts": 8, "samples": 4}]
    spec["rollout"] = {"batching": "swap", "gpu_memory_utilization": 0.5}
    spec["resources"] = {"engine": {"gpus": 1}, "trainer": {"gpus": 0.45}, "full_trainer": {"gpus": 1}} | resources
    runs = tuple(Run(selection, 0) for selection in (Selection.full(), Selection.layer(0), Selection.layer(1)))
    return Plan(parse_spec(spec), SHAPE, runs)


def test_shapes():
    assert parse_cluster("8xH200") == ClusterShape(1, 8, GPUS["H200"])
    assert parse_cluster("4x8xh100").gpus == 32 and parse_cluster("4x8xh100").node_gpus == (8, 8, 8, 8)
    assert parse_cluster("2xA100-40GB").gpu.bandwidth == 1555e9


@pytest.mark.parametrize("text", ["8", "H200", "0xH200", "2x00xH200", "1x2x3xH200", "-1xH200", "8xH200 ", "8xV100"])
def test_what_is_no_cluster(text):
    with pytest.raises(SpecError, match="^--cluster: "):
        parse_cluster(text)


@pytest.mark.parametrize(
    ("kind", "gigabytes"),
    [("H200", 141), ("H100", 80), ("A100-80GB", 80), ("A100-40GB", 40), ("L40S", 48), ("L4", 24)],
)  # fmt: skip
def test_memory_is_the_products_with_binary_prefixes_or_a_little_less(kind, gigabytes):
    assert gigabytes * 1e9 < GPUS[kind].memory <= gigabytes * 2**30


def test_memory_of_every_gpu():
    """Engine and full on the first node; two shared GPUs of two layer trainers on the second."""
    found = plan_on(toy(), ClusterShape(2, 2, GPU), ALL)
    engine, whole, layers = found.memory
    assert list(found.memory.values()) == [1, 1, 2]
    assert (engine.actors, whole.actors, layers.actors) == ("1 engine", "1 whole-model trainer", "2 layer trainers")
    # The engine takes half of the GPU; on top the overlays of full and of two layers, and a block that is received.
    assert (engine.weights, engine.cache) == (10_200, 2**30 - 10_200 - PASS - CONTEXT)
    assert engine.overlays == 10_200 + 2 * 4080
    assert (engine.passes, engine.total) == (PASS + 2 * 4080, 2**30 + 18_360 + 2 * 4080)
    # A trainer: weights, gradient and two moments of what trains, 16 bytes a parameter, and the frozen base.
    assert (whole.trunk, whole.trainers, whole.contexts) == (10_200, 16 * 2550, CONTEXT)
    assert whole.activations == update_bytes(found.plan, Selection.full())
    # Two of them, around one base; its host is a process too.
    assert (layers.trunk, layers.trainers, layers.contexts) == (10_200, 2 * 16 * 1020, 3 * CONTEXT)
    assert layers.activations == 2 * update_bytes(found.plan, Selection.layer(0))


def test_static_slots_of_runs_that_ended_count_too():
    """Two seeds of two layers, one run at a time: of each layer one place, and with three at a time two, as there are
    seeds. Eleven graphs for 40 sequences."""
    for at_once, places in ((1, 1), (3, 2)):
        plan = toy(concurrent_runs=at_once)
        rollout = plan.spec.rollout.model_copy(update={"cuda_graphs": True, "max_num_seqs": 40})
        runs = tuple(Run(Selection.layer(k), seed) for k in (0, 1) for seed in (0, 1))
        plan = replace(plan, spec=plan.spec.model_copy(update={"rollout": rollout}), runs=runs)
        engine = next(gpu for gpu in plan_on(plan, ClusterShape(2, 2, GPU), ALL).memory if "engine" in gpu.actors)
        assert engine.overlays == 2 * places * 4080
        without = rollout.model_copy(update={"cuda_graphs": False})
        assert pass_bytes(SHAPE, rollout, 4) - pass_bytes(SHAPE, without, 4) == 11 * GRAPH


def test_memory_of_a_gpu_whose_engine_sleeps():
    """Its cache or the activations, whichever takes more, on top of what stays; the engine may so have more of it."""
    plan = toy(engine={"gpus": 0.3}, trainer={"gpus": 0.25}, full_trainer={"gpus": 0.3})
    asleep = replace(plan, spec=plan.spec.model_copy(
        update={"rollout": plan.spec.rollout.model_copy(update={"sleep": True})}
    ))  # fmt: skip
    large = ClusterShape(1, 1, replace(GPU, memory=2**33))
    (awake,), (gpu,) = (plan_on(p, large, ALL).memory for p in (plan, asleep))
    kept = gpu.overlays + gpu.trunk + gpu.trainers + gpu.contexts
    assert gpu.kept == awake.kept == kept
    taken = 2**32 - CONTEXT + 2 * 4080
    assert awake.total == kept + taken + awake.activations
    assert 0 < gpu.activations < 2**32
    assert gpu.total == gpu.certain == kept + taken
    assert replace(gpu, activations=2**33).total == kept + 2**33


def test_network_of_a_step():
    """Layer trainers sit on the node without the engine; a run's 4 * 2 responses have 2 tokens of 8 bytes each."""
    layers, whole = plan_on(toy(), ClusterShape(2, 2, GPU), ALL).network
    assert (layers.runs, layers.pushed, layers.between_nodes, layers.experience) == ("2 layer runs", 8160, 8160, 256)
    assert (whole.runs, whole.pushed, whole.between_nodes, whole.experience) == ("1 whole-model run", 10_200, 0, 128)
    assert (layers.gradients, whole.gradients) == (0, 0)


def test_gradients_between_ranks():
    """Of a ring of three ranks each sends 2 * 2/3 of the gradient, in both optimizer steps of a step."""
    _, whole = plan_on(toy(full_trainer_ranks=3), ClusterShape(1, 6, GPU), ALL).network
    assert whole.gradients == pytest.approx(2 * 3 * (2 * 2 / 3) * 10_200)


# Seconds, with the passes of test_estimate: 0.1656 for 8 at a time, 0.3576 for 32; 4 * 0.00524 to read a prompt.
ROLLOUT = 8 * 0.1656 + 16 * 4 * 0.00524  # 8 responses for all at first, then 8 for each of three: 32, two tokens each
SCORING = 8 * 0.3576 + 32 * 4 * 0.00524  # base and three runs: 128
UPDATES = {"full": 64 * 16_040 / 1e6, "layer-00": 64 * 13_000 / 1e6, "layer-01": 64 * 10_760 / 1e6}
ALONE = 4 * 0.1656 + 8 * 4 * 0.00524 + SCORING / 4  # one run's own 16 responses and scoring


def test_hours_are_bound_by_the_busiest():
    schedule = plan_on(toy(), ClusterShape(2, 2, GPU), ALL).schedule
    assert (schedule.layer_runs, schedule.layer_waves, schedule.whole_waves) == (2, 1, 1)
    assert (schedule.bound_by, schedule.hours * 3600) == ("the GPUs of engines", pytest.approx(ROLLOUT + SCORING))


def test_with_more_engines_a_runs_own_steps_are_the_bound():
    schedule = plan_on(toy(engines=4), ClusterShape(1, 7, GPU), ALL).schedule
    assert schedule.bound_by == "whole-model runs, each step after the other"
    assert schedule.hours * 3600 == pytest.approx(ALONE + UPDATES["full"])


def test_runs_that_take_turns_add_up():
    schedule = plan_on(toy(trainer={"gpus": 1}), ClusterShape(1, 2, GPU), ALL).schedule
    assert schedule.bound_by == "whole-model and layer runs that take turns"
    assert schedule.hours * 3600 == pytest.approx(3 * ALONE + sum(UPDATES.values()))


def test_engine_and_trainers_on_one_gpu_add_up():
    colocated = toy(engine={"gpus": 0.2}, full_trainer={"gpus": 0.2}, trainer={"gpus": 0.25})
    found = plan_on(colocated, ClusterShape(1, 1, GpuKind("large", GPU.flops, GPU.bandwidth, 2**40)), ALL)
    assert found.schedule.bound_by == "the GPUs of engines and layer trainers and whole-model trainers"
    assert found.schedule.hours * 3600 == pytest.approx(ROLLOUT + SCORING + sum(UPDATES.values()))
    assert [memory.actors for memory in found.memory] == ["1 engine, 1 whole-model trainer, 2 layer trainers"]


@pytest.mark.parametrize(
    ("stage", "ranks", "offload", "per_parameter"),
    # As the ZeRO paper (arXiv 1910.02054, figure 1), which has gradients in two bytes: 2 + 4 + 12 bytes, of which
    # optimizer, gradients, weights are split.
    [(0, 4, "none", 18), (1, 4, "none", 6 + 12 / 4), (2, 4, "none", 2 + 16 / 4), (3, 4, "none", 18 / 4),
     (3, 4, "cpu", 6 / 4), (3, 1, "none", 18)],
)  # fmt: skip
def test_zero_splits_what_a_whole_model_trainer_holds(stage, ranks, offload, per_parameter):
    plan = preset("qwen3-8b-numinamath-grpo", deepspeed={"full_zero_stage": stage, "offload_optimizer": offload},
                  resources={"full_trainer_ranks": ranks})  # fmt: skip
    assert whole_model_trainer_bytes(plan) == pytest.approx(per_parameter * 8_190_735_360)


# -- refused --------------------------------------------------------------------------------------------------------


def preset(name: str, **sections) -> Plan:
    spec = load_spec(FOLDER / f"{name}.yaml").model_dump(mode="json")
    return make_plan(parse_spec(spec | {k: spec[k] | v for k, v in sections.items()}), fetch=False)


@pytest.mark.parametrize(
    ("name", "sections", "cluster", "problem"),
    [
        # 0.9 of 140.4 GiB, the overlay of full (15.3), and the embedding (1.2) while it is received; the two layers
        # that train beside it are the other engines'.
        ("qwen3-8b-numinamath-grpo", {"rollout": {"gpu_memory_utilization": 0.9}}, "8xH200",
         "rollout.gpu_memory_utilization: 1 engine on one NVIDIA H200: 142.8 GiB"),
        # Weights 15.3, overlays 16 and context 0.5 GiB fit into an L40S's 45.0, beside 0.8 of these they do not ...
        ("qwen3-8b-numinamath-grpo", {}, "8xL40S", "rollout.gpu_memory_utilization: 1 engine on one NVIDIA L40S"),
        # ... and more than an L4's 22.5.
        ("qwen3-8b-numinamath-grpo", {"rollout": {"gpu_memory_utilization": 0.9}}, "8xL4", "model: 1 engine on one"),
        # 8.19e9 * 18 / 4 are 34.3 GiB, and the frozen base.
        ("qwen3-8b-numinamath-grpo", {}, "8xA100-40GB",
         "resources.full_trainer_ranks: 1 whole-model trainer on one NVIDIA A100 40GB: 50.1 GiB"),
        ("qwen3-1.7b-numinamath-grpo", {"rollout": {"gpu_memory_utilization": 0.1}}, "8xL4",
         "rollout.gpu_memory_utilization: leaves 0.0 GiB of an NVIDIA L4 for the KV cache, and one sequence"),
        # 28 layers * 8 heads * 128 * 2 * 2 bytes are 112 KiB a token.
        ("qwen3-1.7b-numinamath-grpo", {"rollout": {"kv_cache_memory_mib": 512}}, "8xL4",
         "rollout.kv_cache_memory_mib: leaves 0.5 GiB of an NVIDIA L4 for the KV cache, and one sequence of "
         "rollout.max_model_len 6144 takes 0.7 GiB"),
    ],
)  # fmt: skip
def test_what_does_not_fit_into_memory(name, sections, cluster, problem):
    with pytest.raises(SpecError) as refused:
        plan_on(preset(name, **sections), parse_cluster(cluster))
    assert any(found.startswith(problem) for found in refused.value.problems), refused.value.problems


def test_activations_alone_refuse_nothing():
    """They are an estimate at its most: a plan over the edge by them is shown, not refused. Without activation
    checkpointing those of micro batches of 6,144 tokens would not fit; by default they are checkpointed, and do."""
    for checkpointing, over in (("off", True), ("auto", False)):
        training = {"checkpointing": checkpointing, "micro_batch_tokens": 6144}
        plan = preset("qwen3-1.7b-numinamath-grpo-8gpu", training=training)
        found = plan_on(plan, parse_cluster("8xA100-40GB"))
        assert any(gpu.certain < found.cluster.gpu.memory < gpu.total for gpu in found.memory) is over
        assert memory_problems(found.plan, found.memory, found.cluster.gpu) == []


def test_the_command(capsys):
    spec = str(FOLDER / "qwen3-1.7b-numinamath-grpo.yaml")
    assert main(["plan", spec, "--cluster", "8xH200"]) == 0
    shown = capsys.readouterr().out
    assert "1 node of 8 NVIDIA H200" in shown and "layer runs in waves of 6: 5" in shown and "at least" in shown
    assert "of one NVIDIA H200" not in shown  # the hours of another cluster than the one asked about
    assert main(["plan", spec, "--cluster", "1xH200"]) == 2
    refused = capsys.readouterr()
    assert refused.out == "" and refused.err.startswith("layersweep: resources.trainer: ")
