"""System calls that Python 3.11 has no function for: namespaces, mounts, privileges. Linux only.

The new root holds what Python needs, read only, and an empty /tmp in memory: no home folder, no /proc, no other
program, four devices.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os

TYPE_CHECKING = False  # `typing` takes longer to import than all the rest of a program's start
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

NEW_NAMESPACES = {"mount": 0x00020000, "uts": 0x04000000, "ipc": 0x08000000, "net": 0x40000000}
NEW_USER, NEW_PID = 0x10000000, 0x20000000
DEVICES = ("/dev/null", "/dev/zero", "/dev/random", "/dev/urandom")

_READ_ONLY, _NO_SUID, _NO_DEVICES, _NO_EXEC = 1, 2, 4, 8
_REMOUNT, _BIND, _RECURSIVE, _PRIVATE = 32, 4096, 16384, 1 << 18
_RELATIVE_TIMES = 1 << 21
_DETACH = 2
_PDEATHSIG, _DUMPABLE, _DROP_BOUNDING, _SUBREAPER, _NO_NEW_PRIVILEGES = 1, 4, 24, 36, 38
_CAPABILITY_VERSION_3 = 0x20080522


def call(name: str, *arguments: Any) -> None:
    """A function of the C library. OSError where it says -1."""
    library = ctypes.CDLL(None, use_errno=True)
    if library[name](*arguments) == -1:
        code = ctypes.get_errno()
        raise OSError(code, f"{name}{_shown(arguments)}: {os.strerror(code)}")


def _shown(arguments: Sequence[Any]) -> str:
    return "".join(f" {part.decode()}" for part in arguments if isinstance(part, bytes))


def die_with_parent(signal_number: int) -> None:
    call("prctl", _PDEATHSIG, signal_number, 0, 0, 0)


def adopt_orphans() -> None:
    """This process becomes the parent of what its children leave behind."""
    call("prctl", _SUBREAPER, 1, 0, 0, 0)


def hide_memory() -> None:
    """No process of the same user may look into this one, unless it may look into all."""
    call("prctl", _DUMPABLE, 0, 0, 0, 0)


def own_users(inside: int | None) -> None:
    """A user namespace: root in it is who we are, and `inside`, where we are root, is another user outside too."""
    user, group = os.getuid(), os.getgid()
    if inside is None:
        call("unshare", NEW_USER)
        write_file("/proc/self/setgroups", "deny")
        write_file("/proc/self/uid_map", f"0 {user} 1")
        write_file("/proc/self/gid_map", f"0 {group} 1")
        return
    me, (ready, go) = os.getpid(), os.pipe()
    writer = os.fork()  # a map of two users is written from outside
    if writer == 0:
        status = 1
        with contextlib.suppress(OSError):
            os.close(go)
            os.read(ready, 1)
            for kind, own in (("uid", user), ("gid", group)):
                write_file(f"/proc/{me}/{kind}_map", f"0 {own} 1\n{inside} {inside} 1")
            status = 0
        os._exit(status)
    os.close(ready)
    call("unshare", NEW_USER)
    os.close(go)
    if os.waitpid(writer, 0)[1] != 0:
        raise OSError(errno.EPERM, "the map of users was refused")


def write_file(path: str, text: str) -> None:
    with open(path, "w") as file:
        file.write(text)


def new_root(visible: list[str], links: dict[str, str], folder_bytes: int) -> None:
    """Replaces the root of this mount namespace; the working folder is then /tmp, empty and in memory."""
    call("mount", None, b"/", None, _RECURSIVE | _PRIVATE, None)
    # two steps, because the new root may not lie below a folder that is to be bound (/tmp holds many a Python)
    call("mount", b"tmpfs", b"/tmp", b"tmpfs", _NO_SUID | _NO_DEVICES, b"size=1m,mode=0755")
    os.mkdir("/tmp/old")
    os.mkdir("/tmp/new")
    call("pivot_root", b"/tmp", b"/tmp/old")
    os.chdir("/")
    call("mount", b"tmpfs", b"/new", b"tmpfs", _NO_SUID | _NO_DEVICES, b"size=1m,mode=0755")
    for path in visible:
        _bind(path, read_only=True)
    for path in DEVICES:
        _bind(path, read_only=False)
    for path, target in links.items():
        os.symlink(target, f"/new{path}")
    os.makedirs("/new/tmp", exist_ok=True)
    size = f"size={folder_bytes},nr_inodes=4096,mode=1777".encode()
    call("mount", b"tmpfs", b"/new/tmp", b"tmpfs", _NO_SUID | _NO_DEVICES | _NO_EXEC, size)
    os.mkdir("/new/old", 0o700)
    os.chdir("/new")
    call("pivot_root", b"/new", b"/new/old")
    os.chdir("/")
    call("umount2", b"/old", _DETACH)
    os.rmdir("/old")
    call("mount", None, b"/", None, _REMOUNT | _BIND | _READ_ONLY | _NO_SUID | _NO_DEVICES, None)
    os.chdir("/tmp")


def _bind(path: str, *, read_only: bool) -> None:
    source, target = f"/old{path}", f"/new{path}"
    if os.path.isdir(source):
        os.makedirs(target, exist_ok=True)
    else:
        os.makedirs(os.path.dirname(target), exist_ok=True)
        os.close(os.open(target, os.O_CREAT | os.O_WRONLY, 0o644))
    call("mount", source.encode(), target.encode(), None, _BIND, None)
    if read_only:
        call("mount", None, target.encode(), None, _REMOUNT | _BIND | _READ_ONLY | _kept(target), None)


def _kept(path: str) -> int:
    """What a mount already forbids, and the kernel does not let a namespace take back."""
    found = os.statvfs(path).f_flag
    flags = _NO_SUID | _NO_DEVICES | (found & _NO_EXEC) | (found & (os.ST_NOATIME | os.ST_NODIRATIME))
    return flags | (_RELATIVE_TIMES if found & os.ST_RELATIME else 0)


def drop_privileges(user: int | None) -> None:
    """No capabilities and none to be gained; another user where one is given."""
    call("prctl", _NO_NEW_PRIVILEGES, 1, 0, 0, 0)
    for capability in range(64):
        try:
            call("prctl", _DROP_BOUNDING, capability, 0, 0, 0)
        except OSError:  # past the last one, or not ours to drop
            break
    if user is not None:
        os.setgroups([])
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    call("capset", header, (ctypes.c_uint32 * 6)())
