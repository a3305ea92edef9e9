"""Layer-aware training: sets of layers picked from a finished table."""

from typing import TYPE_CHECKING

from layersweep.orchestrator.spec.layers import CombinedRun, middle_layers
from layersweep.policies.selection import Selection
from layersweep.policies.wording import counted

if TYPE_CHECKING:
    import pandas as pd


def pick(run: CombinedRun, table: "pd.DataFrame | None", layers: int) -> Selection:
    """Return the selection of a combined run in a model of `layers` layers.

    Args:
        table: a contribution table; not needed for `middle`.

    Raises:
        ValueError: the table ranks fewer layers than asked for, or is of a model with more layers.
    """
    kind, count = run.which
    if kind == "middle":
        chosen = middle_layers(count, layers)
    else:
        ranked = table[(table["kind"] == "layer") & table["score"].notna() & (table["status"] != "pruned")]
        if len(ranked) < count:
            raise ValueError(
                f"combine: {run.name} needs {counted(count, 'layers')} with a score, the profile has {len(ranked)}"
            )
        if (highest := int(ranked["layer"].max())) >= layers:
            raise ValueError(f"profile: it has a layer {highest}, and the model has layers 0 to {layers - 1}")
        ordered = ranked.sort_values("score", ascending=kind == "worst", kind="stable")
        chosen = tuple(int(k) for k in ordered["layer"].head(count))
    return run.of(chosen)


def read_profile(path: str) -> "pd.DataFrame":
    """Return the contribution table of another sweep: its folder or the parquet itself.

    Raises:
        ValueError: there is no table, or it is not a contribution table.
    """
    from layersweep.workers.storage.tables import CONTRIBUTION

    source = path if path.endswith(".parquet") else f"{path.rstrip('/')}/contribution.parquet"
    try:
        table = CONTRIBUTION.read(source)
    except FileNotFoundError as error:
        raise ValueError(
            f"profile: there is no table at {source}; name a finished sweep's folder or its contribution.parquet"
        ) from error
    except (ValueError, OSError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ValueError(f"profile: {source}: {reason}") from error
    from layersweep.orchestrator.statistics.contribution_table import table_problem  # scipy: a second

    if problem := table_problem(table):
        raise ValueError(f"profile: {source}: {problem}")
    return table
