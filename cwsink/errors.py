"""The exceptions that cwsink raises, all at construction or on a command line.

```text
CwsinkError
├── ConfigError              (ValueError)        code "config"
├── ReadBackError            (ConnectionError)   code "read_back"
└── SpoolError               (OSError)           code "spool"
    ├── SpoolAccessError     (PermissionError)   code "spool_access"
    ├── SpoolFormatError                         code "spool_format"
    └── UnsafeFilesystemError                    code "unsafe_filesystem"
```

A call that logs a record never raises one of them: `append` answers False, and a
counter with a reason moves. A message says what happened, what became of the
data, and what to do.
"""

from __future__ import annotations

from typing import ClassVar


class CwsinkError(Exception):
    """The base of all of cwsink's own errors."""

    code: ClassVar[str] = "cwsink"


class ConfigError(CwsinkError, ValueError):
    """A setting is unknown, of the wrong type, or contradicts another one."""

    code = "config"


class ReadBackError(CwsinkError, ConnectionError):
    """CloudWatch cannot be asked what it has, or does not allow that."""

    code = "read_back"


class SpoolError(CwsinkError, OSError):
    """The spool directory cannot be used. `path` is the directory."""

    code = "spool"

    def __init__(self, message: str, path: str) -> None:
        super().__init__(message)
        self.path = path


class SpoolAccessError(SpoolError, PermissionError):
    """The spool directory belongs to another user, or this process may not write to it."""

    code = "spool_access"


class SpoolFormatError(SpoolError):
    """The directory holds something that is not a spool this version can read."""

    code = "spool_format"


class UnsafeFilesystemError(SpoolError):
    """The spool lies on a file system (such as NFS) where appends and locks may not work as on a local disk."""

    code = "unsafe_filesystem"
