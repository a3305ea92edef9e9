"""Confinement of a forked child, for the rest of its life, just before it runs an untrusted program.

Three layers, each sufficient for most attacks: resource limits; Landlock, where the kernel has it and no mount
namespace does the job; and a seccomp filter that lets through only the system calls a computation needs. The filter
alone rules out new processes (hence fork bombs and daemons), signals, sockets, tracing, mounts and namespaces.
"""

import ctypes
import os
import resource
import struct

_CALLS = """
read 0 63, write 1 64, readv 19 65, writev 20 66, pread64 17 67, pwrite64 18 68, close 3 57, fstat 5 80,
newfstatat 262 79, stat 4 -, lstat 6 -, statx 332 291, lseek 8 62, mmap 9 222, munmap 11 215, mprotect 10 226,
mremap 25 216, madvise 28 233, brk 12 214, rt_sigaction 13 134, rt_sigprocmask 14 135, rt_sigreturn 15 139,
rt_sigtimedwait 128 137, sigaltstack 131 132, dup 32 23, dup2 33 -, dup3 292 24, pipe 22 -, pipe2 293 59, poll 7 -,
ppoll 271 73, select 23 -, pselect6 270 72, epoll_create 213 -, epoll_create1 291 20, epoll_ctl 233 21,
epoll_wait 232 -, epoll_pwait 281 22, eventfd2 290 19, futex 202 98, set_robust_list 273 99, get_robust_list 274 100,
rseq 334 293, exit 60 93, exit_group 231 94, getpid 39 172, gettid 186 178, getppid 110 173, getuid 102 174,
geteuid 107 175, getgid 104 176, getegid 108 177, clock_gettime 228 113, clock_getres 229 114, clock_nanosleep 230 115,
nanosleep 35 101, gettimeofday 96 169, time 201 -, times 100 153, getrusage 98 165, sysinfo 99 179, uname 63 160,
getcwd 79 17, chdir 80 49, getdents64 217 61, readlink 89 -, readlinkat 267 78, access 21 -, faccessat 269 48,
faccessat2 439 439, getrandom 318 278, sched_yield 24 124, sched_getaffinity 204 123, getrlimit 97 163, alarm 37 -,
setitimer 38 103, getitimer 36 102, restart_syscall 219 128, membarrier 324 283, umask 95 166
"""
"""Harmless system calls: name, number on x86_64, number on aarch64 (from Linux's own headers)."""

_FILE_CALLS = """
mkdir 83 -, mkdirat 258 34, rmdir 84 -, unlink 87 -, unlinkat 263 35, rename 82 -, renameat 264 38, renameat2 316 276,
ftruncate 77 46, fsync 74 82, fdatasync 75 83, fchmod 91 52, utimensat 280 88
"""
"""Calls that change files: only where a private, bounded tmpfs is all there is to write to."""

_CHECKED_CALLS = "open 2 -, openat 257 56, clone 56 220, ioctl 16 29, fcntl 72 25, prlimit64 302 261, socketpair 53 199"
"""Calls that are allowed for some arguments."""

_ARCHITECTURES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
_ALLOW, _ENOSYS, _EPERM = 0x7FFF0000, 0x00050000 | 38, 0x00050000 | 1
_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06

_WRITING = 0o1 | 0o2 | 0o100 | 0o1000  # O_WRONLY, O_RDWR, O_CREAT, O_TRUNC
_CLONE_THREAD = 0x00010000
_IOCTLS = (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)  # TCGETS, TIOCGWINSZ, FIONREAD, FIONBIO, FIO(N)CLEX
_FCNTLS = (0, 1, 2, 3, 4, 1030)  # DUPFD, GETFD, SETFD, GETFL, SETFL, DUPFD_CLOEXEC; F_SETOWN could send signals

_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_KEEPCAPS, _PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS = 1, 4, 8, 22, 38
_LANDLOCK_CREATE, _LANDLOCK_ADD, _LANDLOCK_RESTRICT = 444, 445, 446  # the same on every architecture
_SIGKILL = 9

_libc = ctypes.CDLL(None, use_errno=True)


class _FilterProgram(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("code", ctypes.c_char_p)]


def _checked(result: int, what: str) -> int:
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, f"{what}: {os.strerror(error)}")
    return result


def _prctl(option: int, value: int, what: str) -> None:
    _checked(_libc.prctl(option, ctypes.c_ulong(value), *(ctypes.c_ulong(0),) * 3), what)


def _syscall(number: int, *arguments: object) -> int:
    return _libc.syscall(ctypes.c_long(number), *arguments)


def seccomp_filter(may_write: bool) -> bytes:
    """Return the filter as BPF code. Calls that it does not list fail with ENOSYS, so that libraries fall back.

    Raises:
        OSError: on an architecture without a table here.
    """
    machine = os.uname().machine
    if machine not in _ARCHITECTURES:
        raise OSError(f"no system call table for {machine}; the sandbox knows {', '.join(_ARCHITECTURES)}")
    column, audit = _ARCHITECTURES[machine]

    def numbers(table: str) -> dict[str, int]:
        rows = (row.split() for row in table.split(","))
        return {row[0]: int(row[1 + column]) for row in rows if row[1 + column] != "-"}

    code: list[tuple[int, int, int, int]] = []

    def emit(operation: int, operand: int, if_true: int = 0, if_false: int = 0) -> None:
        code.append((operation, if_true, if_false, operand))

    emit(_LOAD, 4)
    emit(_EQUAL, audit, 1, 0)
    emit(_RETURN, _ENOSYS)
    emit(_LOAD, 0)
    emit(_AT_LEAST, 0x40000000, 0, 1)  # the x32 calls of an x86_64 kernel
    emit(_RETURN, _ENOSYS)
    for number in numbers(_CALLS + ("," + _FILE_CALLS if may_write else "")).values():
        emit(_EQUAL, number, 0, 1)
        emit(_RETURN, _ALLOW)

    checked = numbers(_CHECKED_CALLS)

    def check(name: str, argument: int, operation: int, operands: tuple[int, ...], passes: bool, error: int) -> None:
        if name not in checked:
            return
        emit(_EQUAL, checked[name], 0, 2 + 2 * len(operands))
        emit(_LOAD, 16 + 8 * argument)
        for operand in operands:
            emit(operation, operand, *((0, 1) if passes else (1, 0)))
            emit(_RETURN, _ALLOW)
        emit(_RETURN, error)

    forbidden_modes = 0 if may_write else _WRITING
    check("open", 1, _ANY_BIT, (forbidden_modes,), False, _EPERM)
    check("openat", 2, _ANY_BIT, (forbidden_modes,), False, _EPERM)
    check("clone", 0, _ANY_BIT, (_CLONE_THREAD,), True, _EPERM)
    check("ioctl", 1, _EQUAL, _IOCTLS, True, _ENOSYS)
    check("fcntl", 1, _EQUAL, _FCNTLS, True, _ENOSYS)
    check("prlimit64", 0, _EQUAL, (0,), True, _EPERM)
    check("socketpair", 0, _EQUAL, (1,), True, _ENOSYS)  # AF_UNIX: asyncio wakes itself up through one
    emit(_RETURN, _ENOSYS)
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in code)


def landlock_version() -> int:
    """Return the Landlock version of the running kernel, 0 where it is missing or switched off."""
    return max(0, _syscall(_LANDLOCK_CREATE, None, ctypes.c_size_t(0), ctypes.c_uint(1)))


def landlock_rules(readable: list[str]) -> int:
    """Make a Landlock rule set under which only `readable` (files, and folders with all they hold) can be read.

    Returns its file descriptor.

    Raises:
        OSError: when the kernel refuses, or a path does not exist.
    """
    version = landlock_version()
    bits = 13 + (version >= 2) + (version >= 3) + (version >= 5)
    handled = struct.pack("=Q", (1 << bits) - 1)
    rules = _checked(_syscall(_LANDLOCK_CREATE, handled, ctypes.c_size_t(8), ctypes.c_uint(0)), "landlock rule set")
    for path in readable:
        execute, read_file, read_folder = 1, 4, 8 if os.path.isdir(path) else 0
        where = os.open(path, os.O_PATH | os.O_CLOEXEC)
        rule = struct.pack("=Qi", execute | read_file | read_folder, where)
        _checked(_syscall(_LANDLOCK_ADD, ctypes.c_int(rules), ctypes.c_int(1), rule, ctypes.c_uint(0)), "landlock rule")
        os.close(where)
    return rules


def die_with_parent() -> None:
    """Ask the kernel for SIGKILL when the thread that started this process ends."""
    _prctl(_PR_SET_PDEATHSIG, _SIGKILL, "parent-death signal")


def _become(uid: int, reads_everything: bool) -> None:
    """Turn root into an ordinary user; `reads_everything` keeps that one right (Landlock then bounds it)."""
    if reads_everything:
        _prctl(_PR_SET_KEEPCAPS, 1, "keep capabilities")
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
    if reads_everything:
        header = struct.pack("=Ii", 0x20080522, 0)
        dac_read_search = 1 << 2
        wanted = struct.pack("=6I", dac_read_search, dac_read_search, 0, 0, 0, 0)
        _checked(_libc.capset(header, wanted), "drop capabilities")


def confine(limits: dict[str, int], uid: int | None, rules: int | None, code: bytes) -> None:
    """Confine this process for the rest of its life.

    `limits` holds `cpu` (seconds), `memory`, `file` (bytes) and `processes` (threads count); `uid` is what root
    becomes; `rules` is a Landlock rule set; `code` a seccomp filter.

    Raises:
        OSError: when the kernel refuses any of it; the program must then not be run.
    """
    for kind, amount in (
        (resource.RLIMIT_CPU, limits["cpu"]),
        (resource.RLIMIT_AS, limits["memory"]),
        (resource.RLIMIT_FSIZE, limits["file"]),
        (resource.RLIMIT_NPROC, limits["processes"]),
        (resource.RLIMIT_NOFILE, 64),
        (resource.RLIMIT_CORE, 0),
    ):
        hard = resource.getrlimit(kind)[1]
        amount = amount if hard == resource.RLIM_INFINITY else min(amount, hard)
        resource.setrlimit(kind, (amount, amount))
    hard = resource.getrlimit(resource.RLIMIT_STACK)[1]  # deep recursion through C is common in honest programs
    deep = limits["memory"] // 4
    resource.setrlimit(resource.RLIMIT_STACK, (deep if hard == resource.RLIM_INFINITY else min(deep, hard), hard))
    if uid is not None:
        _become(uid, reads_everything=rules is not None)
    die_with_parent()  # after the change of user, which clears it
    _prctl(_PR_SET_DUMPABLE, 0, "not dumpable")  # closes its /proc to others of the same user
    _prctl(_PR_SET_NO_NEW_PRIVS, 1, "no new privileges")
    if rules is not None:
        _checked(_syscall(_LANDLOCK_RESTRICT, ctypes.c_int(rules), ctypes.c_uint(0)), "landlock")
    program = _FilterProgram(len(code) // 8, code)
    mode_filter = ctypes.c_ulong(2)
    _checked(_libc.prctl(_PR_SET_SECCOMP, mode_filter, ctypes.byref(program), None, None), "seccomp filter")
