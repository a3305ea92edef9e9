"""What `deploy/` and the READMEs say is so: schemas, commands, files, room for the sweeps that they start, metrics.

No image is built and nothing is applied to a cluster here: that was never done.
"""

import ast
import json
import re
import shlex
import subprocess
import tomllib
from pathlib import Path

import jsonschema
import pytest
import yaml

from layersweep.arguments import make_parser
from layersweep.orchestrator.planning.checks import make_plan
from layersweep.orchestrator.planning.placement import placement_problems
from layersweep.orchestrator.spec.load import load_spec

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CRDS = yaml.safe_load((ROOT / "tests/data/kuberay-crds.yaml").read_text())
KUBERAY = {path.stem: yaml.safe_load(path.read_text()) for path in sorted((DEPLOY / "kuberay").glob("*.yaml"))}
RAY_KINDS = [name for name, manifest in KUBERAY.items() if manifest["kind"] in CRDS]
CLUSTERS = {path.stem: yaml.safe_load(path.read_text()) for path in sorted((DEPLOY / "clusters").glob("*.yaml"))}
SCRIPT = DEPLOY / "slurm" / "sweep.sbatch"
TEXTS = [
    ROOT / "README.md",
    *(path for path in sorted(DEPLOY.rglob("*")) if path.suffix in (".md", ".sbatch", ".cpu", ".gpu"))
] + sorted(DEPLOY.glob("[!s]*/*.yaml"))  # fmt: skip
PINNED = dict(line.split("==") for line in PROJECT["dependencies"] + PROJECT["optional-dependencies"]["gpu"]
              if "==" in line)  # fmt: skip


# -- schemas --------------------------------------------------------------------------------------------------------


def strict(schema):
    """The schema, refusing fields that it does not know, as the API server does under strict validation."""
    if isinstance(schema, list):
        return [strict(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    inner = {key: strict(value) for key, value in schema.items()}
    closed = isinstance(schema.get("properties"), dict) and "additionalProperties" not in schema
    return inner | ({"additionalProperties": False} if closed else {})


def check(manifest) -> None:
    schema = strict(CRDS[manifest["kind"]]) | {"$defs": strict(CRDS["$defs"])}
    jsonschema.validate(manifest, schema)


@pytest.mark.parametrize("name", RAY_KINDS)
def test_manifests_are_valid(name):
    check(KUBERAY[name])


@pytest.mark.parametrize(
    ("path", "field", "value"),
    [
        ("spec", "enableInTreeAutoscalling", True),
        ("spec.autoscalerOptions", "version", "v3"),
        ("spec.workerGroupSpecs.0", "minReplica", 1),
        ("spec.workerGroupSpecs.1.template.spec.containers.0", "volumeMount", []),
        ("spec.headGroupSpec.template.spec.containers.0.resources.limits", "memory", "32 gigabytes"),
    ],
)
def test_the_schema_refuses_mistakes(path, field, value):
    manifest = json.loads(json.dumps(KUBERAY["raycluster"]))
    place = manifest
    for part in path.split("."):
        place = place[int(part) if part.isdigit() else part]
    place[field] = value
    with pytest.raises(jsonschema.ValidationError):
        check(manifest)


@pytest.mark.parametrize("name", CLUSTERS)
def test_cluster_files_are_valid_for_ray(name):
    """Ray's schema, and its checks of the head's type and of the number of workers."""
    from ray.autoscaler._private.util import validate_config

    validate_config(CLUSTERS[name] | {"cluster_synced_files": []})
    for source in CLUSTERS[name]["file_mounts"].values():
        assert source.startswith("~") or (ROOT / source).exists()


def test_the_batch_script_parses():
    assert SCRIPT.read_text().startswith("#!/bin/bash\n")
    subprocess.run(["bash", "-n", SCRIPT], check=True)


# -- commands, files, versions --------------------------------------------------------------------------------------


def commands(text: str) -> list[list[str]]:
    """Arguments of every `layersweep ...` line, and of every `sweep.sbatch ...`; a synopsis without its options."""
    found = []
    for line in text.splitlines():
        if match := re.match(r"\s*(?:[#-] )?(?:entrypoint: )?(?:\S*/)?layersweep ([a-z]+\b.*)", line):
            found.append(match[1])
        elif match := re.search(r"sbatch .*sweep\.sbatch (.+)", line):
            found.append(f"{match[1]} --address host:6379")
    return [shlex.split(re.sub(r"\[[^]]*\]", "", line), comments=True) for line in found]


def test_commands_are_found():
    text = "  entrypoint: layersweep run a.yaml --address auto\n\n    layersweep compare A B [C ...]   # agree?\n"
    assert commands(text) == [["run", "a.yaml", "--address", "auto"], ["compare", "A", "B"]]
    assert commands("\t.venv/bin/layersweep run x --fresh\n`layersweep schema` prints\n") == [["run", "x", "--fresh"]]
    assert commands("#   sbatch -N 2 a/sweep.sbatch resume x.yaml") == [["resume", "x.yaml", "--address", "host:6379"]]


@pytest.mark.parametrize("path", [*TEXTS, ROOT / "Makefile"], ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_parse(path):
    for arguments in commands(path.read_text()):
        make_parser().parse_args(arguments)


def test_every_way_has_its_commands():
    assert {arguments[0] for arguments in commands((DEPLOY / "README.md").read_text())} >= {
        "plan", "run", "resume", "submit", "status", "pull", "report", "compare",
    }  # fmt: skip
    assert all(commands((DEPLOY / "kuberay" / f"{name}.yaml").read_text()) for name in ("rayjob", "rayjob-demo"))


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_that_are_named_exist(path):
    for name in re.findall(r"(?<![\w/.-])(?:deploy|orchestrator|tests)/[\w./-]*\w", path.read_text()):
        assert (ROOT / name).exists(), name


def test_images_are_those_of_the_dockerfiles():
    for path in TEXTS:
        for version, kind in re.findall(r"registry\.example\.com/layersweep:([\d.]+)-(\w+)", path.read_text()):
            assert version == PROJECT["version"] and (DEPLOY / "docker" / f"Dockerfile.{kind}").is_file(), path


@pytest.mark.parametrize("kind", ["cpu", "gpu"])
def test_dockerfiles_copy_what_is_there(kind):
    lines = re.findall(r"^COPY (.+)$", (DEPLOY / "docker" / f"Dockerfile.{kind}").read_text(), re.MULTILINE)
    copied = {source for line in lines for source in line.split()[:-1]}
    assert all((ROOT / source).exists() for source in copied)
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")} - {"tests"}
    assert copied >= packages | {"pyproject.toml"}


def test_versions_are_the_pinned_ones():
    gpu = (DEPLOY / "docker/Dockerfile.gpu").read_text()
    assert f"FROM vllm/vllm-openai:v{PINNED['vllm']}\n" in gpu
    assert f"'ray[default]=={PINNED['ray[default]']}'" in (DEPLOY / "README.md").read_text()
    for name in RAY_KINDS:
        assert cluster_of(KUBERAY[name])["rayVersion"] == PINNED["ray[default]"]


# -- room for the sweeps that they start ----------------------------------------------------------------------------


def cluster_of(manifest) -> dict:
    return manifest["spec"].get("rayClusterSpec", manifest["spec"])


def nodes_of(manifest) -> list[dict[str, float]]:
    """What each pod that is there from the start offers to actors."""
    cluster, nodes = cluster_of(manifest), []
    groups = [(cluster["headGroupSpec"], 1)] + [(g, g["minReplicas"]) for g in cluster.get("workerGroupSpecs", [])]
    for group, count in groups:
        limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
        cpus = group.get("rayStartParams", {}).get("num-cpus", limits["cpu"])
        nodes += [{"CPU": float(cpus), "GPU": float(limits.get("nvidia.com/gpu", 0))}] * count
    return nodes


def problems(spec: str, nodes: list[dict[str, float]]) -> list[str]:
    return placement_problems(make_plan(load_spec(ROOT / spec), fetch=False), nodes)


GPU_SWEEP = "deploy/sweeps/qwen3-1.7b-numinamath-grpo-8gpu.yaml"


@pytest.mark.parametrize("name", ["rayjob", "rayjob-demo"])
def test_a_job_has_room_for_its_sweep(name):
    _, spec, *_ = shlex.split(KUBERAY[name]["spec"]["entrypoint"])[1:]
    assert problems(spec, nodes_of(KUBERAY[name])) == []


def test_clusters_that_stay_have_room_for_the_sweep_of_the_readme():
    assert f"layersweep submit {GPU_SWEEP} " in (DEPLOY / "README.md").read_text()
    assert problems(GPU_SWEEP, nodes_of(KUBERAY["raycluster"])) == []
    for config in CLUSTERS.values():
        types = config["available_node_types"]
        counts = {name: kind.get("min_workers", 0) for name, kind in types.items()} | {config["head_node_type"]: 1}
        nodes = [
            {unit: kind["resources"].get(unit, 0) for unit in ("CPU", "GPU")}
            for name, kind in types.items()
            for _ in range(counts[name])
        ]
        assert problems(GPU_SWEEP, nodes) == []


def test_the_batch_job_has_room_for_its_sweep():
    asked = dict(re.findall(r"^#SBATCH --([a-z-]+)=(\S+)$", SCRIPT.read_text(), re.MULTILINE))
    node = {"CPU": float(asked["cpus-per-task"]), "GPU": float(asked["gpus-per-node"])}
    assert problems(GPU_SWEEP, [node] * int(asked["nodes"])) == []


@pytest.mark.parametrize("name", RAY_KINDS)
def test_pods_see_the_volume_where_sweeps_write(name):
    """Ray starts in the image's WORKDIR, so a spec's `output: runs` is below it on every node."""
    dockerfiles = [(DEPLOY / "docker" / f"Dockerfile.{kind}").read_text() for kind in ("cpu", "gpu")]
    (folder,) = {re.search(r"^WORKDIR (\S+)$", text, re.MULTILINE)[1] for text in dockerfiles}
    cluster = cluster_of(KUBERAY[name])
    for group in (cluster["headGroupSpec"], *cluster.get("workerGroupSpecs", [])):
        pod = group["template"]["spec"]
        claims = {volume["name"]: volume["persistentVolumeClaim"]["claimName"] for volume in pod["volumes"]}
        mounted = {mount["mountPath"]: claims[mount["name"]] for mount in pod["containers"][0]["volumeMounts"]}
        output = load_spec(ROOT / GPU_SWEEP).output
        assert mounted[f"{folder}/{output}"] == KUBERAY["storage"]["metadata"]["name"]


# -- metrics --------------------------------------------------------------------------------------------------------


def exported() -> set[str]:
    """Metrics of the collector and the engines under the names by which Prometheus sees them."""
    trees = [
        ast.parse((ROOT / "workers" / path).read_text())
        for path in ("trackers/prometheus.py", "actors/engine_metrics.py")
    ]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    calls = [node for node in nodes if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)]
    metrics = {(call.func.id, call.args[0].value) for call in calls if call.func.id in ("Gauge", "Counter")}
    return {f"ray_{name}" + ("_total" if kind == "Counter" else "") for kind, name in metrics}


def test_the_dashboard_shows_every_metric_and_no_other():
    board = json.loads((DEPLOY / "grafana.json").read_text())
    queries = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    queries += [variable["query"]["query"] for variable in board["templating"]["list"] if variable["type"] == "query"]
    shown = set(re.findall(r"\bray_\w+", " ".join(queries)))
    assert {name for name in shown if name.startswith("ray_layersweep_")} == exported()
    import ray.dashboard.modules.metrics.dashboards.default_dashboard_panels as panels_of_ray

    assert all(name in Path(panels_of_ray.__file__).read_text() for name in shown - exported())
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])


def test_metrics_in_the_readme_are_exported():
    assert set(re.findall(r"`(ray_layersweep_\w+)`", (DEPLOY / "README.md").read_text())) <= exported()
