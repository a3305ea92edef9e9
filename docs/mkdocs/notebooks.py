"""The notebooks, run when the site is built: a page of each, with what its cells print and give.

A hook of MkDocs; `tests/docs` runs the notebooks by the same functions.
"""

import ast
import base64
import contextlib
import io
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # which only the site needs
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files

FOLDER = Path(__file__).parents[1] / "notebooks"
RESULTS = FOLDER.parent / "results"


def on_files(files: "Files", config: "MkDocsConfig") -> "Files":
    """Add a page for each notebook."""
    from mkdocs.structure.files import File

    for path in sorted(FOLDER.glob("*.ipynb")):
        files.append(File.generated(config, f"notebooks/{path.stem}.md", content=page(path)))
    return files


def page(path: Path) -> str:
    """Return a notebook as Markdown, with the output of every cell."""
    parts = []
    for kind, source, output in run(path):
        parts.append(source if kind == "markdown" else f"```python\n{source}\n```")
        parts += [output] if output else []
    return "\n\n".join([*parts, f"[Download this notebook]({path.name})"]) + "\n"


def run(path: Path) -> list[tuple[str, str, str]]:
    """Run a notebook's cells in a folder of their own, from where `../results` is docs/results.

    Returns type, source and output (as Markdown) of each cell. What a cell raises is raised.
    """
    cells = [(cell["cell_type"], "".join(cell["source"])) for cell in json.loads(path.read_text())["cells"]]
    names: dict[str, Any] = {"__name__": "__main__"}
    with _own_folder():
        return [
            (kind, source, _output(source, names, f"{path.name}, cell {i}") if kind == "code" else "")
            for i, (kind, source) in enumerate(cells)
        ]


@contextlib.contextmanager
def _own_folder() -> Iterator[None]:
    """A working directory as a kernel has it: modules are imported from it, and forgotten afterwards."""
    before, path, modules = os.getcwd(), list(sys.path), set(sys.modules)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "notebooks").mkdir()
        (Path(folder) / "results").symlink_to(RESULTS)
        os.chdir(Path(folder) / "notebooks")
        sys.path.insert(0, os.getcwd())
        try:
            yield
        finally:
            os.chdir(before)
            sys.path[:] = path
            for name in set(sys.modules) - modules:
                if (getattr(sys.modules[name], "__file__", None) or "").startswith(folder):
                    del sys.modules[name]


def _output(source: str, names: dict[str, Any], where: str) -> str:
    """Run a cell; what it prints, and the value of the expression that it ends with, as Jupyter shows them."""
    tree = ast.parse(source, where)
    last = ast.Expression(tree.body.pop().value) if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(compile(tree, where, "exec"), names)
        value = eval(compile(last, where, "eval"), names) if last else None
    text = printed.getvalue().replace(f"{os.getcwd()}/", "")
    shown = [f"```text\n{text}```"] if text else []
    return "\n\n".join(shown + ([_shown(value)] if value is not None else []))


def _shown(value: Any) -> str:
    if hasattr(value, "to_html"):  # a table of pandas
        return value.to_html(border=0, float_format="{:.3f}".format)
    if hasattr(value, "savefig"):
        value.savefig(picture := io.BytesIO(), format="png", dpi=110, bbox_inches="tight")
        return f'<img alt="figure" src="data:image/png;base64,{base64.b64encode(picture.getvalue()).decode()}">'
    return f"```text\n{value!r}\n```"
