"""Arguments of vLLM's engine that follow from the spec."""

import pytest
import torch

from layersweep.rollout.config import RolloutConfig
from layersweep.rollout.engine.arguments import engine_args
from tests.helpers.model_folders import make


@pytest.mark.parametrize(
    ("settings", "sequences"),
    [({}, 64), ({"max_num_seqs": 8}, 8), ({"max_model_len": 128}, 128), ({"max_num_batched_tokens": 8192}, 1024)],
)
def test_no_more_sequences_than_tokens_in_a_pass(tmp_path, settings, sequences):
    """vLLM refuses more (SchedulerConfig.verify_max_model_len), which 64 tokens a pass and 1,024 sequences would be."""
    folder = make(tmp_path / "model")
    config = RolloutConfig(**{"max_num_batched_tokens": 64, "max_model_len": 64} | settings)
    found = engine_args(str(folder), "Qwen3ForCausalLM", config, "float32", 0)
    assert found.max_num_seqs == sequences
    assert found.create_engine_config().scheduler_config.max_num_seqs == sequences


def test_the_cache_is_in_fp8_where_the_machine_has_it(tmp_path, monkeypatch):
    """Else the engine says so before vLLM is made."""
    folder, config = make(tmp_path / "model"), RolloutConfig(kv_cache_dtype="fp8")
    monkeypatch.setattr(torch.cpu, "_is_avx512_supported", lambda: True)
    assert engine_args(str(folder), "Qwen3ForCausalLM", config, "bfloat16", 0).kv_cache_dtype == "fp8"
    assert engine_args(str(folder), "Qwen3ForCausalLM", RolloutConfig(), "bfloat16", 0).kv_cache_dtype == "auto"
    monkeypatch.setattr(torch.cpu, "_is_avx512_supported", lambda: False)
    with pytest.raises(ValueError, match=r"^rollout.kv_cache_dtype: fp8 needs AVX-512 on a CPU"):
        engine_args(str(folder), "Qwen3ForCausalLM", config, "bfloat16", 0)
