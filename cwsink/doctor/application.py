"""Questions about the application: fapilog's plan, the server that runs it, and whether it has time to stop.

What runs is known from the words after `--`, or else from the command lines of the processes that have logged.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from typing import Final

from cwsink.doctor import invocation, machine
from cwsink.doctor.finding import Finding, ok, unknown, warning, wrong
from cwsink.doctor.invocation import SHELLS, Invocation
from cwsink.doctor.patient import Patient
from cwsink.spool.attachment import attached_pids
from cwsink.words import did_you_mean

# fapilog is an application's, and takes half a second to load.
_OF_FAPILOG: Final = ("FAPILOG_CORE__", "FAPILOG_PLUGINS__")
_INIT_PID: Final = 1

# The options that say how long a server waits for its workers, and its default; None: as long as it takes.
_GRACE: Final[dict[str, tuple[tuple[str, ...], float | None]]] = {
    "gunicorn": (("--graceful-timeout",), 30.0),
    "hypercorn": (("--graceful-timeout",), 3.0),
    "uvicorn": (("--timeout-graceful-shutdown",), None),
    "uwsgi": (("--worker-reload-mercy",), 60.0),
    "granian": (("--workers-kill-timeout",), None),
    "celery": ((), None),
}
_KNOWN: Final = {*_GRACE, "pyuwsgi", *SHELLS}
_COOPERATIVE: Final = ("gevent", "eventlet")


def fapilog(patient: Patient) -> Iterator[Finding]:
    """Is fapilog's sink ours, does it write through, and does a plugin wait?"""
    pipeline = patient.config.pipeline if patient.config else "inline"
    if not any(name.startswith(_OF_FAPILOG) for name in patient.env):
        yield unknown("fapilog", "no variable of it is set: sinks and plugins are named in code, if it is used at all")
    else:
        try:
            plan = import_module("cwsink.frontends.fapilog_plan").read()
        except Exception as error:
            yield wrong("fapilog", f"its settings are wrong: {error}")
            return
        yield from _sinks(plan.sinks, is_allowed=plan.is_allowed)
        if plan.lacking:
            yield wrong(
                "write-through",
                f"this fapilog lacks {', '.join(plan.lacking)}",
                "pip install 'fapilog>=0.18.1' cwsink -U",
            )
        for name, why in plan.waiting.items():
            yield warning(
                "write-through",
                f"the plugin {name} may wait ({why}): its loggers keep fapilog's queue, and a kill loses what is in it",
                "Write it without waiting, or leave it out.",
            )
    if pipeline == "queue":
        yield warning(
            "write-through", "pipeline=queue: a kill loses what is still in fapilog's queue", "CWSINK_PIPELINE=inline"
        )


def _sinks(sinks: list[str], *, is_allowed: bool) -> Iterator[Finding]:
    if "cwsink" in sinks and is_allowed:
        yield ok("fapilog", "its sink is cwsink")
    elif "cwsink" in sinks:
        yield warning(
            "fapilog",
            "its sink is cwsink, which fapilog loads only if it may, or if the code calls cwsink.install()",
            """FAPILOG_PLUGINS__ALLOWLIST='["cwsink"]'""",
        )
    elif "cloudwatch" in sinks:
        yield warning(
            "fapilog",
            "its sink is cloudwatch, which is cwsink only if the code calls cwsink.install() before the first logger",
            "import cwsink; cwsink.install()",
        )
    elif sinks:
        yield wrong(
            "fapilog",
            f"its sinks are {', '.join(sinks)}: none of them is cwsink",
            """FAPILOG_CORE__SINKS='["cwsink"]'""",
        )
    else:
        yield unknown("fapilog", "its sinks are named in code")


def server(patient: Patient) -> Iterator[Finding]:
    """What runs the application, and does that suit?"""
    if (found := _running(patient)) is None:
        yield unknown("server", "no process that has logged lives here", "cwsink doctor -- COMMAND")
    elif found is patient.started and found.program not in _KNOWN and not machine.is_command(found):
        seen = f"no command {found.program} is found here, and no server of that name is known."
        yield warning("server", f"{seen}{did_you_mean(found.program, _KNOWN)}")
    else:
        yield ok("server", found.program)  # the other words may hold a secret
        for judge in (_judge_uwsgi, _judge_cooperative):
            yield from judge(found, patient)
        if found.below_shell or found.program in SHELLS:
            yield warning(
                "server", "a shell stays its parent, and does not pass TERM on", "exec, before the last command"
            )
    words = machine.words_of(_INIT_PID)
    init = invocation.read(words, {}) if words and words[0] else None
    if init is not None and (init.below_shell or init.program in SHELLS):
        yield warning(
            "process 1",
            f"it is a shell ({init.program}), which does not pass TERM on",
            'exec, or CMD ["cwsink", "run", ...]',
        )


def _judge_uwsgi(found: Invocation, patient: Patient) -> Iterator[Finding]:
    if found.program not in ("uwsgi", "pyuwsgi"):
        return
    if file := machine.options_file(found):
        yield unknown("threads", f"uWSGI's options are in {file}", "enable-threads = true, if pipeline is queue")
    elif not (found.has("--enable-threads") or found.option("--threads")):
        if patient.config is not None and patient.config.pipeline == "queue":
            yield wrong("threads", "uWSGI runs no threads, so fapilog's queue is never emptied", "--enable-threads")
        else:
            yield ok("threads", "uWSGI runs no threads, and cwsink needs none (other libraries may)")


def _judge_cooperative(found: Invocation, patient: Patient) -> Iterator[Finding]:
    if found.program != "gunicorn":
        return
    kind, file = found.option("--worker-class", "-k"), machine.options_file(found)
    is_preloaded = found.has("--preload", "--preload-app")
    if file and (kind is None or (kind in _COOPERATIVE and not is_preloaded)):
        seen = f"gunicorn's {'worker_class' if kind is None else 'preload_app'} may be in {file}"
        yield unknown("gevent", seen, f"no preload_app, if worker_class is {kind or 'gevent or eventlet'}")
        return
    if kind not in _COOPERATIVE:
        return
    if is_preloaded:
        yield warning(
            "gevent",
            f"--preload imports the application before {kind} has patched Python: locks made by then block the worker",
            f"leave --preload out, or patch in the first line of gunicorn.conf.py: {kind}.monkey",
        )
    else:
        yield ok("gevent", f"{kind} patches Python before the application is imported")


def stopping(patient: Patient) -> Iterator[Finding]:
    """Has the application the time to deliver its last records?"""
    if (found := _running(patient)) is None or found.program not in _GRACE:
        return
    names, grace = _GRACE[found.program]
    with_option = found.option(*names) if names else None
    if with_option is None and (file := machine.options_file(found)):
        name = names[0].removeprefix("--")
        name = name if found.program == "uwsgi" else name.replace("-", "_")
        yield unknown("stopping", f"{found.program}'s {name} may be in {file}", f"{name} > drain timeout")
        return
    grace = float(with_option) if with_option and with_option.replace(".", "", 1).isdigit() else grace
    config = patient.cases[0].config if patient.cases else patient.config
    drain = config.drain_timeout_seconds if config is not None else 0.0
    if found.drain_seconds is None and grace is not None and grace <= drain:
        yield warning(
            "stopping",
            f"{found.program} kills a worker after {grace:g} s, and the last one may deliver for {drain:g} s: "
            "what is left then is late",
            f"{names[0]} {drain + 5:g}",
        )
        return
    total = (grace if grace is not None else 0.0) + (found.drain_seconds if found.drain_seconds is not None else 0.0)
    shown = f"{found.program} waits " + (f"{grace:g} s for its workers" if grace is not None else "as long as it takes")
    shown += (
        f", then cwsink run {found.drain_seconds:g} s" if found.drain_seconds is not None else f"; drain {drain:g} s"
    )
    yield ok("stopping", f"{shown}. Your platform must wait longer than {max(total, drain):g} s before it kills")


def _running(patient: Patient) -> Invocation | None:
    """Return what runs the application: the command, or a living process that has logged; None if there is none."""
    if patient.started is not None:
        return patient.started if patient.started.words else None
    for case in patient.cases:
        if case.directory is not None:
            for pid in attached_pids(case.directory) or ():
                if words := machine.words_of(pid):
                    found = invocation.read(words, patient.env)
                    found.directory = machine.directory_of(pid)
                    return found
    return None
