"""What a confined child does: run a script, serve the functions of a program, or run tests against such a server."""

import builtins
import os
import sys

OK, FAILED, NO_PROGRAM, NO_MEMORY = 0, 1, 97, 98
"""Exit statuses. A program may fake them; all it can gain is another reason for its own failure."""


def _execute(source, name):
    """Runs a program's text as the module `name` and returns its globals."""
    try:
        code = compile(source, "program.py", "exec")
    except (SyntaxError, ValueError, OverflowError, RecursionError, MemoryError):
        os._exit(NO_PROGRAM)
    sys.argv[:] = ["program.py"]
    sys.path.pop(0)  # where this file is
    module = type(sys)(name)
    sys.modules[name] = module
    exec(code, module.__dict__)
    return module.__dict__


def _leave(status):
    """Ends the process as the interpreter would, less the four milliseconds it spends on tearing itself down."""
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
    """The exit status of `body()`."""
    try:
        body()
    except SystemExit as leaving:
        code = leaving.code
        return OK if code is None else code & 0xFF if isinstance(code, int) else FAILED
    except MemoryError:
        return NO_MEMORY
    except BaseException:
        return FAILED
    return OK


def run_script(source):
    """The program as a script, on standard input and output."""
    builtins.exit = builtins.quit = sys.exit  # what `site` would have defined
    _leave(_guarded(lambda: _execute(source, "__main__")))


def _private_streams():
    """Standard input and output as files of ours; the program's own are empty and go nowhere."""
    read, write = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    nothing = os.open("/dev/null", os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    return read, write


def serve_program(source):
    """The program's functions, asked for on standard input and answered on standard output."""
    import wire

    requests, replies = _private_streams()
    builtins.exit = builtins.quit = sys.exit
    sys.set_int_max_str_digits(0)
    os._exit(_guarded(lambda: wire.serve(_execute(source, "program"), requests, replies)))


def run_tests(tests, verdict):
    """Tests against a program served at the other end of standard input and output.

    `tests["setup"]` runs first, then `tests["tests"]`. For the first, `borrowed` names are the program's and `modules`
    are imported; for the second, so are the names in `functions`, even where Python or the setup has them too. Writes
    `passed`, or what went wrong, to the file descriptor `verdict`: the program has no way to reach it.
    """
    import wire

    replies, requests = _private_streams()
    sys.set_int_max_str_digits(0)
    ask = wire.ask_through(requests, replies)

    def remote(names):
        return {name: wire.Remote(ask, {"name": name}) for name in names}

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
