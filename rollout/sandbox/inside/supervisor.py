"""The trusted process of a sandbox: reads cases, forks a confined child for each, says how it went.

It speaks with its caller in frames of marshalled values on its standard input and output, which no child can reach.
A child has one pipe in, one pipe out and nothing else; its output is bytes to the warden, never anything it acts on.
"""

import gc
import marshal
import os
import resource
import select
import sys
import time

import confine
import guest


class Unconfined(Exception):
    """A child could not be confined, so its program did not run. It says why."""


def read_frame():
    """The next value from the caller; ends the process when there is none."""
    frame = _read(int.from_bytes(_read(8), "big"))
    return marshal.loads(frame)


def write_frame(value):
    """Sends a value to the caller."""
    data = marshal.dumps(value)
    view = memoryview(len(data).to_bytes(8, "big") + data)
    while view:
        view = view[os.write(1, view) :]


def _read(size):
    parts = []
    while size:
        part = os.read(0, min(size, 1 << 20))
        if not part:
            sys.exit(0)
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


class Supervisor:
    """Runs cases under the rules that the caller's first frame set."""

    def __init__(self, rules):
        self.limits, self.uid, self.seconds = rules["limits"], rules["uid"], rules["seconds"]
        self.filter = confine.seccomp_filter(rules["may_write"])
        self.landlock = confine.landlock_rules(rules["readable"]) if rules["landlock"] else None
        self.nowhere = os.open("/dev/null", os.O_RDWR)
        self.may_write, self.untouched = rules["may_write"], os.stat("/tmp").st_ctime_ns

    def dirty(self):
        """Whether a program wrote to /tmp, even if it removed what it wrote."""
        return self.may_write and os.stat("/tmp").st_ctime_ns != self.untouched

    def run(self, case):
        """How a case ended, and its output. A case is a script with its input, or a program with its requests."""
        feed, into = os.pipe()
        out, result = os.pipe()
        child = self._spawn(guest.run_script if case["kind"] == "script" else guest.serve_program, feed, result)
        output, ended = self._collect(child, out, into, case["input"], case["output_bytes"])
        return ended or self._reap(child), output

    def test(self):
        """How the program ended, and the verdict of the tests."""
        feed, into = os.pipe()
        out, result = os.pipe()
        program = self._spawn(guest.serve_program, feed, result)
        verdict, said = os.pipe()
        judge = self._spawn(lambda tests: guest.run_tests(tests, said), out, into, said)
        output, ended = self._collect(judge, verdict, None, b"", 4096)
        ended = ended or self._reap(judge)
        how = self._reap(program)
        return (how if ended == "ok" and how not in ("ok", "killed") else ended), output

    def _spawn(self, body, stdin, stdout, extra=None):
        """A confined child that runs `body` on the caller's next frame, with these descriptors; they are closed here.

        The child reads that frame itself, so the memory of this process, which every child inherits, never held a
        program or a test.
        """
        failure, failed = os.pipe()
        uid = self.uid if extra is None or self.uid is None else self.uid + 1
        child = os.fork()
        if child == 0:
            try:
                work = read_frame()
                for number, source in enumerate((stdin, stdout, self.nowhere)):
                    os.dup2(source, number)
                kept = sorted({failed, self.landlock, extra} - {None})
                for low, high in zip([3, *(fd + 1 for fd in kept)], [*kept, 256], strict=True):
                    os.closerange(low, high)
                os.chdir("/tmp")
                confine.confine(self.limits, uid, self.landlock, self.filter)
                if self.landlock is not None:
                    os.close(self.landlock)
                os.close(failed)
            except BaseException as error:
                os.write(failed, str(error).encode())
                os._exit(guest.FAILED)
            body(work)
        for fd in {failed, stdin, stdout, extra} - {None}:
            os.close(fd)
        reason = os.read(failure, 4096)
        os.close(failure)
        if reason:
            raise Unconfined(reason.decode())
        return child

    def _collect(self, child, out, into, data, output_bytes):
        """The child's output until it ends, and why it was ended: `time`, `output`, or None if it did so itself."""
        deadline = time.monotonic() + self.seconds
        left, output, ended, gone = memoryview(data), bytearray(), None, os.pidfd_open(child)
        poller = select.poll()
        poller.register(gone, select.POLLIN)
        poller.register(out, select.POLLIN)
        if into is not None:
            os.set_blocking(into, False)
            poller.register(into, select.POLLOUT)
        running = reading = True
        while ended is None and (running or reading):
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                ended = "time"
            for fd, _ in poller.poll(max(0, remaining * 1000)):
                if fd == gone:
                    running = False
                    poller.unregister(gone)
                elif fd == out:
                    part = os.read(out, 1 << 16)
                    output += part
                    if len(output) > output_bytes:
                        ended = "output"
                    if not part:
                        reading = False
                        poller.unregister(out)
                elif fd == into:
                    try:
                        left = left[os.write(into, left[: 1 << 16]) :]
                    except BrokenPipeError:
                        left = left[:0]
                    if not left:
                        poller.unregister(into)
                        os.close(into)
                        into = None
        if ended is not None:
            self._reap(child)
        for fd in {out, into, gone} - {None}:
            os.close(fd)
        return bytes(output[:output_bytes]), ended

    def _reap(self, child):
        """Kills the child if it still runs, and says how it ended."""
        os.kill(child, 9)
        _, status, usage = os.wait4(child, 0)
        if os.WIFEXITED(status):
            code = os.WEXITSTATUS(status)
            return {guest.OK: "ok", guest.NO_PROGRAM: "no program", guest.NO_MEMORY: "memory"}.get(code, "failed")
        # The kernel enforces the limit by clock ticks, which on a busy virtual machine run ahead of the time used.
        if usage.ru_utime + usage.ru_stime > 0.5 * self.limits["cpu"]:
            return "time"
        return "killed" if os.WTERMSIG(status) == 9 else "crashed"


def main():
    """Serves one caller until it closes the connection."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    confine.die_with_parent()
    try:
        warden = Supervisor(read_frame())
    except OSError as error:
        write_frame(("error", str(error).encode(), False))
        return
    write_frame(("ready", b"", False))
    while True:
        case = read_frame()
        if case["kind"] != "script":
            import wire  # noqa: F401 - once here rather than in every child
        gc.freeze()  # what exists by now is shared with the children: leave its pages alone
        try:
            answer = warden.test() if case["kind"] == "tests" else warden.run(case)
        except Unconfined as error:
            answer = ("error", str(error).encode())
        write_frame((*answer, warden.dirty()))
