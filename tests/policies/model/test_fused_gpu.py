"""Fused modules for GPUs: Liger's kernels, interpreted on a CPU, against transformers' own decoders."""

import json
import logging
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from layersweep.policies.model import trunk
from layersweep.policies.model.architecture import GpuKernels
from layersweep.policies.model.families import FAMILIES
from layersweep.policies.model.fused import MLPS
from tests.helpers.small_decoder import small


@pytest.fixture(scope="module")
def found():
    done = subprocess.run([sys.executable, "-m", "tests.helpers.liger_on_cpu"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1]) | {"log": done.stderr}


@pytest.mark.parametrize(
    ("family", "norms", "attentions"), [("Qwen3", 9, 2), ("Qwen2", 5, 2), ("Llama", 5, 2), ("Olmo2", 9, 0)]
)
def test_a_fused_decoder_is_transformers_own(found, family, norms, attentions):
    """Logits and the gradients of every weight; two blocks, whose MLPs are all replaced. Olmo2 has its norms behind
    attention and MLP, so that their gradients are the residual stream's too."""
    of = found["compared"][family]
    assert of["difference"] < 2e-5
    assert [of["LigerRMSNorm"], of["LigerAttention"], of["LigerMLP"]] == [norms, attentions, 2]


def test_right_kernels_are_taken(found):
    right = found["checked"]["None"]
    assert right["used"] and right["fused"]
    assert set(right["found"]) == {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"}
    assert all(max(fused, plain) < 1e-5 for fused, plain in right["found"].values())


@pytest.mark.parametrize(("fault", "module"), [("rotation", "self_attn"), ("norm", "input_layernorm")])
def test_kernels_that_compute_something_else_are_left_aside(found, fault, module):
    wrong = found["checked"][fault]
    fused, plain = wrong["found"][module]
    assert fused > 0.5 and plain < 1e-5 and not wrong["used"] and not wrong["fused"]
    assert max(wrong["found"]["mlp"]) < 1e-5
    assert "so updates are slower: their results are off by {'self_attn': '1.8'} here" in found["log"]


def test_kernels_that_do_not_run_are_left_aside(found):
    """A machine without a compiler still trains."""
    assert not found["checked"]["compiler"]["used"] and not found["checked"]["compiler"]["fused"]
    assert "Liger's kernels do not run here, so updates are slower: RuntimeError: no compiler" in found["log"]


def test_without_liger_a_gpu_takes_transformers_own(monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "liger_kernel.ops", None)
    monkeypatch.delitem(sys.modules, "layersweep.policies.model.fused_gpu", raising=False)
    with caplog.at_level(logging.WARNING):
        assert not trunk._fuse(SimpleNamespace(device=torch.device("cuda")))
    assert "pip install 'layersweep[gpu]'" in caplog.text


def test_a_trunk_on_cpus_has_no_kernels_of_gpus():
    of = trunk.Trunk(small("Qwen3"))
    assert of.fused and of.kernels == GpuKernels()
    assert not trunk.Trunk(small("Qwen3"), computes=False).fused


@pytest.mark.parametrize(
    ("name", "counted"), [("Qwen3", True), ("Olmo2", True), ("Phi3", False), ("Gemma3", False), ("Qwen3Moe", False)]
)
def test_memory_is_counted_as_fused_where_norms_and_mlps_are(name, counted):
    """On a GPU, of a family of which some modules may be fused: as the plan counts it."""
    of = object.__new__(trunk.Trunk)
    of.model = type(f"{name}ForCausalLM", (), {"device": torch.device("cuda")})()
    of.varlen, of.fused = False, True
    assert of.kernels == GpuKernels(fused=counted)
    assert FAMILIES[f"{name}ForCausalLM"].fused_on_gpus is counted


def test_the_plan_expects_them_of_families_whose_modules_are_replaced():
    fused = {name.removesuffix("ForCausalLM") for name, family in FAMILIES.items() if family.fused_on_gpus}
    assert fused == {family for family in MLPS if not FAMILIES[f"{family}ForCausalLM"].experts}
