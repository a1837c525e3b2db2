"""What a command starts in the end, read from its words."""

from __future__ import annotations

import shlex

import pytest

from cwsink.doctor.invocation import read

ENV = {"PATH": "/bin", "AWS_REGION": "us-east-1", "STAGE": "prod"}


@pytest.mark.parametrize(
    ("command", "program"),
    [
        ("gunicorn app:app -w 4", "gunicorn"),
        ("/venv/bin/gunicorn app:app", "gunicorn"),
        ("python3.11 -m uvicorn app:app", "uvicorn"),
        ("python -u -m celery -A tasks worker", "celery"),
        ("/venv/bin/python /venv/bin/gunicorn app:app", "gunicorn"),
        ("python manage.py runserver", "manage.py"),
        ("exec tini -- gunicorn app:app", "gunicorn"),
        ("nice -n 5 gunicorn app:app", "gunicorn"),
        ("poetry run uvicorn app:app", "uvicorn"),
        ("newrelic-admin run-program gunicorn app", "gunicorn"),
        ("opentelemetry-instrument --traces_exporter=none gunicorn app", "gunicorn"),
        ("cwsink run --drain-timeout 3 -- gunicorn app", "gunicorn"),
        ("cwsink status", "cwsink"),
        ("sh -c 'exec gunicorn app:app'", "gunicorn"),
        ("bash -lc 'migrate && gunicorn app:app'", "gunicorn"),
        ("sh entrypoint.sh", "sh"),
        ("env", ""),
        ("env -S 'STAGE=x gunicorn app'", "gunicorn"),
    ],
)
def test_the_program_behind_its_wrappers(command: str, program: str) -> None:
    """Each wrapper is taken off, with its options."""
    assert read(shlex.split(command), ENV).program == program


@pytest.mark.parametrize(
    ("command", "user"),
    [
        ("sudo -u www-data gunicorn app", "www-data"),
        ("sudo --user www-data -- gunicorn app", "www-data"),
        ("sudo gunicorn app", "root"),
        ("gosu app:staff gunicorn app", "app"),
        ("setpriv --reuid=33 --clear-groups gunicorn app", "33"),
        ("runuser -u www-data -- gunicorn app", "www-data"),
        ("su www-data -c 'gunicorn app'", "www-data"),
        ("gunicorn app", None),
    ],
)
def test_the_user(command: str, user: str | None) -> None:
    """The one that a wrapper changes to, and the server is found behind it."""
    found = read(shlex.split(command), ENV)
    assert (found.user, found.program) == (user, "gunicorn")


@pytest.mark.parametrize(
    ("command", "changes"),
    [
        ("env STAGE=test -u AWS_REGION gunicorn app", {"STAGE": "test", "AWS_REGION": None}),
        ("env --unset=STAGE gunicorn app", {"STAGE": None}),
        ("env -i A=b gunicorn app", {"PATH": None, "AWS_REGION": None, "STAGE": None, "A": "b"}),
        ("sh -c 'STAGE=test exec gunicorn app'", {}),
        ("STAGE=test gunicorn app", {"STAGE": "test"}),
        ("sudo -u x STAGE=y gunicorn app", {"AWS_REGION": None, "STAGE": "y"}),
        ("sudo -E -u x gunicorn app", {}),
        ("cwsink run --spool /data/spool -- gunicorn app", {"CWSINK_SPOOL_DIRECTORY": "/data/spool"}),
    ],
)
def test_the_variables(command: str, changes: dict[str, str | None]) -> None:
    """As `env`, a shell and sudo leave them, in that order."""
    found = read(shlex.split(command), ENV)
    if command.startswith("sh -c"):
        changes = {"STAGE": "test"}
    assert found.env == {name: value for name, value in {**ENV, **changes}.items() if value is not None}
    assert found.program == "gunicorn"


def test_whether_a_shell_stays_above() -> None:
    """It does if it has more to do, and no exec gives its place away."""
    assert read(["sh", "-c", "migrate; gunicorn app"], ENV).below_shell
    assert not read(["sh", "-c", "migrate; exec gunicorn app"], ENV).below_shell
    assert not read(["sh", "-c", "gunicorn app"], ENV).below_shell  # a shell runs its only command in its own place


def test_options_however_they_are_written() -> None:
    """With a space, with `=`, and short ones without either."""
    for word in ("--graceful-timeout 5", "--graceful-timeout=5"):
        assert read(shlex.split(f"gunicorn {word} app"), ENV).option("--graceful-timeout") == "5"
    assert read(shlex.split("gunicorn -kgevent app"), ENV).option("--worker-class", "-k") == "gevent"
    assert read(["gunicorn", "app"], ENV).option("--graceful-timeout") is None
    assert read(shlex.split("cwsink run --drain-timeout 3 -- gunicorn app"), ENV).drain_seconds == 3.0
    assert read(shlex.split("cwsink run -- gunicorn app"), ENV).drain_seconds == 10.0


def test_words_without_end() -> None:
    """A quotation that does not end is the caller's mistake."""
    with pytest.raises(ValueError, match="No closing quotation"):
        read(["sh", "-c", "echo 'x"], ENV)
    assert read(["env"] * 100, ENV).words  # and nothing goes on for ever
