"""`cwsink alarms`: print a CloudFormation template, or rules for Prometheus. Both are files in cwsink/watching."""

from __future__ import annotations

import argparse
import sys
from importlib import resources

from cwsink.cli import DONE


def run(options: argparse.Namespace) -> int:
    """Print what is asked for. Returns the exit code."""
    name = "prometheus.yaml" if options.prometheus else "cloudformation.yaml"
    sys.stdout.write((resources.files("cwsink.watching") / name).read_text(encoding="utf-8"))
    return DONE
