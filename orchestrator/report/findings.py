"""Findings in words and in rows: the headline, its figures, the finalists, the failed and the pruned."""

import pandas as pd

from layersweep.orchestrator.statistics.update_distances import distance_sentence

from .chart import axis_number
from .format import format_interval, format_number
from .profile_chart import row_class
from .results import Results

OVERSTATES = (
    "The best of many noisy values overstates itself: in simulations of 28 layers with the usual evaluation noise, by "
    "about 0.17 of C. These rows were scored once more on prompts that had no part in choosing them, with four times "
    "as many responses each. Quote these."
)


def headline(results: Results) -> list[str]:
    """Return the answer in a few sentences."""
    layers = results.layers
    if not len(layers):
        return _best_of_several(results, "runs") or ["No layer has been scored yet."]
    if not layers["contribution"].notna().any():
        reasons = [r for r in layers["reason"].dropna() if r] or ["the full run has no score yet"]
        return [f"No contribution can be computed: {reasons[0]}. The scores themselves are shown."]
    best = _best(layers)
    said = [_recovers(results, best)]
    tied = layers[layers["tied_with_best"].fillna(False).astype(bool) & (layers["selection"] != best["selection"])]
    if len(tied):
        names = _list([str(k) for k in tied["layer"]])
        said.append(f"Layer{'s' if len(tied) > 1 else ''} {names} cannot be told apart from it.")
    elif len(layers) > 1:
        said.append("No other layer is tied with it.")
    if stopped := int(layers["status"].eq("pruned").sum()):
        said.append(f"A search stopped {stopped} of {len(layers)} layers early.")
    said += _best_of_several(results, "combined runs")
    if pd.notna(best["imprecise"]) and best["imprecise"]:
        said.append("The full run's gain is small against its noise, so every contribution is imprecise.")
    if (unjudged := results.table["unjudged_fraction"].max()) > 0:
        said.append(
            f"Up to {100 * unjudged:.2g} % of a selection's responses got no verdict in time and count as wrong."
        )
    return said


def _best_of_several(results: Results, called: str) -> list[str]:
    several = results.several[results.several["contribution"].notna()]
    if not len(several):
        return []
    row = several.loc[several["contribution"].idxmax()]
    interval = format_interval(row["contribution_low"], row["contribution_high"])
    return [
        f"Of the {called} {row['selection']} does best: C {format_number(row['contribution'])}, {interval}"
        f"{results.one_run_each}."
    ]


def _best(layers: pd.DataFrame) -> pd.Series:
    ranked = layers[layers["contribution"].notna()]
    return ranked.loc[ranked["rank"].astype("Float64").fillna(1e9).idxmin()]


def _recovers(results: Results, best: pd.Series) -> str:
    share = f"{100 * best['contribution']:.0f} %"
    interval = f"{100 * best['contribution_low']:.0f} to {100 * best['contribution_high']:.0f} %"
    full, own = results.only("full"), best["trainable_parameters"]
    size = ""
    if full is not None and pd.notna(own) and pd.notna(full["trainable_parameters"]):
        size = f" by training {100 * own / full['trainable_parameters']:.2g} % of the parameters"
    known = f"95 % interval {interval}{results.one_run_each}"
    said = f"Layer {best['layer']} alone recovers {share} of what full training gains ({known}){size}"
    if pd.notna(best["final_contribution"]):
        said += f"; {100 * best['final_contribution']:.0f} % on prompts that had no part in choosing it"
    return said.replace("-", "−") + "."


def tiles(results: Results) -> list[tuple[str, str, str]]:
    """Return figures under the headline: name, value, interval."""
    found = []
    for kind, name in (("base", "base score"), ("full", "full training")):
        row = results.only(kind)
        if row is not None:
            interval = format_interval(row["score_low"], row["score_high"], 3)
            once = results.one_run_each if kind == "full" else ""
            found.append((name, format_number(row["score"], 3), interval + once))
    layers = results.layers
    if layers["contribution"].notna().any():
        best = _best(layers)
        interval = format_interval(best["contribution_low"], best["contribution_high"]) + results.one_run_each
        found.append((f"best layer: {best['layer']}", f"C {format_number(best['contribution'])}", interval))
    done = results.table["status"].eq("completed")
    found.append(("completed", f"{int(done.sum())} of {len(done)}", "selections, the base included"))
    return found


def finalists(results: Results) -> list[dict]:
    """Return rows of those scored on the final split: both scores and both contributions, best first."""
    rows = results.table[results.table["final_score"].notna()]
    order = {"base": 0, "full": 1}
    rows = rows.assign(order=rows["kind"].map(order).fillna(2)).sort_values(
        ["order", "final_score"], ascending=[True, False]
    )
    return [
        {
            "selection": row["selection"],
            "score": format_number(row["score"], 3),
            "final_score": format_number(row["final_score"], 3),
            "final_score_interval": format_interval(row["final_score_low"], row["final_score_high"], 3),
            "contribution": format_number(row["contribution"]),
            "final_contribution": format_number(row["final_contribution"]),
            "final_contribution_interval": ""
            if row["kind"] in order
            else format_interval(row["final_contribution_low"], row["final_contribution_high"]),
            "mark": row_class(row),
        }
        for row in rows.to_dict("records")
    ]


def unfinished(results: Results) -> list[dict]:
    """Return rows that failed, were pruned, or still run, each with what it had and why."""
    rows = results.table[results.table["status"] != "completed"]
    return [
        {
            "selection": row["selection"],
            "status": row["status"],
            "steps": format_number(row["steps"], 0),
            "contribution": format_number(row["contribution"]),
            "reason": "; ".join(str(r) for r in (row["reason"], row["contribution_note"]) if pd.notna(r) and r) or "–",
        }
        for row in rows.to_dict("records")
    ]


def saved(results: Results) -> str | None:
    """Cost that pruning saved, against training every layer to the end."""
    layers = results.table[results.table["kind"] == "layer"]
    if not (layers["status"] == "pruned").any():
        return None
    trained, last = layers["steps"].fillna(0).astype(int), int(layers["steps"].max())
    share = trained.sum() / (last * len(layers))
    return (
        f"The search trained {trained.sum():,} layer steps; training all {len(layers)} layers to step {last} would "
        f"have taken {last * len(layers):,}: {100 * (1 - share):.0f} % saved. The contribution of a pruned layer is an "
        "extrapolation: it was measured at the step where it stopped."
    )


def rates(results: Results) -> str | None:
    """Return the learning rates used and how they were found, as they change the ranking, and how far runs moved by
    them."""
    found = results.table.dropna(subset=["learning_rate"]).groupby("kind")["learning_rate"].unique()
    if not len(found):
        return None
    names = {"layer": "single layers", "layers": "several layers", "part": "parts", "boost": "boosted", "full": "full"}
    rates = {kind: _list([axis_number(rate) for rate in sorted(found[kind])]) for kind in names if kind in found}
    trials = results.table[results.table["kind"] == "trial"]
    tried = f" ({results.table['learning_rate_policy'].iloc[0]}, by {len(trials)} trials)" if len(trials) else ""
    if len(set(rates.values())) == 1:
        said = f"Every run has the learning rate {next(iter(rates.values()))}{tried}; another changes the ranking."
    else:
        parts = [f"{names[kind]} {rate}" for kind, rate in rates.items()]
        said = f"Learning rates: {', '.join(parts)}{tried}; others change the ranking."
    return f"{said} {distance_sentence(results.table)}".rstrip()


def categories(results: Results) -> tuple[list[str], list[dict]]:
    """Return success by category, where the environment has them: the categories, and a row per selection."""
    scores = results.scores
    if "category" not in scores or not scores["category"].notna().any():
        return [], []
    counted = scores[~scores["suite"].str.endswith("@greedy") & (scores["split"] == "selection")]
    last = counted.groupby("selection")["step"].transform("max")
    means = counted[counted["step"] == last].pivot_table(index="selection", columns="category", values="score")
    order = [name for name in results.table["selection"] if name in means.index]
    rows = [{"selection": name, "values": means.loc[name].tolist()} for name in order]
    return [str(name) for name in means.columns], rows


def _list(words: list[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
