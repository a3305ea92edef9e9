"""The peer: runs of TRL's GRPOTrainer, one after another in this process, with all but one layer frozen.

    python -m tests.benchmarks.trl_run SETTINGS.json layer-02 full ...

SETTINGS has the model's folder, the prompts in the order in which they are trained on, the right answers, and the
arguments of GRPOConfig. Nothing of layersweep is imported.
"""

import json
import sys
from pathlib import Path

from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import GRPOConfig, GRPOTrainer


def train(settings: dict, selection: str) -> None:
    """One run: `full` or `layer-N`."""
    model = AutoModelForCausalLM.from_pretrained(settings["model"], dtype="float32")
    tokenizer = AutoTokenizer.from_pretrained(settings["model"], padding_side="left")
    if tokenizer.eos_token is None:
        tokenizer.add_special_tokens({"eos_token": "<never>"})  # TRL needs one; the model cannot write it
    arguments = dict(settings["config"])
    arguments["learning_rate"] = arguments["learning_rate"]["full" if selection == "full" else "layer"]
    if selection != "full":
        model.requires_grad_(False)
        model.model.layers[int(selection.removeprefix("layer-"))].requires_grad_(True)

    def reward(completions: list[str], completion_ids: list[list[int]], truth: list[str], **_: object) -> list[float]:
        """1 for the right answer: on the first line, or exactly, with the end of the sequence after it."""
        if settings["first_line"]:
            lines = [text.split("\n")[0].strip() for text in completions]
            return [float(line == right) for line, right in zip(lines, truth, strict=True)]
        ended = [ids[-1] == tokenizer.eos_token_id for ids in completion_ids]
        return [float(e and text == right) for e, text, right in zip(ended, completions, truth, strict=True)]

    trainer = GRPOTrainer(
        model=model,
        reward_funcs=reward,
        args=GRPOConfig(**arguments),
        train_dataset=Dataset.from_dict({"prompt": settings["prompts"], "truth": settings["truths"]}),
        processing_class=tokenizer,
    )
    trainer.train()
    steps = trainer.state.global_step
    if steps != arguments["max_steps"]:
        raise RuntimeError(f"{selection}: {steps} optimizer steps instead of {arguments['max_steps']}")


if __name__ == "__main__":
    given = json.loads(Path(sys.argv[1]).read_text())
    for name in sys.argv[2:]:
        train(given, name)
