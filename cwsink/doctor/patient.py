"""The patient: what the questions are about, as the environment of a worker names it (reads settings and spools)."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from msgspec.structs import replace

from cwsink import diagnostics, host
from cwsink.config import SinkConfig, load_config, variables_of
from cwsink.doctor import invocation
from cwsink.doctor.invocation import Invocation
from cwsink.errors import ConfigError, CwsinkError, SpoolError
from cwsink.flusher import confidential
from cwsink.flusher.cloudwatch import take_credentials_only
from cwsink.flusher.instructions import config_of
from cwsink.spool import capacity
from cwsink.spool.directory import SpoolDirectory, find_spools, open_existing
from cwsink.spool.root import choose_root
from cwsink.spool.survey import last_append
from cwsink.target import Target, resolve

# A root may hold hundreds of spools. Those that were appended to last are looked at.
MOST_CASES: Final = 4


@dataclass
class Case:
    """A target that is looked at.

    Attributes:
        target: where the records go.
        config: how they are sent.
        directory: the spool; None if nothing was logged there yet.
        is_named: the environment names this target.
        is_reached: its endpoint has answered; None: it was not asked yet.
        is_unreadable: AWS's variables, or the files that they name, make no client: a finding has said so.
    """

    target: Target
    config: SinkConfig
    directory: SpoolDirectory | None
    is_named: bool = False
    is_reached: bool | None = None
    is_unreadable: bool = False

    @property
    def name(self) -> str:
        """The group and the stream, for people."""
        return f"{self.target.log_group_name} → {self.target.log_stream_name}"


@dataclass
class Patient:
    """What the questions are about.

    Attributes:
        env: the environment of a worker.
        started: what the command starts, if one was given.
        config: the settings of the environment; None if they are wrong.
        config_error: why; "" if they are right.
        said: what reading the settings has said: variables without effect.
        root: the directory of the spools; None if it cannot be one.
        root_error: why.
        cases: the targets.
        unreadable: spools that cannot be opened, with the reason.
        left_out: how many more targets there are.
    """

    env: Mapping[str, str]
    started: Invocation | None = None
    config: SinkConfig | None = None
    config_error: str = ""
    said: list[str] = field(default_factory=list)
    root: str | None = None
    root_error: str = ""
    cases: list[Case] = field(default_factory=list)
    unreadable: dict[str, Exception] = field(default_factory=dict)
    left_out: int = 0


def admit(words: list[str], env: Mapping[str, str]) -> Patient:
    """Look at an environment, or at what the words of a command make of it. Raises ValueError: the words are wrong."""
    started = invocation.read(words, env) if words else None
    patient = Patient(dict(started.env) if started else dict(env), started)
    with diagnostics.collected() as said:
        try:
            patient.config = load_config(env=patient.env)
            confidential.learn(patient.config.external_id)
        except ConfigError as error:
            patient.config_error = str(error)
    patient.said = said
    try:
        configured = patient.config.spool_directory if patient.config else None
        patient.root = choose_root(configured, patient.env, make=False)
        for path in find_spools(patient.root):
            _add(patient, path)
    except SpoolError as error:
        patient.root_error = str(error)
    patient.cases.sort(key=lambda case: -((last_append(case.directory) if case.directory else None) or 0.0))
    _name(patient)
    patient.left_out = max(0, len(patient.cases) - MOST_CASES)
    del patient.cases[MOST_CASES:]
    return patient


def become(patient: Patient) -> None:
    """Make this process one as a worker's flusher is: with its variables, but for those of the target."""
    os.environ.clear()
    os.environ.update(patient.env)
    take_credentials_only(os.environ)


def _add(patient: Patient, path: str) -> None:
    try:
        directory = open_existing(path, read_only=True)
        config = config_of(directory)
        confidential.learn(config.external_id)
        if held := capacity.read(directory):
            config = replace(
                config,
                spool_max_bytes=held.spool_max_bytes,
                segment_bytes=held.segment_bytes,
                on_full=held.on_full,
            )
        patient.cases.append(Case(directory.format, config, directory))
    except (CwsinkError, OSError) as error:
        patient.unreadable[path] = error


def _name(patient: Patient) -> None:
    """Find the case that the environment names, and put it first; add it if nothing was logged there yet."""
    config = patient.config
    if config is None or not any(patient.env.get(name) for name in variables_of("log_group_name")):
        return
    try:
        with diagnostics.collected() as said:
            named = resolve(config, patient.env, lambda name: host.look_up(name, patient.env))
        patient.said += said
    except ConfigError as error:
        patient.config_error = str(error)
        return
    same = [case for case in patient.cases if case.target.spool_name == named.spool_name]
    found = same[0] if same else Case(named, config, None)
    found.is_named = True
    patient.cases = [found, *(case for case in patient.cases if case is not found)]
