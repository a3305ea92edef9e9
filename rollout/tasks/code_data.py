"""Rows of the code data sets in use: what the model is asked, and the tests that its program must pass.

Understood, whether as columns of a row or as `reward_model.ground_truth`: HumanEval (`prompt, test, entry_point`),
MBPP (`text` or `prompt`, `test_list`, `code`), LiveCodeBench (`question_content, starter_code, public_test_cases,
private_test_cases, metadata`), DeepCoder (`problem, starter_code, tests`) and APPS, TACO or PRIME (`inputs, outputs,
fn_name`, also within `input_output`).
"""

import ast
import base64
import json
import pickletools
import re
import zlib
from typing import Any

from layersweep.rollout.data.data_config import Columns
from layersweep.rollout.data.row_prompts import ground_truth
from layersweep.rollout.data.row_readers import value_at
from layersweep.rollout.sandbox import AssertTests, CallTests, Program, ScriptTests

COLUMNS = ("question_content", "problem", "text", "starter_code", "fn_name", "metadata", "public_test_cases",
           "private_test_cases", "input_output", "tests", "test", "entry_point", "test_list", "test_imports",
           "test_setup_code", "code", "canonical_solution", "solutions", "inputs", "outputs")  # fmt: skip
"""Read of a row beside `data.columns`."""
_MAX_UNPACKED = 1 << 28
_TEXT_OPCODES = {"UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"}
_IDLE_OPCODES = {"PROTO", "FRAME", "PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE", "STOP"}


def question_of(raw: dict[str, Any], columns: Columns) -> dict[str, Any]:
    """Return the row with the question as the model gets it, in the prompt column; rows that have one keep it."""
    if raw.get(columns.prompt) is not None and not isinstance(raw[columns.prompt], str):
        return raw
    names = (columns.prompt, *columns.questions, "question_content", "text")
    text = next((text for name in names if isinstance(text := value_at(raw, name), str)), None)
    if text is None:
        return raw
    if isinstance(raw.get("test_list"), list):
        text = "\n".join([text, "", "The program must pass these tests:", *map(str, raw["test_list"])])
    if isinstance(raw.get("starter_code"), str) and raw["starter_code"].strip():
        text += f"\n\nStart from this code:\n```python\n{raw['starter_code'].rstrip()}\n```"
    return raw | {columns.prompt: text}


def reference_solution(raw: dict[str, Any]) -> str | None:
    """Return the row's own right program: HumanEval's, MBPP's, or the first of APPS's and DeepCoder's."""
    found = raw.get("canonical_solution") or raw.get("code") or raw.get("solutions")
    if isinstance(found, str) and found is raw.get("solutions"):
        try:
            found = json.loads(found)
        except ValueError:
            return None
    if isinstance(found, list):
        found = next(iter(found), None)
    return found if isinstance(found, str) else None


def parse_tests(raw: dict[str, Any], columns: Columns) -> dict[str, Any]:
    """Return the tests of a row, as JSON-like data for `with_program`.

    Raises:
        ValueError: when there are none, or none that can be understood.
    """
    try:
        if isinstance(raw.get("reward_model"), dict):
            found = _tests(ground_truth(raw, columns), raw)
        elif "private_test_cases" in raw or "public_test_cases" in raw:
            cases = [case for name in ("public", "private") for case in _unpacked(raw.get(f"{name}_test_cases"))]
            found = _tests(cases, raw)
        elif raw.get("input_output") or raw.get("tests"):
            found = _tests(raw.get("input_output") or raw["tests"], raw)
        elif "test_list" in raw or "test" in raw:
            found = _tests(raw, raw)
        else:
            found = _tests(ground_truth(raw, columns), raw)
    except (KeyError, TypeError, AttributeError, IndexError, SyntaxError, zlib.error) as error:
        raise ValueError(f"tests that cannot be understood ({type(error).__name__}: {error})") from error
    if not found.get("outputs", True):
        raise ValueError("no tests")
    return found


def with_program(tests: dict[str, Any], program: str) -> Program:
    """Return the tests of `parse_tests` for a program."""
    if tests["kind"] == "script":
        return ScriptTests(program, tuple(tests["inputs"]), tuple(tests["outputs"]), common_names=True)
    if tests["kind"] == "function":
        return CallTests(
            program,
            tests["function"],
            tuple(map(tuple, tests["inputs"])),
            tuple(tests["outputs"]),
            wrapped=tests["wrapped"],
            common_names=True,
        )
    return AssertTests(program, tests["tests"], tuple(tests["functions"]), tests["setup"])


def functions_of(tests: dict[str, Any]) -> tuple[str, ...]:
    """Return the names of the functions under test; none for a script."""
    return tuple(tests["functions"]) if tests["kind"] == "asserts" else tuple(filter(None, [tests.get("function")]))


def _tests(value: Any, raw: dict[str, Any]) -> dict[str, Any]:
    if isinstance(value, str):
        if value.lstrip().startswith(("{", "[")):
            return _tests(json.loads(value), raw)
        return _asserts([value], raw)
    if isinstance(value, list) and value and all(isinstance(item, str) for item in value):
        return _asserts(value, raw)
    if isinstance(value, list):
        return _cases(value, raw)
    if "inputs" in value:
        return _pairs(value["inputs"], value["outputs"], value.get("fn_name"))
    if "test" in value:
        name, prompt = value["entry_point"], value.get("prompt", raw.get("prompt"))
        prompt = prompt if isinstance(prompt, str) else ""
        tests = _with_asserts(f"{value['test']}\n\ncheck({name})\n")
        ast.parse(prompt)
        return {"kind": "asserts", "tests": tests, "functions": [name], "setup": prompt, "stub": prompt}
    return _asserts(value["test_list"], value)


def _with_asserts(source: str) -> str:
    if not any(isinstance(node, ast.Assert) for node in ast.walk(ast.parse(source))):
        raise ValueError("tests without a single assert")
    return source


def _asserts(tests: list[str], raw: dict[str, Any]) -> dict[str, Any]:
    """Make tests of statements; under test are the functions that the reference solution defines, where it is given.

    A name that the tests call and nothing else defines is the program's in any case.
    """
    source = _with_asserts("\n".join(tests))
    reference = raw.get("code") if isinstance(raw.get("code"), str) else ""
    defined = [node.name for node in ast.parse(reference).body if isinstance(node, (ast.FunctionDef, ast.ClassDef))]
    setup = "\n".join([*(raw.get("test_imports") or []), raw.get("test_setup_code") or ""])
    ast.parse(setup)
    return {"kind": "asserts", "tests": source, "functions": defined, "setup": setup}


def _cases(cases: list[dict[str, Any]], raw: dict[str, Any]) -> dict[str, Any]:
    """Make tests of LiveCodeBench's and PrimeIntellect's lists of cases."""
    function = None
    for case in cases:
        if case.get("testtype", case.get("type")) in ("functional", "function_call"):
            metadata = case.get("metadata") or raw.get("metadata") or {}
            metadata = json.loads(metadata) if isinstance(metadata, str) else metadata
            function = case.get("fn_name") or metadata["func_name"]
    return _pairs([case["input"] for case in cases], [case["output"] for case in cases], function)


def _pairs(inputs: list[Any], outputs: list[Any], function: str | None) -> dict[str, Any]:
    if len(inputs) != len(outputs):
        raise ValueError(f"{len(inputs)} test inputs but {len(outputs)} outputs")
    if not function:
        return {"kind": "script", "inputs": [*map(_text, inputs)], "outputs": [*map(_text, outputs)]}
    if not isinstance(function, str) or not function.isidentifier():
        raise ValueError(f"the tested function's name {function!r:.60} is no name")
    wrapped = False
    if all(isinstance(value, str) for value in inputs):
        # LiveCodeBench: one JSON value a line.
        inputs = [[json.loads(line) for line in value.split("\n") if line.strip()] for value in inputs]
        outputs = [json.loads(value) if isinstance(value, str) else value for value in outputs]
    else:
        inputs = [[_with_integer_keys(argument) for argument in value] for value in inputs]
        wrapped = all(isinstance(value, list) and len(value) == 1 for value in outputs)
    return {"kind": "function", "function": function, "inputs": inputs, "outputs": outputs, "wrapped": wrapped}


def _with_integer_keys(argument: Any) -> Any:
    """Undo that JSON makes text of a dict's integer keys, as the judges of APPS and verl do."""
    if isinstance(argument, dict) and argument and all(re.fullmatch(r"-?\d{1,18}", key) for key in argument):
        return {int(key): value for key, value in argument.items()}
    return argument


def _text(value: Any) -> str:
    return "\n".join(map(_text, value)) if isinstance(value, list) else str(value)


def _unpacked(cases: Any) -> list[dict[str, Any]]:
    """Unpack LiveCodeBench's cases: a list, JSON, or JSON pickled, compressed and in base64."""
    if not isinstance(cases, str):
        return cases or []
    if not cases.lstrip().startswith("["):
        cases = _pickled_text(zlib.decompressobj().decompress(base64.b64decode(cases), _MAX_UNPACKED))
    return json.loads(cases)


def _pickled_text(data: bytes) -> str:
    """Return the one text that a pickle holds; its opcodes are read, never run."""
    texts = []
    for opcode, value, _ in pickletools.genops(data):
        if opcode.name in _TEXT_OPCODES:
            texts.append(value)
        elif opcode.name not in _IDLE_OPCODES:
            raise ValueError(f"test cases whose pickle asks for {opcode.name}, where one text is expected")
    if len(texts) != 1:
        raise ValueError(f"test cases whose pickle holds {len(texts)} texts, where one is expected")
    return texts[0]
