"""Which module may import which: the four packages one way, no circles, statistics and planning without Ray.

Read from the syntax trees of all files, since the mapping of folders to `layersweep.*` hides the tree from other
tools. Imports under `if TYPE_CHECKING` do not count; those inside functions count except where a contract is about
what importing a module costs.
"""

import ast
import re
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = ("policies", "rollout", "workers", "orchestrator")
"""Each may import itself and those before it."""
ROLLOUT_FROM_POLICIES = {
    "policies.strict", "policies.config", "policies.selection", "policies.model", "policies.user_code",
    "policies.wording",
}  # fmt: skip
HEADLESS = re.compile(
    r"(Of|That|And|Or|By|As|Who|Whom|Whose|Whoever|Which|Where|When|What|If|Why|With|Without|In|On|At|To|From|For|"
    r"Beside|Besides|Between|Over|Under|Until|Till|While|Since|Because|But|So|Such|Than|Then|There|Here|It|They|He|She|"
    r"His|Their|Its|Is|Are|Has|Can|May|Must|Also|Not|Everybody|Nobody|Somebody)\b|(?!(null|bool)\b)[a-z]+(?![\w.:`'])"
)
"""First words of a docstring that are neither a verb nor a noun; names such as vLLM or sweep.yaml may be lower case."""


@dataclass
class Module:
    """One file's imports: full names of modules, ours without `layersweep.`; `layersweep` itself is `api`."""

    path: Path
    is_package: bool
    at_import: set[str] = field(default_factory=set)
    inside_functions: set[str] = field(default_factory=set)

    @property
    def imports(self) -> set[str]:
        return self.at_import | self.inside_functions


def sources(folder: Path = ROOT) -> list[Path]:
    return [path for package in (*PACKAGES, "deploy") for path in sorted((folder / package).rglob("*.py"))]


def name_of(path: Path) -> str:
    """`orchestrator.spec.load`; `api` for orchestrator/api/__init__.py, which is `layersweep` itself."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    parts = parts[:-1] if parts[-1] == "__init__" else parts
    return ".".join((parts[2:] or ["api"]) if parts[:2] == ("orchestrator", "api") else parts)


@cache
def modules() -> dict[str, Module]:
    found = {name_of(path): Module(path, path.name == "__init__.py") for path in sources()}
    for name, module in found.items():
        _Reader(name, module, found).visit(ast.parse(module.path.read_text()))
    return found


class _Reader(ast.NodeVisitor):
    def __init__(self, name: str, module: Module, known: dict[str, Module]):
        self.name, self.module, self.known, self.depth = name, module, known, 0

    def visit_If(self, node: ast.If) -> None:
        if "TYPE_CHECKING" in ast.unparse(node.test):
            for other in node.orelse:
                self.visit(other)
        else:
            self.generic_visit(node)

    def visit_FunctionDef(self, node: ast.AST) -> None:
        self.depth += 1
        self.generic_visit(node)
        self.depth -= 1

    visit_AsyncFunctionDef = visit_Lambda = visit_FunctionDef

    def visit_Import(self, node: ast.Import) -> None:
        for alias in node.names:
            self._add(alias.name)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        base = node.module or ""
        if node.level:
            package = self.name.split(".") if self.module.is_package else self.name.split(".")[:-1]
            package = package[: len(package) - node.level + 1]
            base = ".".join(["layersweep", *package, *([base] if base else [])])
        for alias in node.names:
            self._add(f"{base}.{alias.name}")

    def _add(self, name: str) -> None:
        if name == "layersweep":
            name = "api"
        elif name.startswith("layersweep."):
            name = name.removeprefix("layersweep.")
            name = name if name in self.known else name.rpartition(".")[0]
            assert name in self.known, f"{self.name} imports {name}, which is not there"
        (self.module.inside_functions if self.depth else self.module.at_import).add(name)


def reached(start: str) -> dict[str, str]:
    """Everything that importing a module imports too, ours and others', with the module that imports it."""
    why, todo = {start: ""}, [start]
    while todo:
        name = todo.pop()
        if name not in modules():
            continue
        parents = {name.rsplit(".", n)[0] for n in range(1, name.count(".") + 1)}
        for other in modules()[name].at_import | parents:
            if other not in why:
                why[other] = name
                todo.append(other)
    return why


def test_packages_import_one_way():
    wrong = []
    for name, module in modules().items():
        package = name.partition(".")[0]
        if package in PACKAGES:
            later = PACKAGES[PACKAGES.index(package) + 1 :]
            wrong += [f"{name} imports {other}" for other in module.imports if other.split(".")[0] in (*later, "api")]
    assert not wrong


def test_rollout_takes_plain_types_of_policies_only():
    wrong = [
        f"{name} imports {other}"
        for name, module in modules().items()
        if name.startswith("rollout")
        for other in module.imports
        if other.startswith("policies") and not other.startswith(tuple(ROLLOUT_FROM_POLICIES))
    ]
    assert not wrong


def test_there_is_no_circle():
    """Depth first; `done` are modules from which no circle can be reached."""
    done: set[str] = set()

    def follow(name: str, path: list[str]) -> None:
        assert name not in path, " -> ".join([*path[path.index(name) :], name])
        if name not in done:
            for other in sorted(modules()[name].imports & modules().keys() - {name}):
                follow(other, [*path, name])
            done.add(name)

    for name in modules():
        follow(name, [])


def test_statistics_know_neither_ray_nor_the_spec():
    allowed = ("orchestrator.statistics", "workers.storage")
    ours = {
        f"{name} imports {other}"
        for name, module in modules().items()
        if name.startswith("orchestrator.statistics")
        for other in module.imports & modules().keys()
        if not other.startswith(allowed)
    }
    assert not ours
    for name in modules():
        if name.startswith("orchestrator.statistics"):
            assert not {other for other in reached(name) if other.split(".")[0] in ("ray", "torch")}, name


def test_planning_and_spec_import_neither_ray_nor_torch():
    for name in modules():
        if name.startswith(("orchestrator.planning", "orchestrator.spec", "cli", "api")):
            why = reached(name)
            heavy = [other for other in why if other.split(".")[0] in ("ray", "torch", "vllm", "deepspeed")]
            assert not heavy, f"{name} imports {heavy[0]} by {why[heavy[0]]}"


def test_the_orchestrator_has_at_most_nine_rooms():
    entries = {path.relative_to(ROOT / "orchestrator").parts[0] for path in (ROOT / "orchestrator").rglob("*.py")}
    assert len(entries - {"__init__.py"}) <= 9, sorted(entries)


def test_no_class_name_occurs_twice():
    where: dict[str, list[str]] = {}
    for path in sources():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                where.setdefault(node.name, []).append(str(path.relative_to(ROOT)))
    assert not {name: paths for name, paths in where.items() if len(paths) > 1}


def headless_docstrings() -> list[str]:
    """`path:line: text` of each docstring, attributes' included, that does not begin with a verb or a noun."""
    found = []
    for path in sources():
        tree = ast.parse(path.read_text())
        texts = []
        for node in ast.walk(tree):
            body = getattr(node, "body", None)
            for statement in body if isinstance(body, list) else ():
                if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
                    if isinstance(statement.value.value, str):
                        texts.append((statement.lineno, statement.value.value.strip()))
        found += [
            f"{path.relative_to(ROOT)}:{line}: {text.splitlines()[0] if text else ''}"
            for line, text in sorted(texts)
            if HEADLESS.match(text)
        ]
    return found


def test_every_docstring_has_a_head():
    found = headless_docstrings()
    assert not found, f"{len(found)} docstrings begin with neither verb nor noun:\n" + "\n".join(found)
