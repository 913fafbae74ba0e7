"""A disk that is full, or a folder that cannot be written: told apart from other errors, and said in one line."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator

_FULL_OR_READ_ONLY = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)
_OF_A_FILE = (*_FULL_OR_READ_ONLY, errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE)
# torch and safetensors hand the system's error on as text, or lose it
_SAID = re.compile(
    r"no space left on device|disk quota exceeded|read-only file system|file too large", re.IGNORECASE
)
_SAID_OF_A_FILE = re.compile(r"permission denied|input/output error|stale file handle", re.IGNORECASE)
_HALF_WRITTEN = re.compile(r"PytorchStreamWriter failed writing|inline_container\S*.*unexpected pos")


class StorageError(Exception):
    """What a run saves cannot be written. One line: what, why, what stands, what to do."""


def storage_fault(error: BaseException, *, writing: bool = False) -> str | None:
    """Why nothing could be written, when that is what `error`, or one it came from, says; else None.

    writing  the error came out of writing: then a refused permission is one of storage too
    """
    known = _OF_A_FILE if writing else _FULL_OR_READ_ONLY
    for one in _chain(error):
        if isinstance(one, OSError) and one.errno is not None and one.errno in known:
            return os.strerror(one.errno)
        found = _SAID.search(str(one)) or (_SAID_OF_A_FILE.search(str(one)) if writing else None)
        if found is not None:
            return found[0]
        if writing and _HALF_WRITTEN.search(str(one)) is not None:
            return "a file could not be written whole (is the disk full?)"
    return None


def _chain(error: BaseException) -> Iterator[BaseException]:
    one: BaseException | None = error
    while one is not None:
        yield one
        one = one.__cause__ or one.__context__
