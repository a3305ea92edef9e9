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
    except (SyntaxError, ValueError, OverflowError, RecursionError):
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


def _names_in(code):
    """Every name that a code object and those within it look up outside themselves."""
    names = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, type(code)):
            names |= _names_in(constant)
    return names


def run_tests(tests, setup, functions, verdict):
    """Tests against a program served at the other end of standard input and output.

    `setup` runs first, then `tests`. A name that they use and nobody on this side defines is the program's; so is
    every name in `functions`, even one that `setup` or Python defines too. Writes `passed`, or what went wrong, to
    the file descriptor `verdict`: the program has no way to reach it.
    """
    import wire

    replies, requests = _private_streams()
    sys.set_int_max_str_digits(0)
    ask = wire.ask_through(requests, replies)

    def body():
        first, second = compile(setup, "setup.py", "exec"), compile(tests, "tests.py", "exec")
        names = {"__name__": "__main__", "__builtins__": builtins}
        for name in _names_in(first) | _names_in(second):
            if name in sys.stdlib_module_names:
                names[name] = __import__(name)
            elif not hasattr(builtins, name) and not name.startswith("__"):
                names[name] = wire.Remote(ask, {"name": name})
        exec(first, names)
        names |= {name: wire.Remote(ask, {"name": name}) for name in functions}
        exec(second, names)

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
