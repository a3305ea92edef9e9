"""Chat templates of the model or of one's own, and their arguments."""

import pytest

from layersweep.orchestrator.spec.errors import SpecError
from tests.helpers.model_folders import TEMPLATE, make, plan


def test_a_template_of_ones_own_is_rendered_with_its_arguments(tmp_path):
    """OpenRLHF #1073, trl #2820. The prompts' tokens follow from both, and so do the fingerprints."""
    folder = make(tmp_path / "model", template=None)
    model = {"chat_template": TEMPLATE}
    plain = plan(folder, model=model).fingerprints
    thinking = plan(folder, model=model | {"template_arguments": {"thinking": True}}).fingerprints
    assert plain["task"] == thinking["task"]
    assert plain["task, train prompts as tokens"] != thinking["task, train prompts as tokens"]
    assert plan(make(tmp_path / "other"), model={}).fingerprints == plain
    with pytest.raises(SpecError, match="^model.template_arguments: the chat template has no variable thinkin;"):
        plan(folder, model=model | {"template_arguments": {"thinkin": True}})


def test_plain_text_needs_no_template(tmp_path):
    folder = make(tmp_path / "model", template=None)
    data = {"path": str(tmp_path / "sums.jsonl"), "prompt_format": "plain", "selection_share": 0.3}
    with pytest.raises(SpecError, match="no chat template"):
        plan(folder)
    assert plan(folder, task={"data": data}).data["task"].rows == 30
