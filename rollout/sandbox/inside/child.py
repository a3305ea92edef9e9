"""Bodies of a confined child: run a script, serve the functions of a program, run tests against such a server."""

import builtins
import os
import sys

_RECURSION_LIMIT = 600_000
"""Depth of calls, as verl has it; LiveCodeBench has 50,000. The stack has room for it where calls pass through C."""

_STREAMS = {"/dev/stdin": 0, "/dev/stdout": 1, "/dev/stderr": 2}
"""Files that a confined program cannot open by name, though they are its own."""

OK, FAILED, NO_PROGRAM, NO_MEMORY = 0, 1, 97, 98
"""Exit statuses. A program may fake them, for another reason of its own failure."""


def _execute(source, name, with_common_names):
    """Run a program's text as the module `name` and return its globals."""
    try:
        code = compile(source, "program.py", "exec")
    except (SyntaxError, ValueError, OverflowError, RecursionError, MemoryError):
        os._exit(NO_PROGRAM)
    builtins.exit = builtins.quit = sys.exit  # what `site` would have defined
    if with_common_names:
        import common_names

        vars(builtins).update(common_names.NAMES | vars(builtins))
    sys.setrecursionlimit(_RECURSION_LIMIT)
    sys.set_int_max_str_digits(0)
    sys.argv[:] = ["program.py"]
    sys.path.pop(0)  # where this file is
    module = type(sys)(name)
    sys.modules[name] = module
    exec(code, module.__dict__)
    return module.__dict__


def _leave(status):
    """End the process as the interpreter would, less the four milliseconds it spends on tearing itself down."""
    try:
        if "threading" in sys.modules:
            sys.modules["threading"]._shutdown()  # waits for threads that are no daemons
        if "atexit" in sys.modules:
            sys.modules["atexit"]._run_exitfuncs()
        sys.stdout.flush()
    except BaseException:
        status = status or FAILED
    os._exit(status)


def _guarded(body):
    """Run `body()` and return its exit status."""
    try:
        body()
    except SystemExit:  # with whatever status, as the judges of LiveCodeBench and verl take it
        return OK
    except MemoryError:
        return NO_MEMORY
    except BaseException:
        return FAILED
    return OK


def _open_own_streams(open_file):
    """Return `open`, for which the names of standard input and output mean what they are open as already."""

    def opened(file, *arguments, **settings):
        return open_file(_STREAMS.get(file, file) if isinstance(file, str) else file, *arguments, **settings)

    return opened


def run_script(source, with_common_names):
    """Run the program as a script, on standard input and output."""
    builtins.open = _open_own_streams(builtins.open)
    _leave(_guarded(lambda: _execute(source, "__main__", with_common_names)))


def _private_streams():
    """Return standard input and output as files of ours; the program's own are empty and go nowhere."""
    read, write = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    nothing = os.open("/dev/null", os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    return read, write


def serve_program(source, with_common_names=False):
    """Answer requests for the program's functions, from standard input to standard output."""
    import value_codec

    requests, replies = _private_streams()
    os._exit(_guarded(lambda: value_codec.serve(_execute(source, "program", with_common_names), requests, replies)))


def run_tests(tests, verdict):
    """Run tests against a program served at the other end of standard input and output.

    `tests["setup"]` runs first, then `tests["tests"]`. For the first, `borrowed` names are the program's and `modules`
    are imported; for the second, so are the names in `functions`, even where Python or the setup has them too. Writes
    `passed`, or what went wrong, to the file descriptor `verdict`: the program has no way to reach it.
    """
    import value_codec

    replies, requests = _private_streams()
    sys.set_int_max_str_digits(0)
    ask = value_codec.ask_through(requests, replies)

    def remote(names):
        return {name: value_codec.Remote(ask, {"name": name}) for name in names}

    def body():
        names = {"__name__": "__main__", "__builtins__": builtins} | remote(tests["borrowed"])
        names |= {name: __import__(name) for name in tests["modules"]}
        exec(compile(tests["setup"], "setup.py", "exec"), names)
        names |= remote(tests["functions"])
        exec(compile(tests["tests"], "tests.py", "exec"), names)

    try:
        body()
        said = "passed"
    except BaseException as error:
        line = f" in line {error.__traceback__.tb_next.tb_next.tb_lineno}" if _depth(error) > 2 else ""
        said = f"{type(error).__name__}{line}: {error}"[:300]
    os.write(verdict, said.encode("utf-8", "replace"))
    os._exit(OK)


def _depth(error):
    trace, depth = error.__traceback__, 0
    while trace:
        trace, depth = trace.tb_next, depth + 1
    return depth
