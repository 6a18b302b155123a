"""Run one program that nobody vouches for: one process, little time and memory, no network, an empty folder.

This file is both sides. As a module it starts itself as a script, in a bare interpreter (`python -I -S`), which shuts
itself in and then runs the program. On Linux it gives up the user root, enters namespaces of its own (users,
processes, network, mounts) with an empty file system of a few MiB in memory to write to, and has Landlock refuse all
files but Python's own; resource limits bound time, memory, sizes, and leave it no second process and no second thread.
Where a kernel refuses one of these the others hold; `walls` says which stand on this machine.

Source: Chen et al. 2021, "Evaluating Large Language Models Trained on Code", section 2.3, which asks for a sandbox.
"""

import ctypes
import json
import os
import resource
import secrets
import signal
import sys
import time
from typing import Any, NamedTuple

OUTPUT_BYTES = 1000
"""Of what is told about a failure."""
FILE_BYTES = 1 << 20
FOLDER_BYTES = 8 << 20


class Outcome(NamedTuple):
    """How a program ended: `passed` only when its last line was reached; `why` it did not."""

    passed: bool
    why: str = ""


def run_program(source: str, *, seconds: float = 5.0, memory: int = 1 << 30) -> Outcome:
    """Run a program to its last line.

    Args:
        source: Python, standard library only.
        seconds: of wall-clock time, and of processor time, at most.
        memory: bytes of address space.

    Raises:
        TsumuguError: this system cannot bound a program.
    """
    return Outcome(**_told(source, seconds, memory)["outcome"])


def walls() -> dict[str, bool]:
    """What shuts a program in on this machine: `processes`, `network`, `files`."""
    found: dict[str, bool] = _told("", 5.0, 1 << 30)["walls"]
    return found


def _told(source: str, seconds: float, memory: int) -> dict[str, Any]:
    import contextlib
    import subprocess
    import tempfile

    from tsumugu.core.errors import TsumuguError

    if sys.platform == "win32":
        raise TsumuguError("programs cannot be run in bounds on Windows", mend="use Linux, or WSL")
    asked = json.dumps({"source": source, "seconds": seconds, "memory": memory}).encode()
    with tempfile.TemporaryDirectory(prefix="tsumugu-") as folder:
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-B", __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=folder,
            env={"PATH": "/usr/bin:/bin", "OPENBLAS_NUM_THREADS": "1"},
            start_new_session=True,
        )
        try:
            out, _ = process.communicate(asked, timeout=seconds + 10)
        except subprocess.TimeoutExpired:
            out = b""
        finally:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    try:
        found: dict[str, Any] = json.loads(out)
    except ValueError:
        raise TsumuguError(f"the process that runs programs broke down (code {process.returncode})") from None
    return found


# From here on: the script.

_USERS, _PROCESSES, _NETWORK, _MOUNTS, _IPC = 0x10000000, 0x20000000, 0x40000000, 0x20000, 0x8000000
_PRIVATE, _PLAIN, _BIND = 0x44000, 6, 0x5000  # recursive, private; no set-user-id, no devices; recursive, bind
_LANDLOCK_CREATE, _LANDLOCK_ADD, _LANDLOCK_RESTRICT = 444, 445, 446  # the same on every architecture
_EARLY = "it ended before its last line"
_READ = 1 | 4 | 8  # execute, read files, read folders
_PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS = 1, 38


def main() -> None:
    """Read what is asked, run it in a child, tell how it ended."""
    asked = json.load(sys.stdin)
    answers, out = os.dup(1), os.open(os.devnull, os.O_RDWR)
    for each in (0, 1, 2):
        os.dup2(out, each)
    libc = ctypes.CDLL(None, use_errno=True)
    memory, seconds = asked["memory"], asked["seconds"]
    for limit, value in (
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_CPU, int(seconds) + 1),
        (resource.RLIMIT_FSIZE, FILE_BYTES),
        (resource.RLIMIT_NOFILE, 64),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(limit, (value, value))
    walls = {"processes": True, "network": _own_spaces(libc), "files": False}
    reader, writer = os.pipe()
    secret = secrets.token_hex(16)
    child = os.fork()
    if child == 0:
        os.close(reader)
        os.close(answers)
        _program(libc, asked["source"], writer, secret, walls)
    os.close(writer)
    outcome, said = _waited(child, reader, seconds, secret)
    told = {"outcome": outcome, "walls": said or walls}
    os.write(answers, json.dumps(told).encode())


def _own_spaces(libc: Any) -> bool:
    """Namespaces of our own, an empty folder in memory to work in, and another user than root; whether we got them."""
    root = os.getuid() == 0
    user = group = 1 << 30 | secrets.randbelow(1 << 24)  # of root's programs: nobody else's
    spaces = _PROCESSES | _NETWORK | _MOUNTS | _IPC
    own = hasattr(libc, "unshare") and bool(libc.unshare(ctypes.c_int(spaces if root else spaces | _USERS)) == 0)
    if own and not root:
        user, group = os.geteuid(), os.getegid()
        try:
            for name, line in (
                ("setgroups", "deny"),
                ("uid_map", f"{user} {user} 1"),
                ("gid_map", f"{group} {group} 1"),
            ):
                with open(f"/proc/self/{name}", "w") as file:  # noqa: PTH123
                    file.write(line)
        except OSError:  # a system that lets nobody mount: the folder is the one on the disk
            return own
    here = os.getcwd()  # noqa: PTH109  (pathlib would be one more import for each program)
    if own and _mount(libc, "none", "/", None, _PRIVATE):
        _mount(libc, "tmpfs", here, "tmpfs", _PLAIN, f"size={FOLDER_BYTES},nr_inodes=256")
        os.chdir(here)
        os.mkdir("python")  # noqa: PTH102
        if _mount(libc, sys.base_prefix, "python", None, _BIND):  # where another user may read it, too
            packages = [each for each in sys.modules.values() if isinstance(getattr(each, "__path__", None), list)]
            for paths in (sys.path, *(each.__path__ for each in packages)):
                paths[:] = [each.replace(sys.base_prefix, f"{here}/python", 1) for each in paths]
            sys.base_prefix = sys.base_exec_prefix = f"{here}/python"
        os.mkdir("work")  # noqa: PTH102
        os.chdir("work")
    if root:  # who would stand above the limit of processes
        for each in ("..", ".") if own else (".",):
            os.chown(each, user, group)
        os.setgroups([])
        os.setgid(group)
        os.setuid(user)
    return own


def _mount(libc: Any, source: str, target: str, kind: str | None, flags: int, options: str = "") -> bool:
    given = [each.encode() if each else None for each in (source, target, kind)]
    return bool(libc.mount(*given, ctypes.c_ulong(flags), options.encode() or None) == 0)


def _program(libc: Any, source: str, writer: int, secret: str, walls: dict[str, bool]) -> None:
    """Shut this process in, run the program, tell how it went, and end."""
    write, leave, limit = os.write, os._exit, OUTPUT_BYTES  # whatever the program makes of them
    said: dict[str, Any] = {"secret": secret, "passed": False, "why": _EARLY}
    try:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        walls["files"] = _landlock(libc)
        libc.syscall(126 if os.uname().machine == "x86_64" else 91, *_no_capabilities())
        resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
        write(writer, json.dumps({"secret": secret, "walls": walls}).encode() + b"\n")
        sys.argv = ["program.py"]
        exec(compile(source, "program.py", "exec", dont_inherit=True), {"__name__": "__main__"})
        said |= {"passed": True, "why": ""}
    except MemoryError:
        said["why"] = "out of memory"
    except SystemExit:
        pass
    except BaseException as error:  # noqa: BLE001  (whatever it is, it is the program's)
        said["why"] = f"{type(error).__name__}: {error}".partition("\n")[0][:limit].rstrip(": ")
    try:
        write(writer, json.dumps(said).encode())
    finally:
        leave(0)


def _waited(child: int, reader: int, seconds: float, secret: str) -> tuple[dict[str, Any], dict[str, bool] | None]:
    """How the child ended, by what it wrote and by what the system says, and its walls; it is gone afterwards."""
    end = time.monotonic() + seconds
    late = status = found = 0
    while not found:
        late = time.monotonic() > end
        if late:
            os.kill(child, signal.SIGKILL)  # the first process of its namespace: all others go with it
        found, status = os.waitpid(child, 0 if late else os.WNOHANG)
        if not found:
            time.sleep(0.002)
    outcome: dict[str, Any] = {"passed": False, "why": _EARLY}
    walls = None
    for line in os.read(reader, 1 << 16).decode("utf-8", "replace").splitlines():
        try:
            told = json.loads(line)
            if told["secret"] == secret:  # not the program's own words
                walls = told.get("walls", walls)
                outcome |= {key: told[key] for key in ("passed", "why") if key in told}
        except (ValueError, TypeError, KeyError):
            continue
    number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
    if late or number == signal.SIGXCPU:
        outcome = {"passed": False, "why": f"longer than {seconds:g} seconds"}
    elif number:
        outcome = {"passed": False, "why": f"ended by {signal.Signals(number).name}"}
    return outcome, walls


def _landlock(libc: Any) -> bool:
    """Refuse this process all files but those that Python reads and its own folder, and all TCP."""
    abi = libc.syscall(_LANDLOCK_CREATE, None, ctypes.c_size_t(0), 1)
    if abi < 1:
        return False
    files = (1 << (13 if abi == 1 else 14 if abi == 2 else 15 if abi < 5 else 16)) - 1
    rules = (ctypes.c_uint64 * 3)(files, 3 if abi >= 4 else 0, 3 if abi >= 6 else 0)  # files, network, signals
    size = 24 if abi >= 6 else 16 if abi >= 4 else 8
    ruleset = libc.syscall(_LANDLOCK_CREATE, rules, ctypes.c_size_t(size), 0)
    if ruleset < 0:
        return False
    reads = {sys.base_prefix, sys.base_exec_prefix, "/usr/lib", "/usr/share/zoneinfo", "/lib", "/lib64"}
    allowed = [(path, _READ & files) for path in sorted(reads)] + [(".", files & ~(1 << 15))]
    for path, rights in [*allowed, ("/dev/null", 4 | 2), ("/dev/urandom", 4)]:
        try:
            handle = os.open(path, os.O_PATH)
        except OSError:
            continue
        beneath = rights.to_bytes(8, sys.byteorder) + handle.to_bytes(4, sys.byteorder)
        libc.syscall(_LANDLOCK_ADD, ruleset, 1, ctypes.c_char_p(beneath), 0)
        os.close(handle)
    done = bool(libc.syscall(_LANDLOCK_RESTRICT, ruleset, 0) == 0)
    os.close(ruleset)
    return done


def _no_capabilities() -> tuple[Any, Any]:
    """Arguments of capset that give up all that a namespace gave."""
    return (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()


if __name__ == "__main__":
    main()
