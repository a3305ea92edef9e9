"""Pages that the site makes of the code: spec, commands, tables; and those that live in other folders.

A hook of MkDocs, which calls `on_files` once per build. Every page here is made anew from what it documents.
"""

import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.plugins import event_priority
from mkdocs.structure.files import File, Files

from layersweep.arguments import make_parser
from layersweep.orchestrator.spec.schema_docs import json_schema
from layersweep.orchestrator.spec.sweep_spec import SweepSpec
from layersweep.workers.storage import tables
from layersweep.workers.storage.table_schema import TableSchema

ROOT = Path(__file__).parents[2]
ELSEWHERE = {
    "benchmarks.md": "tests/benchmarks/README.md",
    "changelog.md": "CHANGELOG.md",
    "cluster.md": "deploy/README.md",
    "contributing.md": "CONTRIBUTING.md",
    "tests.md": "tests/README.md",
}
"""Pages of the site that are files of other folders."""
SOURCES = tempfile.TemporaryDirectory()
"""Where mkdocstrings finds the package under its name."""
TO_DERIVE_FROM = (
    "policies.algorithms.base.PolicyGradient",
    "policies.algorithms.clipped.ClippedPolicyGradient",
    "policies.algorithms.group_relative.GroupRelative",
    "policies.algorithms.loss.LossTokens",
    "rollout.tasks.base.Task",
    "rollout.types.Prompt",
    "rollout.types.Response",
    "rollout.types.Score",
    "rollout.environments.base.Environment",
)
"""What the classes of one's own are made over, and what they are given."""
WIDTH = 100
"""Columns of the help texts."""


@event_priority(100)  # before mkdocstrings itself
def on_config(config: MkDocsConfig) -> None:
    """Show mkdocstrings where the package is: it reads sources, and does not know pyproject's package-dir."""
    sources = Path(SOURCES.name)
    (sources / "layersweep").mkdir()
    (sources / "layersweep" / "__init__.py").symlink_to(ROOT / "orchestrator" / "api" / "__init__.py")
    for package in ("orchestrator", "policies", "rollout", "workers"):
        (sources / "layersweep" / package).symlink_to(ROOT / package)
    config.plugins["mkdocstrings"].config.handlers["python"]["paths"] = [str(sources)]


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are made."""
    pages = spec_pages() | {"reference/commands.md": commands_page(), "reference/tables.md": tables_page()}
    bases = "\n\n".join(f"::: layersweep.{name}" for name in TO_DERIVE_FROM)
    pages["reference/python.md"] = f"# Python\n\n::: layersweep\n\n## Classes of your own\n\n{bases}\n"
    pages |= {page: from_elsewhere(page, source) for page, source in ELSEWHERE.items()}
    for path, text in pages.items():
        files.append(File.generated(config, path, content=text))
    return files


def from_elsewhere(page: str, source: str) -> str:
    """Return a file of another folder with its links as they are from the site's top.

    Links into docs/ lead to the page, links to other files of the repository become their names.
    """
    pages = {path: name for name, path in ELSEWHERE.items()}

    def link(match: re.Match) -> str:
        target = (ROOT / source).parent / match[2]
        if "://" in match[2] or match[2].startswith("#"):
            return match[0]
        inside = str(target.resolve().relative_to(ROOT))
        if inside.startswith("docs/"):
            return f"[{match[1]}]({inside.removeprefix('docs/')})"
        return f"[{match[1]}]({pages[inside]})" if inside in pages else f"`{inside}`"

    return re.sub(r"\[([^]]+)\]\(([^)]+)\)", link, (ROOT / source).read_text())


# -- commands -------------------------------------------------------------------------------------------------------


def commands_page() -> str:
    """Return what `--help` prints, of `layersweep` and of each of its commands."""
    parser = make_parser()
    (choices,) = (action.choices for action in parser._actions if action.dest != "help")
    parts = ["# Commands", parser.description, "Exit codes: 0 done, 1 some run failed, 2 bad input, 3 stopped before "
             "the end."]  # fmt: skip
    for name, command in choices.items():
        command.formatter_class = _WideHelp
        parts += [f"## {name}", f"```text\n{command.format_help()}```"]
    return "\n\n".join(parts) + "\n"


class _WideHelp(type(make_parser()._get_formatter())):
    """Help of one width wherever the site is built."""

    def __init__(self, prog: str):
        super().__init__(prog, width=WIDTH)


# -- tables ---------------------------------------------------------------------------------------------------------


def tables_page() -> str:
    """Return the columns of every table that a sweep writes."""
    parts = ["# Tables", "The columns of the parquet files in a sweep's folder; pandas reads each by itself."]
    schemas = (table for table in vars(tables).values() if isinstance(table, TableSchema))
    for table in schemas:
        parts += [f"## {table.name}.parquet", "| column | meaning | unit |\n|---|---|---|"]
        rows = (f"| `{column.name}` | {_cell(column.meaning)} | {column.unit} |" for column in table.columns)
        parts[-1] += "\n" + "\n".join(rows)
    return "\n\n".join(parts) + "\n"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


# -- spec -----------------------------------------------------------------------------------------------------------


def spec_pages() -> dict[str, str]:
    """Return a page for the spec's own fields, and one for each section that has fields of its own."""
    schema = json_schema(SweepSpec)
    definitions, sections = schema["$defs"], schema["properties"]
    pages_of = {}  # by model: the page that has it, the first section that leads to it
    models = {name: list(_reachable(field, definitions)) for name, field in sections.items()}
    for name, reachable in models.items():
        for model in reachable:
            pages_of.setdefault(model, name)
    head = ["# Spec", "Every field of a sweep's YAML file, from the documentation in the code, as `layersweep schema` "
            "prints it.", *_fields(schema, pages_of, here="")]  # fmt: skip
    pages = {"reference/spec/index.md": "\n\n".join(head) + "\n"}
    for name, reachable in models.items():
        if own := [model for model in reachable if pages_of[model] == name]:
            parts = [f"# {name}", _paragraph(sections[name].get("description", ""))]
            for model in own:
                parts += [f"## {_title(model, definitions)} {{: #{model.lower()} }}"]
                parts += [_paragraph(definitions[model].get("description", ""))]
                parts += _fields(definitions[model], pages_of, here=name)
            pages[f"reference/spec/{name}.md"] = "\n\n".join(filter(None, parts)) + "\n"
    return pages


def _reachable(schema: Any, definitions: dict[str, Any], seen: set[str] | None = None) -> Iterator[str]:
    """Yield the models that a field may hold, outer ones first, each once."""
    seen = set() if seen is None else seen
    if isinstance(schema, list):
        for part in schema:
            yield from _reachable(part, definitions, seen)
    elif isinstance(schema, dict):
        if "$ref" in schema and (name := schema["$ref"].rpartition("/")[2]) not in seen:
            seen.add(name)
            if "properties" in definitions[name]:
                yield name
            yield from _reachable(definitions[name], definitions, seen)
        for key, part in schema.items():
            if key not in ("$defs", "default", "discriminator"):
                yield from _reachable(part, definitions, seen)


def _title(model: str, definitions: dict[str, Any]) -> str:
    """Name a model as a spec does, by its type, where it has one."""
    kind = definitions[model]["properties"].get("type", {}).get("const")
    return f"type: {kind}" if kind else model


def _fields(schema: dict[str, Any], pages_of: dict[str, str], here: str) -> list[str]:
    """Return one list with the fields of a model: type, default and documentation of each."""
    found = []
    for name, field in schema["properties"].items():
        if "const" in field:
            found.append(f"- **`{name}: {field['const']}`** chooses these fields.")
            continue
        default = "required" if name in schema.get("required", ()) else f"default `{_yaml(field.get('default'))}`"
        text = _paragraph(field.get("description", ""))
        found.append(f"- **`{name}`**: {_type(field, pages_of, here)}, {default}. {text}".rstrip())
    return ["\n".join(found)]


def _yaml(value: Any) -> str:
    """Write a default as a spec would."""
    if isinstance(value, dict):
        return "{...}" if value else "{}"
    if isinstance(value, list):
        return f"[{', '.join(map(_yaml, value))}]"
    words = {None: "null", True: "true", False: "false", "": '""'}
    return words[value] if value is None or value == "" or isinstance(value, bool) else f"{value}"


def _type(field: dict[str, Any], pages_of: dict[str, str], here: str) -> str:
    """Say in words what a field holds."""
    if "$ref" in field:
        name = field["$ref"].rpartition("/")[2]
        if name not in pages_of:
            return name
        page = "" if pages_of[name] == here else f"{pages_of[name]}.md"
        return f"[{name}]({page}#{name.lower()})"
    for key in ("anyOf", "oneOf"):
        if key in field:
            return " or ".join(dict.fromkeys(_type(part, pages_of, here) for part in field[key]))
    if "enum" in field:
        return ", ".join(f"`{value}`" for value in field["enum"])
    if "const" in field:
        return f"`{field['const']}`"
    kind = field.get("type")
    if kind == "array":
        items = field.get("items") or {"anyOf": field.get("prefixItems", [])}
        return f"list of {_type(items, pages_of, here)}"
    words = {"integer": "whole number", "number": "number", "string": "text", "boolean": "true or false",
             "object": "mapping", "null": "null"}  # fmt: skip
    return words.get(kind, "any value") + _limits(field)


def _limits(field: dict[str, Any]) -> str:
    signs = {"minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most", "exclusiveMaximum": "below"}
    said = [f"{word} {field[key]:,}" for key, word in signs.items() if key in field]
    return f" ({', '.join(said)})" if said else ""


def _paragraph(text: str) -> str:
    return " ".join(text.split())
