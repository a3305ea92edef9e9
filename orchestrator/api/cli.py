"""The `layersweep` command: the functions of `layersweep`, printed.

Exit codes: 0 done, 1 some run failed, 2 bad input, 3 stopped before the end; 141 where the reader of its output is
gone.
"""

import argparse
import os
import sys
from functools import partial

from layersweep.orchestrator.spec.errors import REFUSED, SpecError
from layersweep.orchestrator.spec.overrides import is_override
from layersweep.workers.storage.files import NoStore

from .arguments import make_parser
from .subcommands import COMMANDS, DEMO

__all__ = ["DEMO", "main"]

OF_ONE_SWEEP = ("report", "export", "responses", "rescore", "dissect", "compose", "serve")
"""Subcommands about a sweep that has begun, of which a spec with factors has several."""


def main(argv: list[str] | None = None) -> int:
    """Carry out a command line; returns the exit code."""
    parser = make_parser()
    args, rest = parser.parse_known_args(argv)
    if "words" in args:  # argparse takes the words after an option for strangers
        args.words += [word for word in rest if is_override(word)]
        rest = [word for word in rest if not is_override(word)]
    if rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if args.command in ("run", "resume", "serve"):
        from layersweep.orchestrator.execution.own_session import in_own_session, stoppable

        # Called by other code, as by a test, it stays in that process.
        sweep = partial(stoppable, partial(_carry_out, args))
        return in_own_session(sweep) if argv is None and getattr(args, "address", None) is None else sweep()
    try:
        return _carry_out(args)
    except KeyboardInterrupt:
        kept = "; what is scored is kept, and the same command goes on" if getattr(args, "screen", None) else ""
        print(f"layersweep: stopped{kept}", file=sys.stderr)
        return 130


def _carry_out(args: argparse.Namespace) -> int:
    """Run a command; errors that the user can fix are printed. Returns the exit code."""
    try:
        if args.command in OF_ONE_SWEEP:
            from layersweep.orchestrator.spec.factorial import check_single

            check_single(args.sweep)
        code = COMMANDS[args.command](args)
        sys.stdout.flush()
        return code
    except SpecError as error:
        for problem in error.problems:
            print(f"layersweep: {problem}", file=sys.stderr)
        return REFUSED
    except NoStore as error:
        print(f"layersweep: {error}", file=sys.stderr)
        return REFUSED
    except BrokenPipeError:  # `layersweep schema | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes it once more at its end
        return 141


if __name__ == "__main__":
    sys.exit(main())
