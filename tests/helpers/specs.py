"""Specs for tests."""

from pathlib import Path

import yaml

from layersweep.cli import DEMO


def demo(**changes):
    """The demo's spec as data, with one seed, 30 steps and 512 prompts, and with nested fields replaced:
    training__steps=3."""
    data = yaml.safe_load(Path(DEMO).read_text()) | {"seeds": [0]}
    data["training"]["steps"] = 30
    data["evaluation"]["suites"][0] |= {"prompts": 512, "final_prompts": 128}
    for path, value in changes.items():
        *parents, last = path.split("__")
        section = data
        for parent in parents:
            section = section[parent]
        section[last] = value
    return data
