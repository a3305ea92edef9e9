"""Verdicts on programs that a model wrote: the sandbox runs untrusted code and says whether it passes its tests.

Guaranteed by both backends: a program cannot start processes, send signals, open sockets, use more than its limits,
reach the tests or the expected outputs, or outlive its verdict; and another program's verdict does not depend on it.

Not guarded against: a program sees the inputs it is tested with, so it can tell a test by its input; it can use the
CPU for its whole limit; and the kernel's own isolation may have a bug.

`Sandbox` judges batches; `programs` has the kinds of tests, `comparison` what counts as right, `backend` selects how
programs are isolated, `process` is one running sandbox, `inside` the code that runs in it.
"""

from .backend import Setting, diagnose_backends
from .process import Limits, SandboxError
from .programs import AssertTests, CallTests, Program, ScriptTests, Verdict
from .sandbox import Sandbox

__all__ = [
    "AssertTests",
    "CallTests",
    "Limits",
    "Program",
    "Sandbox",
    "SandboxError",
    "ScriptTests",
    "Setting",
    "Verdict",
    "diagnose_backends",
]
