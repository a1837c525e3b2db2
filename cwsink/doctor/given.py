"""Questions about settings: what they are, where each comes from, and who else has others."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from msgspec.structs import asdict

from cwsink.config import NOT_SHOWN, SinkConfig, variables_of
from cwsink.doctor.finding import Finding, ok, unknown, warning, wrong
from cwsink.doctor.patient import Case, Patient
from cwsink.frontends.console import is_lambda
from cwsink.spool import capacity, sending
from cwsink.version import __version__

_BY_AWS = {
    "region": ("AWS_REGION", "AWS_DEFAULT_REGION"),
    "endpoint_url": ("AWS_ENDPOINT_URL_CLOUDWATCH_LOGS", "AWS_ENDPOINT_URL"),
}


def settings(patient: Patient) -> Iterator[Finding]:
    """Which settings does the environment give, and is each of them right?"""
    if patient.config is None:
        yield wrong("settings", patient.config_error, "Correct this setting: a worker does not start with it.")
    else:
        shown = [f"{name} {_value(name, value)} ({source})" for name, value, source in _given(patient)]
        yield ok("settings", f"by the environment: {', '.join(shown)}" if shown else "none by the environment")
        if patient.config_error:  # the stream's name cannot be made
            yield wrong("settings", patient.config_error)
    for said in patient.said:
        yield warning("settings", said)


def targets(patient: Patient) -> Iterator[Finding]:
    """Where do the records go?"""
    where = patient.env.get("CWSINK_TARGET", "").strip().lower() or ("stdout" if is_lambda(patient.env) else "")
    if where not in ("", "cloudwatch", "stderr", "stdout", "off"):
        yield wrong(
            "target", f"CWSINK_TARGET={where} is none of cloudwatch, stderr, stdout, off", "unset CWSINK_TARGET"
        )
    elif is_lambda(patient.env) and where == "cloudwatch":
        yield wrong("target", "AWS Lambda freezes the process and throws its disk away", "CWSINK_TARGET=stdout")
    elif is_lambda(patient.env):
        yield ok("target", f"records go to {where}: AWS Lambda sends its stdout to CloudWatch by itself")
    elif where not in ("", "cloudwatch"):
        what = "nowhere" if where == "off" else f"to {where}"
        yield wrong("target", f"records go {what}, and not to CloudWatch: CWSINK_TARGET={where}", "unset CWSINK_TARGET")
    for case in patient.cases:
        target = case.target
        more = (target.region, target.endpoint_url, f"role {target.role_arn}" if target.role_arn else None)
        of = f"{case.name} ({', '.join(filter(None, more))})" if any(more) else case.name
        if case.directory is None:
            yield unknown("target", f"{of}: nothing was logged there yet on this host", "cwsink doctor --probe")
        else:
            yield ok("target", f"{of}, in {case.directory.path}")
    if patient.left_out:
        yield unknown("target", f"{patient.left_out:,} more spools are not looked at", "cwsink status")
    if not patient.cases and not patient.unreadable:
        yield unknown(
            "target",
            "no spool is there yet, and the environment names no log group",
            "Log something first, or name it: CWSINK_LOG_GROUP_NAME=/myapp/prod cwsink doctor",
        )


def writers(patient: Patient) -> Iterator[Finding]:
    """With which settings is each spool sent, and does another writer have others?"""
    for case in patient.cases:
        if case.directory is None:
            continue
        found, held = sending.read(case.directory), capacity.read(case.directory)
        if found is None:
            yield unknown("writers", f"{case.name}: no writer has left settings; the environment's are used")
            continue
        shown = ", ".join(f"{name} {value}" for name, value in sorted(sending.shown(found.settings).items()))
        by = f"{case.name}: as {found.written_by} has said"
        if others := list(_others(patient, case, held)):
            yield warning("writers", f"{by}; the environment says otherwise: {', '.join(others)}", _ONE_PLACE)
        elif found.cwsink != __version__:
            yield warning("writers", f"{by}, a cwsink {found.cwsink}; this is {__version__}", "Restart the workers.")
        else:
            yield ok("writers", f"{by}: {shown}" if shown else f"{by}: all by default")


_ONE_PLACE = "Set it in one place: code wins over variables, and of two writers the newer one."


def _others(patient: Patient, case: Case, held: capacity.Capacity | None) -> Iterator[str]:
    """Yield the settings that the environment gives, and that others have overruled."""
    if not case.is_named or case.directory is None:
        return
    in_use = asdict(case.config)
    for name, value, source in _given(patient):
        if name in ("spool_max_bytes", "segment_bytes", "on_full") and held is None:
            continue
        if name in _OF_SPOOL and in_use[name] != value:
            yield f"{name} {in_use[name]}, not {value} ({source})"


_OF_SPOOL = frozenset(SinkConfig.__struct_fields__) - frozenset(
    "spool_directory allow_unsafe_filesystem app_name block_timeout_seconds flusher pipeline log_stream_name "
    "log_group_name external_id tags adopt_orphans durability".split()
)


def _given(patient: Patient) -> Iterator[tuple[str, Any, str]]:
    """Yield each setting that the environment gives: its name, its value, and the variable."""
    if patient.config is None:
        return
    for name, value in asdict(patient.config).items():
        for variable in (*variables_of(name), *_BY_AWS.get(name, ())):
            if patient.env.get(variable):
                yield name, value, variable
                break


def _value(name: str, value: object) -> str:
    return "(not shown)" if name in NOT_SHOWN else str(value)
