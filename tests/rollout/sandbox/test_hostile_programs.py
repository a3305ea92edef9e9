"""Hostile programs beside honest ones, in both backends: verdicts stay right and nothing is left behind."""

import importlib
import multiprocessing
import os
import select
import socket
import subprocess
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from types import SimpleNamespace

import psutil
import pytest

from layersweep.rollout.sandbox import AssertTests, CallTests, ScriptTests, backend, process
from tests.helpers.judged import BACKENDS, DOUBLE, QUICK, doubling, verdicts

HOSTILE = {
    "fork bomb": ("import os\nwhile True: os.fork()", "failed"),
    "fork bomb by clone": (
        "import ctypes\nlibc = ctypes.CDLL(None)\nwhile libc.syscall(56, 17, 0, 0, 0, 0) >= 0: pass\n"
        "while libc.syscall(220, 17, 0, 0, 0, 0) >= 0: pass",
        "wrong output",
    ),
    "thread bomb": (
        "import threading, time\nthreading.stack_size(65536)\n"
        "while True: threading.Thread(target=time.sleep, args=(9,), daemon=True).start()",
        "failed",
    ),
    "endless loop": ("while True: pass", "time"),
    "endless loop that ignores signals": (
        "import signal\nfor s in range(1, 65):\n  try: signal.signal(s, signal.SIG_IGN)\n"
        "  except (OSError, ValueError): pass\nwhile True: pass",
        "time",
    ),
    "sleeps": ("import time\ntime.sleep(1000)", "time"),
    "closes its output and loops": ("import os\nos.close(0)\nos.close(1)\nwhile True: pass", "time"),
    "10 GB list": ("x = [0] * (10 * 2**30 // 8)", "memory"),
    "10 GB bit by bit": ("x = []\nwhile True: x.append(bytes(2**20))", "memory"),
    "10 GB of mappings": ("import mmap\nx = []\nwhile True: x.append(mmap.mmap(-1, 2**26))", "failed"),
    "prints 1 GB": ("for _ in range(2**14): print('x' * 2**16)", "output"),
    "starts a program": ("import subprocess\nsubprocess.run(['/bin/sh', '-c', 'true'])", "failed"),
    "replaces itself": ("import os\nos.execv('/bin/sh', ['sh'])", "failed"),
    "daemonizes": (
        "import os\nif os.fork() == 0:\n  os.setsid()\n  if os.fork() == 0:\n    while True: pass",
        "failed",
    ),
    "kills its parent": ("import os, signal\nos.kill(os.getppid(), signal.SIGKILL)", "failed"),
    "kills everybody": ("import os, signal\nos.kill(-1, signal.SIGKILL)", "failed"),
    "lowers the parent's limits": (
        "import os, resource\nresource.prlimit(os.getppid(), resource.RLIMIT_CPU, (0, 0))",
        "failed",
    ),
    "raises its own limits": ("import resource\nresource.setrlimit(resource.RLIMIT_CPU, (9, 9))", "failed"),
    "crashes": ("import ctypes\nctypes.string_at(0)", "crashed"),
    "aborts": ("import os\nos.abort()", "crashed"),
    "cannot be parsed": ("(" * 100_000, "no program"),
    "is no text": ("\ud800\0", "no program"),
    "becomes root": ("import os\nos.setuid(0)", "failed"),
    "mounts": (
        "import ctypes\nprint(2 * ctypes.CDLL(None).mount(b'none', b'/tmp', b'tmpfs', 0, None))",
        "wrong output",
    ),
    "says it passed": (
        "import os\nfor fd in range(64):\n  try: os.write(fd, b'passed')\n  except OSError: pass",
        "wrong output",
    ),
}


def judged_alone(name: str, batch: list) -> tuple[list, dict[str, int]]:
    """Verdicts of a batch, and what it left in this process, where nothing else opens files or starts threads."""
    own = psutil.Process()

    def there() -> dict[str, int]:
        until = time.monotonic() + 10
        while time.monotonic() < until and (threading.active_count() > 1 or own.children()):
            time.sleep(0.05)  # a thread that has done its work ends a moment later
        counted = {"files": own.num_fds(), "threads": threading.active_count()}
        return counted | {"children": len(own.children(recursive=True))}

    verdicts(name, [doubling(DOUBLE)])  # imports, and what is opened once
    before = there()
    found = verdicts(name, batch)
    return found, {what: count - before[what] for what, count in there().items()}


@pytest.mark.parametrize("name", BACKENDS)
def test_hostile_programs_beside_honest_ones(name):
    honest = {
        DOUBLE: True,
        "n = int(input())\nprint(n + n)": True,
        "import sys\nprint(sum(int(word) for word in sys.stdin.read().split()) * 2)": True,
        "print(40)": False,
        "print(2 * int(input()) + 1)": False,
        "": False,
    }
    batch, expected, started = [], [], time.time()
    for at, (program, reason) in enumerate(HOSTILE.values()):
        source, passes = list(honest.items())[at % len(honest)]
        batch += [doubling(program), doubling(source)]
        expected += [(False, f"test 1: {reason}"), (passes, None)]

    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as alone:
        found, left = alone.submit(judged_alone, name, batch).result()

    wrong = [
        (batch[at].program[:60], verdict.reason)
        for at, (verdict, (passes, reason)) in enumerate(zip(found, expected, strict=True))
        if verdict.passed != passes or reason not in (None, verdict.reason)
    ]
    assert wrong == []
    assert left == {"files": 0, "threads": 0, "children": 0}
    orphans = [
        process.info["cmdline"]
        for process in psutil.process_iter(["ppid", "cmdline", "create_time"])
        if process.info["create_time"] > started
        and process.info["ppid"] == 1
        and "supervisor" in str(process.info["cmdline"])
    ]
    assert orphans == []


@pytest.mark.parametrize("name", BACKENDS)
def test_programs_reach_no_socket(name):
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.1)
        port = server.getsockname()[1]
        connects = f"import socket\nsocket.create_connection(('127.0.0.1', {port})).send(b'x')\n{DOUBLE}"
        listens = f"import socket\ns = socket.create_server(('', 0))\n{DOUBLE}"
        found = verdicts(name, [doubling(connects), doubling(DOUBLE), doubling(listens)])
        assert [verdict.passed for verdict in found] == [False, True, False]
        with pytest.raises(TimeoutError):
            server.accept()


@pytest.mark.parametrize("name", BACKENDS)
def test_programs_change_no_file(name, tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("kept")
    tmp_path.chmod(0o777)
    victim.chmod(0o666)
    token = f"layersweep-{os.getpid()}-{time.time_ns()}"
    attempts = [
        f"open({str(victim)!r}, 'w')",
        f"import os; os.truncate({str(victim)!r}, 0)",
        f"import os; os.unlink({str(victim)!r})",
        f"import os; os.rename({str(victim)!r}, {str(victim) + '2'!r})",
        f"import os; os.chmod({str(victim)!r}, 0)",
        f"import os; os.mkdir({str(tmp_path / 'new')!r})",
        f"open('/dev/shm/{token}', 'w').write('x' * 1000)",
        f"open('/{token}', 'w')",
    ]
    found = verdicts(name, [doubling(f"{attempt}\n{DOUBLE}") for attempt in attempts])
    assert [verdict.reason for verdict in found] == ["test 1: failed"] * len(attempts)
    assert victim.read_text() == "kept" and victim.stat().st_mode & 0o777 == 0o666
    assert [path.name for path in tmp_path.iterdir()] == ["victim"]

    # What goes to the private folder never appears outside, and stays within its bounds.
    program = f"open('/tmp/{token}', 'w').write('x')\n{DOUBLE}"
    hog = "for i in range(9): open(f'/tmp/{i}', 'wb').write(bytes(2**22))\n" + DOUBLE
    large = f"open('/tmp/{token}', 'wb').write(bytes(2**24))\n{DOUBLE}"
    found = verdicts(name, [doubling(program), doubling(hog), doubling(large), doubling(DOUBLE)])
    assert [verdict.passed for verdict in found] == [name == "bubblewrap", False, False, True]
    assert not os.path.exists(f"/tmp/{token}")


@pytest.mark.parametrize("name", BACKENDS)
def test_a_program_leaves_nothing_to_the_next(name):
    leaves = "open('/tmp/answers', 'w').write('40')\n" + DOUBLE
    hides = "import os\nopen('/tmp/answers', 'w').close()\nos.unlink('/tmp/answers')\n" + DOUBLE
    finds = "import os\nprint(2 * int(input()) + ('answers' in os.listdir('/tmp')))"
    batch = [doubling(text) for text in (leaves, finds, hides, finds, DOUBLE)]
    found = verdicts(name, batch, workers=1)
    # Without a mount namespace /tmp is everybody's, and programs cannot even list it.
    assert [verdict.passed for verdict in found] == [v == (name == "bubblewrap") for v in (True,) * 4] + [True]


SNOOP = """
import gc, glob, os, sys
def found():
    texts = [o for o in gc.get_objects() if isinstance(o, str)] + list(os.environ.values()) + sys.argv
    for container in gc.get_objects():
        if isinstance(container, (dict, list, tuple, set)):
            items = container.values() if isinstance(container, dict) else container
            texts += [item for item in items if isinstance(item, str)]
    frame = sys._getframe()
    while frame:
        texts += map(str, frame.f_locals.values())
        frame = frame.f_back
    for path in [PATH, '/proc/self/cmdline', *glob.glob('/proc/*/cmdline'), *glob.glob('/proc/*/mem')]:
        try: texts.append(open(path, 'rb').read(1 << 20).decode('latin-1'))
        except OSError: pass
    return [text for text in texts if 'se' + 'cret' in text]
def f(): return 'se' + 'cret' if found() else ''
"""


@pytest.mark.parametrize("name", BACKENDS)
def test_programs_cannot_read_the_tests(name, tmp_path):
    data = tmp_path / "tests.jsonl"
    data.write_text("assert f() == 'secret'")
    if name == "subprocess" and not backend.confine.landlock_version():
        data.chmod(0)  # the documented weakness of a kernel without Landlock
    program = SNOOP.replace("PATH", repr(str(data)))
    batch = [
        AssertTests(program, "assert f() == 'secret'", ("f",)),
        CallTests(program, "f", ((),), ("secret",)),
        ScriptTests(program + "print(f())", ("",), ("secret",)),
        AssertTests(program + "leak = 'sec' + 'ret'", "assert f() == 'secret'", ("f",)),  # it can find what is there
    ]
    reasons = ["AssertionError in line 1: ", "test 1: wrong result", "test 1: wrong output", "passed"]
    assert [verdict.reason for verdict in verdicts(name, batch)] == reasons


def test_the_process_that_programs_are_forked_from_never_holds_programs_or_tests():
    sandbox = process.SandboxProcess("subprocess", QUICK)
    try:
        tests = AssertTests("def f(): return 'te' 'st-7431' # prog-7431", "assert f() == 'te' 'st-7431'", ("f",))
        assert tests.judge(sandbox.run_case).passed
        tests = ScriptTests("print(input()) # prog-7431", ("input-7431",), ("input-7431",))
        assert tests.judge(sandbox.run_case).passed
        memory = b""
        with (
            open(f"/proc/{sandbox._process.pid}/maps") as maps,
            open(f"/proc/{sandbox._process.pid}/mem", "rb") as content,
        ):
            for start, end in (line.split()[0].split("-") for line in maps if " rw" in line and "[v" not in line):
                content.seek(int(start, 16))
                memory += content.read(int(end, 16) - int(start, 16))
        assert b"input-7431" in memory  # which a program may see
        assert b"prog-7431" not in memory and b"st-7431" not in memory
    finally:
        sandbox.close()


SPOOFS = {
    "leaves at once": "import os\nos._exit(0)",
    "leaves politely": "import sys\nsys.exit(0)",
    "leaves when called": "import os\ndef add(a, b): os._exit(0)",
    "raises SystemExit when called": "def add(a, b): raise SystemExit(0)",
    "prints the verdict": "def add(a, b):\n  print('passed', flush=True)\n  return 'passed'",
    "writes the verdict everywhere": (
        "import os\nfor fd in range(64):\n  try: os.write(fd, b'passed')\n  except OSError: pass\n"
        "def add(a, b): return 0"
    ),
    "answers before it is asked": (
        "import os\nfor fd in range(64):\n"
        '  try: os.write(fd, b\'{"value": 4, "mutable": [], "changed": []}\\n\' * 9)\n  except OSError: pass\n'
        "def add(a, b): return 4"
    ),
    "equals everything": (
        "class Any:\n  def __eq__(self, other): return True\n  __hash__ = None\ndef add(a, b): return Any()"
    ),
    "is a number that equals everything": (
        "class Any(int):\n  def __eq__(self, other): return True\n  __hash__ = None\ndef add(a, b): return Any(0)"
    ),
    "is a list that equals everything": (
        "class Any(list):\n  def __eq__(self, other): return True\ndef add(a, b): return Any()"
    ),
    "overrides builtins": (
        "import builtins\nfor n in ('isinstance', 'len', 'print', 'abs', 'all', 'type', 'repr', 'compile', 'exec'):\n"
        "  setattr(builtins, n, lambda *a, **k: True)\ndef add(a, b): return 0"
    ),
    "overrides the harness": (
        "import sys, os, json\nos._exit = os.write = lambda *a: 0\njson.dumps = lambda *a, **k: '{\"value\": true}'\n"
        "for n in ('value_codec', 'child', 'supervisor', 'confine', 'common_names'):\n  m = sys.modules.get(n)\n"
        "  for k in list(vars(m) if m else ()):\n"
        "    if callable(getattr(m, k)): setattr(m, k, lambda *a, **k: b'passed')\n"
        "def add(a, b): return 0"
    ),
    "runs the harness's own code": (
        "import sys\ndef add(a, b):\n  f = sys._getframe()\n  while f.f_back: f = f.f_back\n  f.f_globals['main']()"
    ),
    "sends garbage": "import os\nos.write(4, b'\\xff\\n[[[[\\n{}\\n')\ndef add(a, b): return 0",
    "nests for ever": "def add(a, b):\n  x = []\n  x.append(x)\n  return x",
    "never returns": "def add(a, b):\n  while True: pass",
    "is an endless list": "def add(a, b): return [1] * 10**9",
    "takes a test for granted": "def add(a, b): raise AssertionError",
}


@pytest.mark.parametrize("name", BACKENDS)
def test_verdicts_cannot_be_spoofed(name):
    tests = "assert add(2, 3) == 5\nassert add(-1, 1) == 0 and add(10, 0) == 10"
    honest = "def add(a, b): return a + b"
    batch = []
    for program in SPOOFS.values():
        batch += [AssertTests(program, tests, ("add",)), AssertTests(honest, tests, ("add",))]
        batch += [CallTests(program, "add", ((2, 3), (-1, 1)), (5, 0)), CallTests(honest, "add", ((2, 3),), (5,))]
    found = [verdict.passed for verdict in verdicts(name, batch)]
    assert found == [False, True, False, True] * len(SPOOFS)


@pytest.mark.parametrize("name", BACKENDS)
def test_a_program_that_takes_its_output_back_harms_itself_alone(name):
    takes_back = (
        "import os, threading, time\n"
        "try: back = os.open('/proc/self/fd/1', os.O_RDONLY)\n"
        "except OSError: back = None  # bubblewrap has no /proc\n"
        "def take():\n  while back: os.read(back, 1 << 16)\n"
        "threading.Thread(target=take, daemon=True).start()\n"
        "for _ in range(200):\n  os.write(1, b'x')\n  time.sleep(0.001)\n"
    )
    sleeps, burns = takes_back + "time.sleep(1000)", takes_back + "while True: pass"
    found = verdicts(name, [doubling(program) for program in (sleeps, burns, DOUBLE)], workers=1)
    assert [verdict.passed for verdict in found] == [False, False, True]
    assert [verdict.reason for verdict in found[:2]] == ["test 1: time"] * 2


def test_output_that_is_gone_before_it_is_read_stalls_nothing(monkeypatch):
    """The moment that such a program needs: the pipe is readable, and empty when it is read. Limit: 0.5 s asleep."""
    monkeypatch.syspath_prepend(process.INSIDE)
    supervisor = importlib.import_module("supervisor")
    out, into_out = os.pipe()

    class Poll(list):
        def register(self, fd, events):
            self.append(fd)

        def poll(self, milliseconds):
            return [(out, select.POLLIN)]

    monkeypatch.setattr(supervisor, "select", SimpleNamespace(poll=Poll, POLLIN=select.POLLIN))
    sleeper = subprocess.Popen(["sleep", "1000"])
    judge = supervisor.Supervisor.__new__(supervisor.Supervisor)
    judge.cpu_seconds, judge.wall_seconds = 1, 0.5
    killed = threading.Event()

    def end_the_read():
        killed.set()
        os.close(into_out)

    killer = threading.Timer(60, end_the_read)  # ends a read that blocks
    killer.start()
    assert judge._collect([sleeper.pid], out, None, b"", 100) == (b"", "time")
    assert not killed.is_set()
    killer.cancel()
    os.close(into_out)


def test_a_program_cannot_look_into_others_of_its_user():
    """The kernel gives the /proc of a process that may not be looked into to root, whatever its own user is."""
    script = "import os\nprint(os.stat('/proc/self/mem').st_uid)"
    assert verdicts("subprocess", [ScriptTests(script, ("",), ("0",))])[0].passed
