"""YAML as specs are written in it: the core schema of YAML 1.2 (yaml.org/spec/1.2.2, chapter 10.3).

PyYAML itself reads YAML 1.1, where `1:4` is 64, `no` is false, `010` is 8, and `1e-5` is text. Merge keys (`<<`) are
kept from YAML 1.1. A key that is given twice is an error instead of the last one winning.
"""

import re
from collections.abc import Callable
from typing import Any

import yaml

_TAG = "tag:yaml.org,2002:"
_SCALARS: dict[str, tuple[str, str, Callable[[str], Any]]] = {
    "null": (r"~|null|Null|NULL|", "~nN", lambda text: None),
    "bool": (r"true|True|TRUE|false|False|FALSE", "tTfF", lambda text: text.lower() == "true"),
    "int": (
        r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+",
        "-+0123456789",
        lambda text: int(text, 0) if text[:2] in ("0o", "0x") else int(text),
    ),
    "float": (
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        "-+.0123456789",
        lambda text: float(re.sub(r"\.(?=[inIN])", "", text)),
    ),
}
"""Types of scalars beside text: pattern, first characters, conversion."""
MOST_FLOW_LEVELS = 100
"""Brackets and braces that may be open at a time."""


class _Loader(yaml.SafeLoader):
    """Builds plain data: mappings, lists, text, numbers, booleans, null."""

    yaml_implicit_resolvers: dict[str, Any] = {}
    yaml_constructors = {
        tag: yaml.SafeLoader.yaml_constructors[tag] for tag in (_TAG + "map", _TAG + "seq", _TAG + "str", None)
    }

    def fetch_flow_collection_start(self, token: type) -> None:
        if self.flow_level >= MOST_FLOW_LEVELS:  # PyYAML takes seconds for what cannot be read in the end
            raise yaml.YAMLError("nested too deeply")
        super().fetch_flow_collection_start(token)

    def compose_mapping_node(self, anchor: str | None) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen: dict[tuple[str, str], int] = {}
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            line = key.start_mark.line + 1
            if first := seen.get((key.tag, key.value)):
                raise yaml.YAMLError(f"the key {key.value!r} is given twice, on lines {first} and {line}; remove one")
            seen[key.tag, key.value] = line
        return node


class _Dumper(yaml.SafeDumper):
    """Quotes every text that YAML 1.1 or YAML 1.2 would read as something else."""


def _register(name: str, pattern: str, starts: str, convert: Callable[[str], Any]) -> None:
    """Let PyYAML read, and quote where it is text, one type of scalar."""
    compiled = re.compile(rf"(?:{pattern})\Z", re.ASCII)
    for cls in (_Loader, _Dumper):
        cls.add_implicit_resolver(_TAG + name, compiled, ["", *starts] if name == "null" else list(starts))

    def construct(loader: _Loader, node: yaml.ScalarNode) -> Any:
        text = loader.construct_scalar(node)
        if not compiled.match(text):
            raise yaml.constructor.ConstructorError(None, None, f"{text!r} is no {name}", node.start_mark)
        return convert(text)

    _Loader.add_constructor(_TAG + name, construct)


for _name, _scalar in _SCALARS.items():
    _register(_name, *_scalar)
_Loader.add_implicit_resolver(_TAG + "merge", re.compile(r"<<\Z"), ["<"])
_Loader.add_constructor(_TAG + "merge", yaml.SafeLoader.construct_yaml_str)  # as a value it is text


def read_yaml(text: str) -> Any:
    """Plain data from one YAML document.

    Raises:
        ValueError: it is not YAML, gives a key twice, or nests too deeply to be read.
    """
    try:
        return yaml.load(text, _Loader)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        reasons = ", ".join(filter(None, (error.context, error.problem)))
        raise ValueError(f"line {mark.line + 1}, column {mark.column + 1}: {reasons}" if mark else reasons) from error
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from error


def write_yaml(data: Any) -> str:
    """One YAML document of plain data; readers of YAML 1.1 and of YAML 1.2 read the same from it."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False)
