"""The YAML of specs: examples of the YAML 1.2 specification's core schema (10.3.2), and keys that are given twice."""

import math

import pytest
import yaml

from layersweep.orchestrator.spec.yaml_core import read_yaml, write_yaml


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("~", None), ("null", None), ("NULL", None), ("", None), ("true", True), ("FALSE", False),
        ("yes", "yes"), ("No", "No"), ("on", "on"), ("off", "off"), ("y", "y"),
        ("0", 0), ("-19", -19), ("+12", 12), ("010", 10), ("0o7", 7), ("0x3A", 58), ("0b11", "0b11"),
        ("0.", 0.0), ("-0.0", -0.0), (".5", 0.5), ("+12e03", 12000.0), ("-2E+05", -200000.0), ("1e-5", 1e-5),
        (".inf", math.inf), ("-.Inf", -math.inf), ("+.INF", math.inf),
        ("1:4", "1:4"), ("1:30:00", "1:30:00"), ("1_000", "1_000"), ("2001-12-14", "2001-12-14"), ("=", "="),
        ("'12'", "12"), ("!!str 12", "12"), ("!!float 12", 12.0),
    ],
)  # fmt: skip
def test_scalars_of_the_core_schema(text, value):
    found = read_yaml(f"key: {text}")["key"]
    assert found == value and type(found) is type(value)


def test_not_a_number():
    assert math.isnan(read_yaml(".nan"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3", "the key 'a' is given twice, on lines 1 and 3"),
        ("x:\n  - {b: 1}\n  - b: 1\n    c: 2\n    'b': 3", "the key 'b' is given twice, on lines 3 and 5"),
        ("{a: 1, a: 1}", "on lines 1 and 1"),
        ("1: a\n1: b", "the key '1' is given twice"),
        ("[" * 20_000, "nested too deeply"),
        ("{a: " * 20_000, "nested too deeply"),
        ("9" * 5_000, "4300"),
        ("a: [", "line 1"),
        ("a: 1\n---\nb: 2", "single document"),
        ("!!python/object/apply:os.system ['true']", "could not determine a constructor"),
        ("!!timestamp x", "could not determine a constructor"),
        ("!!int x", "'x' is no int"),
        ("!!bool x", "'x' is no bool"),
        ("*a", "undefined alias"),
        ("? [1]\n: 2", "unhashable"),
        ("\x00", "special characters"),
    ],
)
def test_what_is_refused(text, message):
    """Duplicates: pyyaml #165."""
    with pytest.raises(ValueError, match=message) as error:
        read_yaml(text)
    assert "\n" not in str(error.value)


def test_merge_keys_may_be_overridden():
    """`b` of the anchor and the own `b` are not twice the same key; `<<` itself twice is."""
    assert read_yaml("x: &x {a: 1, b: 2}\ny: {<<: *x, b: 3}")["y"] == {"a": 1, "b": 3}
    with pytest.raises(ValueError, match="given twice"):
        read_yaml("x: &x {a: 1}\ny: {<<: *x, <<: *x}")


def test_what_is_written_is_read_alike_by_both_versions():
    """1.1 reads the first line's texts as something else where they are plain, 1.2 the second line's."""
    data = [
        *("yes", "off", "1:4", "1_000", "2001-12-14", "=", "0b1", "<<", "~"),
        *("1e-5", "0o7", "-2E+05", ".5", "12.", "null", "True", ""),
        *(None, True, 5e-6, 1e22, 10, -3, 0.1, math.inf, {"a": ["b: c", "#", "- x", "ü\n"]}),
    ]
    assert read_yaml(write_yaml(data)) == data
    assert yaml.safe_load(write_yaml(data)) == data
