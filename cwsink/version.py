"""The version, and the file by which an upgrade of the installation is noticed (cwsink.spool.sending)."""

from __future__ import annotations

__version__ = "0.1.0"
