"""A user's own algorithm: found, checked before anything starts, and used like any other."""

import pickle
import subprocess
import sys

import numpy as np
import pytest
import yaml

from layersweep.cli import DEMO, main
from layersweep.orchestrator.spec.errors import SpecError
from layersweep.orchestrator.spec.load import load_spec, parse_spec
from layersweep.orchestrator.spec.paths import with_absolute_paths

MODULE = '''
import numpy as np
from layersweep.policies.algorithms.base import PolicyGradient
from layersweep.policies.algorithms.clipped import ClippedPolicyGradient
from layersweep.policies.algorithms.grpo import GRPO

class Winners(ClippedPolicyGradient):
    """Reinforces what is better than `bar`, and nothing else."""
    bar: float = 0.5

    def advantages(self, reward, group, trajectory, step, anchor):
        return np.maximum(reward - self.bar, 0).astype(np.float32)

class Silent(PolicyGradient):
    pass

class Leaver(ClippedPolicyGradient):
    def advantages(self, reward, group, trajectory, step, anchor): raise SystemExit("enough")

class Short(PolicyGradient):
    def advantages(self, reward, group, trajectory, step, anchor):
        return reward[:1]

class Lossless(PolicyGradient):
    advantages = Winners.advantages
    bar: float = 0.5

class Squared(GRPO):
    """Pulls log-probabilities towards the advantage."""
    power: float = 2.0

    def surrogate(self, tokens):
        return -((tokens.logp - tokens.advantage).abs() ** self.power), tokens.advantage > 5

def function(): ...
'''


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A working directory that holds the user's module; forgotten afterwards."""
    (tmp_path / "mine_of_a_test.py").write_text(MODULE)
    (tmp_path / "broken_of_a_test.py").write_text("import nowhere_to_be_found")
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    sys.modules.pop("mine_of_a_test", None)


def spec_with(**algorithm):
    return yaml.safe_load(open(DEMO)) | {"algorithm": {"type": "custom"} | algorithm}


def test_it_is_built_with_its_settings_and_travels_by_name(here):
    spec = parse_spec(spec_with(path="mine_of_a_test.Winners", settings={"bar": 0.25, "clip_high": 0.3}))
    algorithm = pickle.loads(pickle.dumps(spec.algorithm.build()))
    assert type(algorithm).__name__ == "Winners" and (algorithm.bar, algorithm.clip_high) == (0.25, 0.3)
    zeros = np.zeros(3, int)
    assert algorithm.advantages(np.array([1, 0.5, 0], np.float32), zeros, zeros, zeros, []).tolist() == [0.75, 0.25, 0]
    assert algorithm.aggregation == "sequence_mean"
    # What a sweep writes down is what it reads.
    (here / "sweep.yaml").write_text(yaml.safe_dump(spec.model_dump(mode="json")))
    assert load_spec(here / "sweep.yaml") == spec


def test_a_loss_of_ones_own_keeps_what_all_losses_have_in_common(here):
    """-(logp - A)^2 of the two tokens is -4 and -1; weights 1/4 and 1/2, and importance weights 1 and 3 times 0.1 k3:
    k3 of q = log 2 is 2 - log 2 - 1 = 0.3069, that of q = 0 is 0. Loss 1 * 4 / 4 + 3 * 1 / 2 + 0.1 * 0.3069 / 4."""
    import torch

    from layersweep.policies.algorithms.loss import LossTokens

    own = {"path": "mine_of_a_test.Squared", "settings": {"kl_coefficient": 0.1}}
    algorithm = parse_spec(spec_with(**own)).algorithm.build()
    logp = torch.tensor([-1.0, -2.0])
    tokens = LossTokens(
        logp, logp, torch.tensor([1.0, -1.0]), torch.tensor([0.25, 0.5]), torch.tensor([0, 1]),
        torch.tensor([1.0, 3.0]), logp + torch.tensor([np.log(2), 0.0]),
    )  # fmt: skip
    assert algorithm.loss(tokens).loss.item() == pytest.approx(1 + 1.5 + 0.1 * (1 - np.log(2)) / 4, rel=1e-6)


@pytest.mark.parametrize(
    ("algorithm", "expected"),
    [
        ({"path": "Winners"}, "algorithm.path: 'Winners' names no object; write it as my_file.py:name"),
        ({"path": "not_here.Winners"}, "algorithm.path: importing not_here from "),
        ({"path": "broken_of_a_test.A"}, "fails: ModuleNotFoundError: No module named 'nowhere_to_be_found'"),
        (
            {"path": "mine_of_a_test.Losers"},
            "algorithm.path: mine_of_a_test has no Losers",
        ),
        ({"path": "not_here.py:Winners"}, "algorithm.path: importing not_here.py fails: FileNotFoundError"),
        ({"path": "mine_of_a_test.function"}, "mine_of_a_test.function is not a subclass"),
        ({"path": "mine_of_a_test.Silent"}, "algorithm.settings: Silent.advantages fails on rewards 1, 0, 0, 0"),
        ({"path": "mine_of_a_test.Leaver"}, "Leaver.advantages fails on rewards 1, 0, 0, 0: SystemExit: enough"),
        ({"path": "mine_of_a_test.Short"}, "algorithm.settings: Short.advantages must give a finite float32 a row"),
        (
            {"path": "mine_of_a_test.Winners", "settings": {"bar": "high"}},
            "algorithm.settings: mine_of_a_test.Winners refuses them: bar: Input should be a valid number",
        ),
        ({"path": "mine_of_a_test.Lossless"}, "algorithm.settings: Lossless has no loss: derive it from"),
        # |logp - A| = 0 to the power of -1 is infinite: a response of advantage -1 and log-probabilities -1.
        (
            {"path": "mine_of_a_test.Squared", "settings": {"power": -1}},
            "algorithm.settings: Squared.loss must be finite",
        ),
        ({"path": "mine_of_a_test.Winners", "settings": {"bars": 1}}, "bars: Extra inputs are not permitted"),
        ({"path": "mine_of_a_test.Winners", "settings": {"overlong_buffer": 7}}, "algorithm.overlong_buffer: must be"),
        ({}, "algorithm.path: required"),
        ({"path": "mine_of_a_test.Winners", "bar": 1}, "algorithm.bar: unknown key"),
    ],
)
def test_what_cannot_be_an_algorithm_is_refused(here, algorithm, expected):
    with pytest.raises(SpecError) as error:
        parse_spec(spec_with(**algorithm))
    assert expected in str(error.value)


def test_one_in_a_file_is_made_on_a_worker_from_its_section(here, tmp_path_factory):
    """As trainers get it: pickled, in a process that runs elsewhere and has never seen the module."""
    section = with_absolute_paths(
        parse_spec(spec_with(path="mine_of_a_test.py:Winners", settings={"bar": 0.25}))
    ).algorithm
    assert section.path == f"{here}/mine_of_a_test.py:Winners"
    code = f"import pickle; print(pickle.loads({pickle.dumps(section)!r}).build().bar)"
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    done = subprocess.run([sys.executable, "-c", code], cwd=elsewhere, capture_output=True, text=True, check=True)
    assert done.stdout == "0.25\n"


def test_the_command_plans_with_it(here, capsys):
    (here / "sweep.yaml").write_text(yaml.safe_dump(spec_with(path="mine_of_a_test.Winners")))
    assert main(["plan", "sweep.yaml"]) == 0
    assert "custom" in capsys.readouterr().out
