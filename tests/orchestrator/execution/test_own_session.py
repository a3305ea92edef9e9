"""Commands in a session of their own."""

import os
import subprocess
import sys

import psutil

COMMAND = """
import os, signal, subprocess, sys, time
from layersweep.orchestrator.execution import own_session
own_session.GRACE = {grace}

def command():
    def idle(seconds, **options):
        source = f"import time; time.sleep({{seconds}})"
        return subprocess.Popen([sys.executable, "-c", source], stdout=subprocess.DEVNULL, **options)

    left = [idle({seconds}), idle({seconds}, process_group=0), idle(60, start_new_session=True)]
    print(*(process.pid for process in left), flush=True)
    return 5

sys.exit(own_session.in_own_session(command))
"""


def carried_out(grace: float, seconds: float) -> tuple[int, list[psutil.Process]]:
    """The exit code of a command that leaves three processes behind: two in its session, one of them in a group of its
    own, and one in another session; and those of them that are still there."""
    source = COMMAND.format(grace=grace, seconds=seconds)
    done = subprocess.run([sys.executable, "-c", source], stdout=subprocess.PIPE, text=True, timeout=120)
    pids = [int(pid) for pid in done.stdout.split()]
    assert len(pids) == 3
    alive = [psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)]
    return done.returncode, [process for process in alive if process.status() != psutil.STATUS_ZOMBIE]


def test_what_a_command_leaves_behind_is_ended():
    """Its exit code stays; a process that has left the session is not its any more."""
    code, left = carried_out(grace=2, seconds=60)
    assert code == 5 and len(left) == 1 and os.getsid(left[0].pid) == left[0].pid
    left[0].kill()


def test_what_ends_by_itself_is_waited_for():
    """Far within its time: nothing is killed, and the command does not return before."""
    code, left = carried_out(grace=60, seconds=0.5)
    assert code == 5 and len(left) == 1
    left[0].kill()
