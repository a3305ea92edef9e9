"""report.png: contribution by layer with base and full, and the learning curves."""

import pandas as pd

from workers.files import write_atomically


def read_tables(folder: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The contribution table and the steps of a sweep."""
    return tuple(pd.read_parquet(f"{folder}/{name}.parquet") for name in ("contribution", "steps"))


def write_report(folder: str) -> list[str]:
    """Draw `<folder>/report.png` from the sweep's tables; returns the paths written."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    table, steps = read_tables(folder)
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4.5), layout="constrained")
    layers = table[(table["kind"] == "layer") & table["contribution"].notna()]
    if len(layers):
        value = layers["contribution"].astype(float)
        errors = [value - layers["contribution_low"], layers["contribution_high"] - value]
        left.errorbar(layers["layer"].astype(int), value, yerr=errors, fmt="o-", capsize=3, label="one layer trained")
    left.axhline(1, color="black", linewidth=1, label="full training")
    left.axhline(0, color="grey", linewidth=1, linestyle="--", label="base model")
    left.set(xlabel="layer", ylabel="contribution C", title=f"{table['sweep'][0]}: layer contribution, 95 % intervals")
    left.legend()
    for selection, rows in steps.groupby("selection"):
        curve = rows.groupby("step")["reward_mean"].mean()
        style = {"color": "black", "linewidth": 2} if selection == "full" else {"linewidth": 1}
        right.plot(curve.index + 1, curve, label=selection, **style)
    right.set(xlabel="step", ylabel="mean training reward", title="learning curves")
    if len(steps):
        right.legend(fontsize="small", ncols=2)
    target = f"{folder}/report.png"
    write_atomically(target, lambda file: figure.savefig(file, format="png", dpi=120))
    plt.close(figure)
    return [target]
