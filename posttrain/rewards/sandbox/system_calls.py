"""A filter of system calls (seccomp) for the program: what no test needs, and what attacks on the kernel begin with.

A new user namespace would make the program root in it, before parts of the kernel that are meant for root alone; ptrace
and its like look into other processes. A program without namespaces also gets no sockets and signals no one but itself:
there the filter is all that stands between it and them. Linux on x86-64 and 64-bit ARM; elsewhere there is none, and
the probe (protection.py) finds what follows from that.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
import sys

_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _REFUSE = 0x7FFF0000, 0x00050000
_NUMBER, _ARCHITECTURE, _FIRST_ARGUMENT = 0, 4, 16  # offsets in what the filter sees
_OTHER_ABI = 0x40000000  # x32's numbers begin here
_NEW_NAMESPACES = 0x7E020080  # all CLONE_NEW... flags

_ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
# name -> numbers on x86-64 and on 64-bit ARM
_NEVER = {
    "unshare": (272, 97), "setns": (308, 268), "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41),
    "chroot": (161, 51), "open_tree": (428, 428), "move_mount": (429, 429), "fsopen": (430, 430),
    "fsconfig": (431, 431), "fsmount": (432, 432), "fspick": (433, 433), "mount_setattr": (442, 442),
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "pidfd_getfd": (438, 438),
    "bpf": (321, 280), "perf_event_open": (298, 241), "userfaultfd": (323, 282), "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426), "io_uring_register": (427, 427), "add_key": (248, 217), "request_key": (249, 218),
    "keyctl": (250, 219), "kexec_load": (246, 104), "kexec_file_load": (320, 294), "init_module": (175, 105),
    "finit_module": (313, 273), "delete_module": (176, 106), "open_by_handle_at": (304, 265),
}  # fmt: skip
_NOT_WITHOUT_NAMESPACES = {
    "socket": (41, 198), "pidfd_open": (434, 434), "pidfd_send_signal": (424, 424), "tkill": (200, 130),
    "rt_sigqueueinfo": (129, 138), "rt_tgsigqueueinfo": (297, 240),
}  # fmt: skip
_OF_ITSELF_ALONE = {
    "kill": (62, 129),
    "tgkill": (234, 131),
    "prlimit64": (302, 261),
}  # by their first argument
_CLONE, _CLONE3 = (56, 220), (435, 435)


def filter_program(alone: int | None = None) -> bytes | None:
    """The filter as the kernel takes it; None where there is none for this machine. `alone`: the process whose
    signals stay with itself and that gets no sockets."""
    machine = os.uname().machine
    if sys.platform != "linux" or machine not in _ARCHITECTURES:
        return None
    column = list(_ARCHITECTURES).index(machine)
    refuse = _step(_RETURN, _REFUSE | errno.EPERM)
    program = _step(_LOAD, _ARCHITECTURE) + _step(_EQUAL, _ARCHITECTURES[machine], yes=1) + refuse
    program += _step(_LOAD, _NUMBER) + _step(_AT_LEAST, _OTHER_ABI, no=1) + refuse
    names = {**_NEVER, **(_NOT_WITHOUT_NAMESPACES if alone is not None else {})}
    for numbers in names.values():
        program += _step(_EQUAL, numbers[column], no=1) + refuse
    # the C library then takes clone, whose flags can be looked at
    program += _step(_EQUAL, _CLONE3[column], no=1) + _step(_RETURN, _REFUSE | errno.ENOSYS)
    if alone is not None:
        for numbers in _OF_ITSELF_ALONE.values():
            allowed = [alone] if numbers[0] != _OF_ITSELF_ALONE["prlimit64"][0] else [alone, 0]
            checks = b"".join(_step(_EQUAL, pid, yes=len(allowed) - i) for i, pid in enumerate(allowed))
            block = _step(_LOAD, _FIRST_ARGUMENT) + checks + refuse + _step(_RETURN, _ALLOW)
            program += _step(_EQUAL, numbers[column], no=len(block) // 8) + block
    program += _step(_EQUAL, _CLONE[column], no=3) + _step(_LOAD, _FIRST_ARGUMENT)
    program += _step(_ANY_BIT, _NEW_NAMESPACES, no=1) + refuse
    return program + _step(_RETURN, _ALLOW)


def _step(code: int, value: int, *, yes: int = 0, no: int = 0) -> bytes:
    """One instruction; `yes` and `no` are how many are left out after a comparison."""
    return struct.pack("=HBBI", code, yes, no, value)


def enter(program: bytes) -> None:
    """Puts this process, which can gain no privileges any more, under the filter for good."""
    held = ctypes.create_string_buffer(program)
    description = struct.pack("@HP", len(program) // 8, ctypes.addressof(held))
    library = ctypes.CDLL(None, use_errno=True)
    if library.prctl(22, 2, ctypes.c_char_p(description), 0, 0) == -1:  # PR_SET_SECCOMP, SECCOMP_MODE_FILTER
        raise OSError(ctypes.get_errno(), "the filter of system calls was refused")
