"""The version. A process looks at this file to notice an upgrade of the installation (cwsink.spool.sending)."""

from __future__ import annotations

__version__ = "0.1.0"
