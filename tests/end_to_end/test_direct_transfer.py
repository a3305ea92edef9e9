"""Weights from process to process, over Gloo, by trainers that die meanwhile."""

import pytest

from tests.helpers.chaos import check, undisturbed
from tests.helpers.mortal_trainer import sweep_of_mortals

pytestmark = [pytest.mark.slow, pytest.mark.long]


def test_trainers_that_die_with_weights_on_the_way_change_nothing(tmp_path):
    """Twenty, at random moments: every run is completed, every step is there once, the table is the undisturbed one."""
    expected = undisturbed(tmp_path / "undisturbed")
    (folder := tmp_path / "sweep").mkdir()
    assert sweep_of_mortals(folder, deaths=20) == 20
    check(folder, expected)
