"""True contribution profiles that the simulations draw from."""

from pathlib import Path

import numpy as np
import pandas as pd

PUBLISHED = Path(__file__).parent.parent / "data" / "qwen3_1p7b_numinamath_grpo.csv"


def published() -> np.ndarray:
    """[28]: the published C of Qwen3-1.7B, taken as the truth."""
    table = pd.read_csv(PUBLISHED)
    return table.loc[table["layer"].notna(), "c_math"].to_numpy()


def shapes() -> dict[str, np.ndarray]:
    """The published profile and five others over 28 layers, from smooth to ragged, peaked where the middle is not."""
    depth = np.linspace(0, 1, 28)
    rng = np.random.default_rng(7)
    return {
        "published": published(),
        "early": 0.2 + 0.8 * np.exp(-(((depth - 0.1) / 0.2) ** 2)),
        "late": 0.3 + 0.7 * depth**2,
        "two peaks": 0.3 + 0.6 * np.exp(-(((depth - 0.2) / 0.1) ** 2)) + 0.7 * np.exp(-(((depth - 0.8) / 0.1) ** 2)),
        "flat": 0.8 + 0.05 * rng.standard_normal(28),
        "ragged": 0.6 + 0.3 * rng.standard_normal(28),
    }
