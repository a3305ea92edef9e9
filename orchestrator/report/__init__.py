"""The report of a sweep: one HTML file that needs no network, and its PNGs."""

from layersweep.workers.storage.files import write_atomically


def write_report(source: str) -> list[str]:
    """Draw a finished or running sweep; returns the paths written: report.html, profile.png, report.png and, where the
    base has several samples to a prompt, contribution_by_base_success.parquet.

    Args:
        source: a sweep's folder (a path or an fsspec URI), which gets the files; or a contribution table in parquet,
            whose files go beside it into `NAME-report` (those of a contribution.parquet into its own folder).

    Raises:
        SpecError: there is no table there, or it is none of ours.
    """
    from functools import partial

    from layersweep.workers.storage.tables import BY_BASE_SUCCESS

    from .page import render_page
    from .png import images
    from .results import read

    results, folder = read(source)
    page = render_page(results).encode()
    written = {"report.html": lambda file: file.write(page)} | images(results)
    if len(rows := results.by_base_success):
        written[f"{BY_BASE_SUCCESS.name}.parquet"] = partial(BY_BASE_SUCCESS.write, rows)
    for name, write in written.items():
        write_atomically(f"{folder}/{name}", write)
    return [f"{folder}/{name}" for name in written]
