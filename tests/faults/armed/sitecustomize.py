"""Imported by every Python process that has this directory on its path: arms what `CWSINK_FAILPOINT` says."""

import os

if os.environ.get("CWSINK_FAILPOINT"):
    from tests.faults import failpoints

    failpoints.arm(os.environ[failpoints.VARIABLE])
