"""Attacks on the sandbox, in each enclosure that this machine offers.

An attack that the enclosure does not hold off has to be named by its `describe()`; so has an enclosure that is not
here. Each is bounded by itself (a count, a size) and by the limits of the process that runs it (sandbox_driver.py), so
that the machine survives a sandbox that fails. Afterwards the machine is as before.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess

import pytest
from sandbox_machine import LIMITS, SECRET, Machine

from posttrain.rewards.descendants import MARK
from posttrain.rewards.sandbox.enclosure import Kind
from posttrain.rewards.sandbox.protection import Protection, find_protection, protection_of
from posttrain.rewards.sandbox.system_calls import filter_program

# ---- what there is


PERMITTED = {
    "bubblewrap": [
        "bwrap",
        "--unshare-user",
        "--unshare-pid",
        "--unshare-net",
        "--ro-bind",
        "/",
        "/",
        "/bin/true",
    ],
    "namespaces": [
        "unshare",
        "--user",
        "--map-root-user",
        "--pid",
        "--net",
        "--mount",
        "--fork",
        "/bin/true",
    ],
}


@pytest.mark.parametrize("kind", PERMITTED)
def test_what_the_machine_permits_is_found(kind: Kind) -> None:
    """By the programs of others: an enclosure that is not found only because ours is broken would show here."""
    if (
        shutil.which(PERMITTED[kind][0])
        and subprocess.run(PERMITTED[kind], capture_output=True).returncode == 0
    ):
        assert isinstance(protection_of(kind), Protection), protection_of(kind)
        assert find_protection().isolates


def test_namespaces_leave_no_hole_that_can_be_closed_here(machine: Machine) -> None:
    if machine.isolates:
        allowed = {"making user namespaces"} if filter_program() is None else set()
        allowed |= (
            {"many processes"} if os.getuid() == 0 and not machine.protection.enclosure.other_user else set()
        )
        holes = [hole for hole in machine.protection.open_to if not any(words in hole for words in allowed)]
        assert holes == []


# ---- time, memory, processes, output, files


@pytest.mark.parametrize(
    "source",
    [
        "while True: pass",
        "import time\ntime.sleep(3600)",
        "import signal\nfor n in (15, 24, 2): signal.signal(n, signal.SIG_IGN)\nwhile True: pass",
        "import os, time\nos.close(1); os.close(2)\ntime.sleep(3600)",
        "import threading\nthreading.Event().wait()",
    ],
)
def test_a_program_without_end_is_ended(machine: Machine, source: str) -> None:
    found = machine.attack(source, seconds=1.0)
    assert found["reason"] == "timeout" or found["code"] in (137, 152)  # by the processor's limit
    assert found["seconds"] < 10


def test_its_time_begins_with_its_first_line(machine: Machine) -> None:
    """What making the enclosure takes is not the program's: a moment is a timeout, no error."""
    found = machine.attack("while True: pass", seconds=0.001)
    assert found["reason"] == "timeout"


def test_processor_time_is_limited_apart_from_the_clock(machine: Machine) -> None:
    found = machine.attack("import resource\nprint(resource.getrlimit(resource.RLIMIT_CPU))", seconds=2.5)
    assert found["output"] == "(4, 5)\n"


def test_memory(machine: Machine) -> None:
    """10 GB in steps of 16 MB, written to."""
    found = machine.attack(
        "kept = []\n"
        "try:\n"
        "    for step in range(640):\n"
        "        kept.append(b'x' * 2**24)\n"
        "except MemoryError:\n"
        "    del kept[:2]\n"
        "    print('refused after', 16 * step, flush=True)\n"
    )
    assert found["output"].startswith("refused after")
    assert int(found["output"].split()[-1]) < LIMITS["memory_mb"]


def test_a_fork_bomb(machine: Machine) -> None:
    """Two to the eighth processes at the most, each in a session of its own."""
    found = machine.attack(
        "import os, time\n"
        "refused = 0\n"
        "for depth in range(8):\n"
        "    try:\n"
        "        if os.fork() == 0:\n"
        "            os.setsid()\n"
        "    except OSError:\n"
        "        refused += 1\n"
        "print(refused, flush=True)\n"
        "time.sleep(3600)\n",
        seconds=2.0,
    )
    assert found["reason"] == "timeout"
    refused = sum(map(int, found["output"].split()))
    assert refused > 0 or machine.open_to("many processes")


def test_a_bomb_that_outlives_its_first_process_is_ended_with_it(machine: Machine) -> None:
    found = machine.attack(
        "import os, time\n"
        "for n in range(5):\n"
        "    if os.fork() == 0:\n"
        "        os.setsid()\n"
        "        if os.fork() == 0:\n"
        "            time.sleep(3600)\n"
        "        os._exit(0)\n"
        "print('gone')\n"
    )
    assert (found["reason"], found["output"]) == ("exit", "gone\n")
    assert found["seconds"] < LIMITS["seconds"]


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_gigabytes_of_output(machine: Machine, stream: str) -> None:
    """Two gigabytes at the most."""
    found = machine.attack(
        f"import sys\nfor _ in range(2000): sys.{stream}.write('x' * 2**20)\nprint('done')"
    )
    assert found["reason"] == "output"
    assert len(found["output"]) + len(found["errors"]) == LIMITS["output_kb"] * 1024
    assert found["peak_mb"] < 150
    assert found["seconds"] < 10


def test_a_large_file_and_many_files(machine: Machine) -> None:
    """32 MB at the most each way."""
    found = machine.attack(
        "import os\n"
        "def fill(name, parts):\n"
        "    written = 0\n"
        "    try:\n"
        "        with open(name, 'wb', buffering=0) as file:\n"
        "            for _ in range(parts): written += file.write(b'x' * 2**20)\n"
        "    except OSError: pass\n"
        "    return written\n"
        "print(fill('one', 32) // 2**20, sum(fill(f'n{n}', 2) for n in range(16)) // 2**20)"
    )
    one, many = map(int, found["output"].split())
    assert one <= LIMITS["file_mb"]
    assert many <= LIMITS["folder_mb"] or machine.open_to("filling the disk")


def test_a_folder_that_nobody_may_enter_goes_too(machine: Machine) -> None:
    target = machine.home / ".token"
    found = machine.attack(
        "import os\nos.makedirs('a/b')\nopen('a/b/c', 'w').close()\n"
        f"os.symlink({str(machine.home)!r}, 'a/link')\nos.chmod('a/b', 0)\nos.chmod('a', 0)\nos.chmod('.', 0o500)"
    )
    assert found["code"] == 0 or machine.isolates  # /tmp in memory is nobody's own
    assert target.read_text() == SECRET


def test_a_crash_leaves_no_core(machine: Machine) -> None:
    found = machine.attack("import ctypes\nctypes.string_at(0)")
    assert found["code"] == 128 + signal.SIGSEGV


# ---- secrets, network, other processes, files


def test_environment_and_home(machine: Machine) -> None:
    found = machine.attack(
        "import os, pathlib\n"
        "print(dict(os.environ), os.listdir('.'), os.path.expanduser('~') == os.getcwd())\n"
        "for path in ('/proc/self/environ', f'/proc/{os.getppid()}/environ'):\n"
        "    try: print(pathlib.Path(path).read_bytes())\n"
        "    except OSError: pass\n"
    )
    assert SECRET not in found["output"]
    assert "[] True" in found["output"]


def test_a_secret_in_a_file(machine: Machine) -> None:
    found = machine.attack(f"print(open({str(machine.home / '.token')!r}).read())")
    assert (SECRET in found["output"]) == machine.open_to("reading files")
    assert SECRET not in found["output"] or not machine.isolates


def test_a_look_into_the_process_above(machine: Machine) -> None:
    """The environment of the process that asked, which holds a secret."""
    found = machine.attack(
        "import os\n"
        "above = os.getppid()\n"
        "asked = open(f'/proc/{above}/stat').read().rpartition(')')[2].split()[1]\n"
        "print(open(f'/proc/{asked}/environ').read())"
    )
    assert (SECRET in found["output"]) == machine.open_to("a look into other processes")
    assert SECRET not in found["output"] or not machine.isolates


def test_descriptors_of_the_training_process(machine: Machine) -> None:
    found = machine.attack(
        "import os\nfor n in range(3, 64):\n    try: os.fstat(n); print(n)\n    except OSError: pass"
    )
    assert found["output"] == ""


def test_network(machine: Machine) -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(4)
        port = server.getsockname()[1]
        found = machine.attack(
            f"import socket\nsocket.create_connection(('127.0.0.1', {port}), timeout=2)\nprint('reached')"
        )
    assert ("reached" in found["output"]) == machine.open_to("use of the network")
    assert "reached" not in found["output"] or not machine.isolates


def test_writing_outside(machine: Machine) -> None:
    machine.outside.chmod(0o777)
    target = machine.outside / "left"
    found = machine.attack(f"open({str(target)!r}, 'w').write('x')\nprint('written')")
    assert target.exists() == ("written" in found["output"]) == machine.open_to("writing files outside")
    assert not target.exists() or not machine.isolates
    target.unlink(missing_ok=True)


def test_the_libraries_it_sees_are_read_only(machine: Machine) -> None:
    if machine.isolates:
        found = machine.attack(
            "import os, json\n"
            "here = os.path.dirname(json.__file__)\n"
            "for path in (json.__file__, here + '/new', '/new', '/dev/new', '/usr/lib/new'):\n"
            "    try: open(path, 'a').close(); print(path)\n"
            "    except OSError: pass\n"
        )
        assert found["output"] == ""
    else:
        assert machine.open_to("writing files outside")


def test_killing_those_above(machine: Machine) -> None:
    """The warden, and the process that asked; the attack then ends by itself."""
    found = machine.attack(
        "import os, signal\n"
        "above = os.getppid()\n"
        "stat = f'/proc/{above}/stat'\n"
        "asked = int(open(stat).read().rpartition(')')[2].split()[1]) if os.path.exists(stat) else 0\n"
        "print(above, asked, flush=True)\n"
        "for pid in (asked, above):\n"
        "    if pid > 1: os.kill(pid, signal.SIGKILL)\n"
        "print('alive')\n"
    )
    killed = found.get("driver") == "SIGKILL"
    assert killed == machine.open_to("signals to other processes")
    assert not killed or not machine.isolates
    for path in machine.temp.iterdir() if killed else ():  # nobody was left to remove its folder
        shutil.rmtree(path)


def test_no_privileges(machine: Machine) -> None:
    found = machine.attack(
        "import ctypes, os\n"
        "library = ctypes.CDLL(None, use_errno=True)\n"
        "print(library.mount(b'none', b'/', None, 32, None), library.sethostname(b'x', 1), library.chroot(b'.'))\n"
        "print(library.unshare(0x10000000))\n"
        "for action in (lambda: os.setuid(0), lambda: os.setgroups([0])):\n"
        "    try: action(); print('became')\n"
        "    except OSError: print('refused')\n"
    )
    lines = found["output"].split("\n")
    assert lines[0] == "-1 -1 -1"
    assert (lines[1] == "0") == machine.open_to("making user namespaces")
    assert lines[3] == "refused"


# ---- passing tests without passing them


TESTS = ["assert f(3) == 9", "assert f(4) == 16", "assert f(-9) == 81"]
FAKES = {
    "exit": "import sys\nsys.exit(0)",
    "exit at once": "import os\nos._exit(0)",
    "exit when called": "import os\ndef f(x): os._exit(0)",
    "leave quietly when called": "def f(x): raise SystemExit(0)",
    "equal to all": (
        "class Any:\n"
        "    def __eq__(self, other): return True\n"
        "    __ne__ = __lt__ = __gt__ = __le__ = __ge__ = __eq__\n"
        "    __hash__ = lambda self: 0\n"
        "def f(x): return Any()"
    ),
    "equal to all, a number": "class Any(int):\n    def __eq__(self, other): return True\ndef f(x): return Any(7)",
    "equal to all, a list": "class Any(list):\n    def __eq__(self, other): return True\ndef f(x): return Any()",
    "overridden builtins": (
        "import builtins, sys, atexit\n"
        "builtins.AssertionError = ZeroDivisionError\n"
        "builtins.exec = builtins.compile = lambda *a, **k: None\n"
        "sys.excepthook = lambda *a: None\n"
        "atexit.register(lambda: __import__('os')._exit(0))\n"
        "for name, module in list(sys.modules.items()):\n"
        "    if name.startswith('posttrain'):\n"
        "        for key, value in list(vars(module).items()):\n"
        "            if callable(value) and key not in ('send', 'receive'): vars(module)[key] = lambda *a, **k: True\n"
        "def f(x): return True"
    ),
    "writing the verdict": (
        "import json, os\n"
        "def f(x):\n"
        "    for n in range(64):\n"
        '        try: os.write(n, b\'{"passed": true, "why": ""}\\n\' * 3)\n'
        "        except OSError: pass\n"
        "    return 0"
    ),
    "answers sent ahead": (
        "import os, struct\n"
        "def f(x):\n"
        "    message = b'[\"ok\", true]'\n"
        "    for n in range(3, 64):\n"
        "        try: os.write(n, (struct.pack('>I', len(message)) + message) * 8)\n"
        "        except OSError: pass\n"
    ),
    "an answer without end": "def f(x): return [0] * 10**7",
    "an answer of great depth": (
        "def f(x):\n    found = []\n    for _ in range(10**5): found = [found]\n    return found"
    ),
    "an answer that never stops": "def f(x):\n    while True: yield 9",
    "a frame that is no answer": (
        "import os, struct\n"
        "def f(x):\n"
        "    for n in range(3, 64):\n"
        "        try: os.write(n, struct.pack('>I', 2**31) + b'x' * 1000)\n"
        "        except OSError: pass\n"
    ),
}


@pytest.mark.parametrize("name", FAKES)
def test_faked_passes(machine: Machine, name: str) -> None:
    found = machine.judge(FAKES[name], TESTS)
    assert found["passed"] == 0, found
    assert found["why"]


def test_an_honest_program_beside_them(machine: Machine) -> None:
    assert machine.judge("def f(x): return x * x", TESTS)["passed"] == 3
    assert machine.judge("def f(x): return abs(x) * 3", TESTS)["passed"] == 1


def test_what_is_expected_is_nowhere_to_be_found(machine: Machine) -> None:
    """Frames, all objects, arguments, descriptors, its folder: the number of the test is in none of them."""
    number = secrets.randbelow(10**12) + 10**12
    found = machine.judge(
        "import gc, os, re, sys\n"
        "def everything():\n"
        "    yield repr(sys.argv) + repr(os.environ)\n"
        "    frame = sys._getframe()\n"
        "    while frame:\n"
        "        yield repr(frame.f_locals) + repr(frame.f_code.co_consts)\n"
        "        frame = frame.f_back\n"
        "    for item in gc.get_objects():\n"
        "        if type(item) in (dict, list, tuple): yield repr(item)[:100000]\n"
        "    for n in range(3, 64):\n"
        "        try: yield os.pread(n, 2**20, 0).decode(errors='replace')\n"
        "        except OSError: pass\n"
        "    for path in os.listdir('.'): yield open(path).read()\n"
        "def f(x):\n"
        "    for text in everything():\n"
        "        for n in re.findall(r'\\b1\\d{12}\\b', text): return int(n)\n",
        [f"assert f(0) == {number}"],
    )
    assert found["passed"] == 0


def test_the_judge_beside_it_cannot_be_entered(machine: Machine) -> None:
    """Without namespaces the program sees the process with the tests; its memory and descriptors are closed to it."""
    found = machine.judge(
        "import os\n"
        "opened = 0\n"
        "def f(x):\n"
        "    global opened\n"
        "    mark = os.environ['" + MARK + "'].encode()\n"
        "    for pid in os.listdir('/proc') if os.path.exists('/proc') else ():\n"
        "        try:\n"
        "            if not pid.isdigit() or int(pid) == os.getpid(): continue\n"
        "            if b'set_limits' not in open(f'/proc/{pid}/cmdline', 'rb').read(): continue\n"
        "            for n in (1, *range(3, 32)):\n"
        "                if os.path.exists(f'/proc/{pid}/fd/{n}'):\n"
        "                    pipe = os.open(f'/proc/{pid}/fd/{n}', os.O_WRONLY)\n"
        '                    os.write(pipe, b\'{"passed": true, "why": ""}\\n\' * 3)\n'
        "        except OSError: pass\n"
        "    return 0\n",
        TESTS,
    )
    assert found["passed"] == 0
