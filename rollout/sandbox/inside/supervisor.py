"""The trusted process of a sandbox: reads cases, forks a confined child for each, says how it ended.

It speaks with its caller in frames of marshalled values on its standard input and output, which no child can reach.
A child has one pipe in, one pipe out and nothing else; its output is bytes to the supervisor, never anything it acts
on. No read or write of such a pipe blocks, and clocks are looked at between them: a child may open its own pipe once
more and take bytes away.
"""

import gc
import marshal
import math
import os
import resource
import select
import sys
import time

import child
import confine

_LEAST_WAIT = 0.01
"""Seconds; else a child that sleeps with hardly any CPU time left would be looked at all the time."""
_MOST_WAITING = 30
"""Wall time of a child that computes, over its CPU time, up to which the machine counts as busy."""


class Unconfined(Exception):
    """A child could not be confined, so its program did not run. The message says why."""


def read_frame():
    """Return the next value from the caller; end the process when there is none."""
    frame = _read(int.from_bytes(_read(8), "big"))
    return marshal.loads(frame)


def write_frame(value):
    """Send a value to the caller."""
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


class Clock:
    """Time that children have left: for the present call, and for all calls together.

    CPU time is the kernel's exact count; RLIMIT_CPU counts clock ticks, which on a busy virtual machine run ahead of
    the time used. Wall time bounds what sleeps or waits: time in which a child gets its turn, however seldom, on a busy
    machine does not count.
    """

    def __init__(self, pids, cpu_seconds, wall_seconds, budget):
        """Start with the first call. All calls together may take `budget` times the limits of one."""
        self.cpu_clocks = [(~pid << 3) | 2 for pid in pids]  # the kernel's number of a process's CPU clock
        self.limits, self.budget = (cpu_seconds, wall_seconds), budget
        self.start = self._now()
        self.next_call()

    def next_call(self):
        """Start the limits of one call anew."""
        self.call_start = self._now()

    def seconds_left(self):
        """Return the least seconds until a limit can run out for a program of one thread; 0 or less when one has."""
        now = self._now()
        return min(
            limit - (moment - start)
            for factor, starts in ((1, self.call_start), (self.budget, self.start))
            for limit, moment, start in zip(self._all_limits(factor), now, starts, strict=True)
        )

    def _all_limits(self, factor):
        return [self.limits[0] * factor] * len(self.cpu_clocks) + [self.limits[1] * factor]

    def _now(self):
        cpu = [*map(time.clock_gettime, self.cpu_clocks)]
        return [*cpu, time.monotonic() - _MOST_WAITING * sum(cpu)]


class Supervisor:
    """Runs cases under the rules that the caller's first frame set."""

    def __init__(self, rules):
        self.limits, self.uid = rules["limits"], rules["uid"]
        self.cpu_seconds, self.wall_seconds = rules["cpu_seconds"], rules["wall_seconds"]
        self.filter = confine.seccomp_filter(rules["may_write"])
        self.landlock = confine.landlock_rules(rules["readable"]) if rules["landlock"] else None
        self.null_device = os.open("/dev/null", os.O_RDWR)
        self.may_write, self.untouched = rules["may_write"], os.stat("/tmp").st_ctime_ns

    def dirty(self):
        """Return whether a program wrote to /tmp, even if it removed what it wrote."""
        return self.may_write and os.stat("/tmp").st_ctime_ns != self.untouched

    def run(self, case):
        """Run a script with its input, or a program with its requests; return how it ended, and its output."""
        feed, into = os.pipe()
        out, result = os.pipe()
        body = child.run_script if case["kind"] == "script" else child.serve_program
        pid = self._spawn(lambda program: body(program, case["common_names"]), feed, result, budget=case["budget"])
        output, ended = self._collect([pid], out, into, case["input"], case["output_bytes"], case["budget"])
        return ended or self._reap(pid, case["budget"]), output

    def test(self):
        """Run tests against a program; return how the program ended, and the verdict of the tests."""
        feed, into = os.pipe()
        out, result = os.pipe()
        program = self._spawn(child.serve_program, feed, result)
        verdict, said = os.pipe()
        tests = self._spawn(lambda tests: child.run_tests(tests, said), out, into, said)
        output, ended = self._collect([tests, program], verdict, None, b"", 4096)
        ended = ended or self._reap(tests)
        how = self._reap(program)
        return (how if ended == "ok" and how not in ("ok", "killed") else ended), output

    def _spawn(self, body, stdin, stdout, extra=None, budget=1):
        """Start a confined child that runs `body` on the caller's next frame; these descriptors are closed here.

        The child reads that frame itself, so the memory of this process, which every child inherits, never held a
        program or a test.
        """
        failure, failed = os.pipe()
        uid = self.uid if extra is None or self.uid is None else self.uid + 1
        limits = self.limits | {"cpu": 2 * self.cpu_seconds * budget + 2}  # where this process could not see to it
        pid = os.fork()
        if pid == 0:
            try:
                work = read_frame()
                for number, source in enumerate((stdin, stdout, self.null_device)):
                    os.dup2(source, number)
                kept = sorted({failed, self.landlock, extra} - {None})
                for low, high in zip([3, *(fd + 1 for fd in kept)], [*kept, 256], strict=True):
                    os.closerange(low, high)
                os.chdir("/tmp")
                confine.confine(limits, uid, self.landlock, self.filter)
                if self.landlock is not None:
                    os.close(self.landlock)
                os.close(failed)
            except BaseException as error:
                os.write(failed, str(error).encode())
                os._exit(child.FAILED)
            body(work)
        for fd in {failed, stdin, stdout, extra} - {None}:
            os.close(fd)
        reason = os.read(failure, 4096)
        os.close(failure)
        if reason:
            raise Unconfined(reason.decode())
        return pid

    def _collect(self, pids, out, into, data, output_bytes, budget=1):
        """Feed `data` to the first child and read its output until it ends.

        A line of output ends a call. Returns the output, and why the child was ended: `time`, `output`, or None if it
        ended by itself.
        """
        clock = Clock(pids, self.cpu_seconds, self.wall_seconds, budget)
        left, output, ended, gone = memoryview(data), bytearray(), None, os.pidfd_open(pids[0])
        poller = select.poll()
        poller.register(gone, select.POLLIN)
        os.set_blocking(out, False)
        poller.register(out, select.POLLIN)
        if into is not None:
            os.set_blocking(into, False)
            poller.register(into, select.POLLOUT)
        running = reading = True
        while ended is None and (running or reading):
            if (seconds := clock.seconds_left()) <= 0:
                ended = "time"
                break
            for fd, _ in poller.poll(math.ceil(1000 * max(seconds, _LEAST_WAIT))):
                if fd == gone:
                    running = False
                    poller.unregister(gone)
                elif fd == out:
                    try:
                        part = os.read(out, 1 << 16)
                    except BlockingIOError:  # the child read it back
                        continue
                    output += part
                    if len(output) > output_bytes:
                        ended = "output"
                    if b"\n" in part:
                        clock.next_call()
                    if not part:
                        reading = False
                        poller.unregister(out)
                elif fd == into:
                    try:
                        left = left[os.write(into, left[: 1 << 16]) :]
                    except BlockingIOError:
                        continue
                    except BrokenPipeError:
                        left = left[:0]
                    if not left:
                        poller.unregister(into)
                        os.close(into)
                        into = None
        if ended is not None:
            self._reap(pids[0])
        for fd in {out, into, gone} - {None}:
            os.close(fd)
        return bytes(output[:output_bytes]), ended

    def _reap(self, pid, budget=1):
        """Kill the child if it still runs, and say how it ended."""
        os.kill(pid, 9)
        _, status, usage = os.wait4(pid, 0)
        if os.WIFEXITED(status):
            code = os.WEXITSTATUS(status)
            return {child.OK: "ok", child.NO_PROGRAM: "no program", child.NO_MEMORY: "memory"}.get(code, "failed")
        if usage.ru_utime + usage.ru_stime > self.cpu_seconds * budget:
            return "time"
        return "killed" if os.WTERMSIG(status) == 9 else "crashed"


def main():
    """Serve one caller until it closes the connection."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    confine.die_with_parent()
    try:
        supervisor = Supervisor(read_frame())
    except OSError as error:
        write_frame(("error", str(error).encode(), False))
        return
    write_frame(("ready", b"", False))
    while True:
        case = read_frame()
        # Imported here rather than in every child:
        if case["kind"] != "script":
            import value_codec  # noqa: F401
        if case["common_names"]:
            import common_names  # noqa: F401
        gc.freeze()  # what exists by now is shared with the children: leave its pages alone
        try:
            answer = supervisor.test() if case["kind"] == "tests" else supervisor.run(case)
        except Unconfined as error:
            answer = ("error", str(error).encode())
        write_frame((*answer, supervisor.dirty()))
