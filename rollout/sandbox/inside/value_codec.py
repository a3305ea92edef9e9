"""Codec of Python values as lines of JSON, so that a program and its tests need not share an interpreter.

Plain values travel by value: numbers, text, bytes, lists, tuples, sets, dicts, ranges, decimals, fractions. Anything
else stays with the program and travels as a reference, which the test side sees as a `Remote`. Decoding builds plain
data only, so nothing that a program returns (an object with its own `__eq__`, a pickle) can act on the test side.
"""

import builtins
import json
import operator

_OPERATIONS = {
    "get": getattr,
    "set": setattr,
    "item": operator.getitem,
    "len": len,
    "iter": iter,
    "next": next,
    "call": lambda target, *arguments, **named: target(*arguments, **named),
}


class Remote:
    """Reference to a value that stays in the program: a function by name, or an object it returned.

    Operations are carried out over there; equality is not asked for: a remote object equals only itself.
    """

    def __init__(self, ask, address):
        object.__setattr__(self, "_remote", (ask, address))

    def _do(self, operation, *arguments, **named):
        ask, _ = object.__getattribute__(self, "_remote")
        return ask(operation, self, arguments, named)

    def __call__(self, *arguments, **named):
        return Remote._do(self, "call", *arguments, **named)

    def __getattr__(self, name):
        return Remote._do(self, "get", name)

    def __setattr__(self, name, value):
        Remote._do(self, "set", name, value)

    def __getitem__(self, key):
        return Remote._do(self, "item", key)

    def __len__(self):
        return Remote._do(self, "len")

    def __bool__(self):
        return True

    def __iter__(self):
        return Remote._do(self, "iter")

    def __next__(self):
        return Remote._do(self, "next")


def encode(value, keep=None):
    """Return `value` as JSON data. `keep` stores what cannot travel and return its number.

    Raises:
        TypeError: for such a value without `keep`.
        RecursionError: for a value nested too deeply, or holding itself.
    """
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, list):
        return [encode(item, keep) for item in value]
    for kind in (tuple, set, frozenset):
        if isinstance(value, kind):
            return {kind.__name__: [encode(item, keep) for item in value]}
    if isinstance(value, dict):
        return {"dict": [[encode(key, keep), encode(item, keep)] for key, item in value.items()]}
    if isinstance(value, (bytes, bytearray)):
        return {"bytes": value.hex()}
    if isinstance(value, complex):
        return {"complex": [value.real, value.imag]}
    if isinstance(value, range):
        return {"range": [value.start, value.stop, value.step]}
    if type(value) is Remote:
        return object.__getattribute__(value, "_remote")[1]
    if type(value).__name__ == "Decimal":
        return {"Decimal": str(value)}
    if type(value).__name__ == "Fraction":
        return {"Fraction": [value.numerator, value.denominator]}
    if keep is None:
        raise TypeError(f"cannot hand a {type(value).__name__} to the program")
    return {"ref": keep(value)}


def decode(data, remote):
    """Return the value that `encode` was given; `remote` makes one of an address (`{"name": ...}`, `{"ref": ...}`).

    Raises:
        ValueError, TypeError, KeyError: when `data` was not made by `encode`.
    """
    if isinstance(data, list):
        return [decode(item, remote) for item in data]
    if not isinstance(data, dict):
        return data
    ((tag, content),) = data.items()
    if tag in ("ref", "name"):
        return remote(data)
    if tag in ("tuple", "set", "frozenset"):
        return getattr(builtins, tag)(decode(item, remote) for item in content)
    if tag == "dict":
        return {decode(key, remote): decode(item, remote) for key, item in content}
    if tag == "bytes":
        return bytes.fromhex(content)
    if tag in ("complex", "range"):
        return getattr(builtins, tag)(*content)
    if tag == "Decimal":
        from decimal import Decimal

        return Decimal(content)
    if tag == "Fraction":
        from fractions import Fraction

        return Fraction(*content)
    raise ValueError(f"unknown tag {tag!r}")


def request(operation, target, arguments, named=None):
    """Return one request as a line. `target` is a name of the program or a `Remote`."""
    address = {"name": target} if isinstance(target, str) else encode(target)
    named = {key: encode(value) for key, value in (named or {}).items()}
    return json.dumps([operation, address, [encode(value) for value in arguments], named]).encode() + b"\n"


def ask_through(requests, replies):
    """Return a function that carries out an operation in the program at the other end of two files, for `Remote`.

    Lists, dicts and sets that the program changed in place are changed here too.
    """

    def ask(operation, target, arguments, named):
        requests.write(request(operation, target, arguments, named))
        requests.flush()
        line = replies.readline()
        if not line:
            raise RuntimeError("the program ended")
        reply = json.loads(line)
        if "error" in reply:
            name, message = reply["error"]
            kind = getattr(builtins, name, None)
            if isinstance(kind, type) and issubclass(kind, Exception):
                raise kind(message)
            raise RuntimeError(f"{name}: {message}")
        for position, changed in zip(reply["mutable"], reply["changed"], strict=True):
            mine, theirs = arguments[position], decode(changed, remote)
            if type(mine) is type(theirs) and mine != theirs:
                mine.clear()
                (mine.extend if isinstance(mine, list) else mine.update)(theirs)
        return decode(reply["value"], remote)

    def remote(address):
        return Remote(ask, address)

    return ask


def serve(names, requests, replies):
    """Answer requests about `names` (the program's globals) until there are no more."""
    kept = []

    def keep(value):
        kept.append(value)
        return len(kept) - 1

    def local(address):
        if "ref" in address:
            return kept[address["ref"]]
        name = address["name"]
        solution = names.get("Solution")
        if isinstance(solution, type) and any(name in vars(base) for base in solution.__mro__[:-1]):
            return getattr(solution(), name)
        if name not in names:
            raise NameError(f"name {name!r} is not defined")
        return names[name]

    for line in requests:
        try:
            operation, address, arguments, named = json.loads(line)
            arguments = [decode(value, local) for value in arguments]
            named = {key: decode(value, local) for key, value in named.items()}
            value = _OPERATIONS[operation](local(address), *arguments, **named)
            mutable = [at for at, value in enumerate(arguments) if type(value) in (list, dict, set)]
            changed = [encode(arguments[at], keep) for at in mutable]
            reply = json.dumps({"value": encode(value, keep), "mutable": mutable, "changed": changed})
        except MemoryError:
            raise
        except Exception as error:
            reply = json.dumps({"error": [type(error).__name__, str(error)[:500]]})
        replies.write(reply.encode() + b"\n")
        replies.flush()
