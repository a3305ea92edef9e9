"""Stop strings and nucleus sampling in the real engine; what must come out follows from the same responses without."""

import numpy as np
import pytest

from layersweep.rollout.types import Sampling
from layersweep.workers.actors.rollout_worker import cut_at_stop

END = 1


@pytest.fixture(scope="module")
def served(model_folder, tmp_path_factory):
    """An engine over the random model with a tokenizer of one character per token, and that tokenizer."""
    import shutil

    from layersweep.rollout.config import RolloutConfig
    from layersweep.rollout.engine.engine import RolloutEngine
    from layersweep.workers.startup.tiny_model_training import character_tokenizer

    folder = tmp_path_factory.mktemp("with-tokenizer") / "model"
    shutil.copytree(model_folder, folder)
    tokenizer = character_tokenizer("0123456789abcdefghijklmnopqrst")  # and two special tokens: 32
    tokenizer.save_pretrained(folder)
    return RolloutEngine(str(folder), "Qwen3ForCausalLM", RolloutConfig(max_num_seqs=64), "float32", seed=0), tokenizer


def generated(engine, **sampling):
    prompts = [np.array([2, 3, 4], np.int32), np.array([9, 8], np.int32)]
    common = {"samples": 8, "max_tokens": 40, "stop_token_ids": (END,), "logprobs": True}
    return engine.generate(None, 0, prompts, [5, 6], Sampling(**common | sampling)).result()


@pytest.mark.parametrize("length", [1, 2, 3])
def test_a_response_ends_with_the_token_that_completes_a_stop_string(served, length):
    engine, tokenizer = served
    whole = generated(engine)
    texts = [tokenizer.decode(free, skip_special_tokens=True) for free in whole.responses()]
    stop = tuple(sorted({text[5 : 5 + length] for text in texts[::4]} - {""}))  # what does occur
    stopped, ends = generated(engine, stop=stop), 0
    for text, free, cut, finished in zip(texts, whole.responses(), stopped.responses(), stopped.finished, strict=True):
        shown = np.flatnonzero(free > END)  # a character is a token, the two special ones show nothing
        ends_at = min((text.find(string) + len(string) for string in stop if string in text), default=None)
        ends_at = None if ends_at is None else shown[ends_at - 1] + 1
        np.testing.assert_array_equal(cut, free if ends_at is None else free[:ends_at])
        assert finished == (ends_at is not None or free[-1] == END)
        ends += ends_at is not None
    assert ends >= 3  # the case was there at all
    assert len(stopped.logprobs) == len(stopped.tokens)
    starts = np.cumsum(whole.lengths) - whole.lengths
    kept = np.concatenate([np.arange(s, s + n) for s, n in zip(starts, stopped.lengths, strict=True)])
    np.testing.assert_allclose(stopped.logprobs, whole.logprobs[kept], atol=1e-5)


def test_sampling_among_the_likeliest_token_alone_is_greedy(served):
    engine, _ = served
    greedy = generated(engine, temperature=0.0, samples=1).responses()
    for only_one in ({"top_k": 1}, {"top_p": 1e-6}, {"min_p": 1.0}):
        for i, response in enumerate(generated(engine, **only_one).responses()):
            np.testing.assert_array_equal(response, greedy[i // 8])
    assert any(len(free) != len(greedy[0]) or (free != greedy[0]).any() for free in generated(engine).responses()[:8])


@pytest.mark.parametrize(
    ("text", "stop", "include", "kept"),
    [
        ("12\n13 =", ["\n"], False, "12"),
        ("12\n13 =", ["\n"], True, "12\n"),
        ("12. Next", ["\n"], False, "12. Next"),
        ("a</s> b\n", ["\n", "</s>"], False, "a"),  # whichever ends first
        ("xyz", ["xyz", "y"], True, "xy"),
        ("", ["\n"], True, ""),
    ],
)
def test_text_is_cut_at_the_string_that_ends_first(text, stop, include, kept):
    assert cut_at_stop(text, stop, include) == kept
