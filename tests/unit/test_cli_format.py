"""What the command line decides and how it words it, without files or processes."""

from __future__ import annotations

import json
import logging
import os
import subprocess
from typing import Any

import pytest

from cwsink import units, words
from cwsink.cli import main
from cwsink.cli.arguments import COMMANDS, parse, parser
from cwsink.flusher.outcome import advice_on
from cwsink.frontends.log_entry import encode_record
from cwsink.printable import printable
from cwsink.spool.record import Event
from cwsink.spool.stats import state_of
from cwsink.watching import lines
from cwsink.words import LEVELS

NOON_MS = 1_700_000_000_123


def entry(level: str = "INFO", **changes: Any) -> dict[str, Any]:
    """An entry as fapilog writes it."""
    return {
        "timestamp": "2023-11-14T22:13:20.123Z",
        "level": level,
        "message": "order placed",
        "logger": "api.orders",
        "context": {"message_id": "noise", "correlation_id": None, "request_id": "r-1"},
        "diagnostics": {"origin": "native"},
        "data": {"order_id": 17, "name": "A B", "cart": {"items": [1, 2]}},
        **changes,
    }


def line_of(message: object, *, colour: bool = False) -> str:
    """The message as `tail` prints it, without its clock."""
    content = message if isinstance(message, str) else json.dumps(message)
    line = lines.render(lines.read(Event(NOON_MS, 7, 0, content)), today="", colour=colour)
    return line.split(" ", 2)[2]


@pytest.mark.parametrize("shape", [lambda log: log, lambda log: {"schema_version": "1.1", "log": log}])
def test_both_of_fapilogs_shapes_become_one_readable_line(shape: Any) -> None:
    """Level, logger, message, then context and data as key=value; what is null or random is left out."""
    expected = 'INFO     api.orders: order placed  request_id=r-1 order_id=17 name="A B" cart.items=[1,2]'
    assert line_of(shape(entry())) == expected


def test_a_traceback_stands_below_its_record() -> None:
    """Each line of the stack is printed on a line of its own, indented."""
    exception = {"error.type": "KeyError", "error.message": "x", "error.stack": "Traceback:\n  File\nKeyError: x\n"}
    lines = line_of(entry("ERROR", data={}, diagnostics={"exception": exception})).splitlines()
    assert lines[1:] == ["    Traceback:", "      File", "    KeyError: x"]


def test_the_stack_that_a_call_asks_for_stands_below_its_record() -> None:
    """`stack_info=True`: as a traceback, and behind it as logging prints it."""
    record = logging.LogRecord("s", logging.INFO, "f.py", 1, "here", (), None, sinfo="Stack:\n  File 1\n")
    assert line_of(encode_record(record, "here")).splitlines()[1:] == ["    Stack:", "      File 1"]
    record.exc_text = "Traceback\n"
    assert line_of(encode_record(record, "here")).splitlines()[1:] == ["    Traceback", "    Stack:", "      File 1"]


@pytest.mark.parametrize(
    "message", ["plain", "{not json", '{"no": "message"}', '{"log": 5}', "[1]", '{"log": {"a": 1}}']
)
def test_what_is_no_entry_is_printed_as_it_is(message: str) -> None:
    """Any text can be logged; none is lost or misread."""
    assert line_of(message) == message


def test_nothing_from_a_spool_can_steer_the_terminal() -> None:
    """Escape sequences in message, level, logger and data are shown, not obeyed."""
    evil = "\x1b]0;owned\x07"
    shown = line_of(entry(message=evil, logger=evil, level=evil, data={evil: evil}))
    assert not set(shown) & {"\x1b", "\x07"}
    assert "\\x1b]0;owned\\x07" in shown
    assert "\x1b" not in line_of(evil)


@pytest.mark.parametrize(
    ("character", "escape"),
    [("\r", "\\x0d"), ("\x9b", "\\x9b"), ("\u202e", "\\u202e"), ("\u2066", "\\u2066"), ("\u200b", "\\u200b"),
     ("\u2028", "\\u2028"), ("\ufeff", "\\ufeff"), ("\U000e0041", "\\U000e0041"), ("\ud800", "\\ud800")],
)  # fmt: skip
def test_what_acts_or_hides_is_shown_as_an_escape(character: str, escape: str) -> None:
    """Controls, what turns the direction of text, what cannot be seen, other line ends; letters and symbols stay."""
    assert printable(f"a{character}b\tü 🎉\n") == f"a{escape}b\tü 🎉\n"
    assert printable(f"a{character}b\tü 🎉\n", one_line=True) == f"a{escape}b\\tü 🎉\\n"


def test_colour_only_where_it_is_asked_for() -> None:
    """Without colour there is no escape sequence; with it the text between is the same."""
    plain, colourful = line_of(entry()), line_of(entry(), colour=True)
    assert "\x1b" not in plain
    assert "\x1b[32mINFO" in colourful


def test_at_least_a_level() -> None:
    """WARNING lets warnings and above through, and custom levels; no level is no level."""

    def passes(message: object) -> bool:
        return lines.is_at_least(lines.read(Event(0, 0, 0, json.dumps(message))), LEVELS["WARNING"])

    assert [name for name in ("DEBUG", "info", "WARNING", "error", "AUDIT", "CUSTOM") if passes(entry(name))] == [
        "WARNING",
        "error",
        "AUDIT",
        "CUSTOM",
    ]
    assert not passes("plain text")


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(0, "0.0 s"), (9.94, "9.9 s"), (12.4, "12 s"), (59.7, "1 min"), (185, "3 min 5 s"), (7500, "2 h 5 min")],
)
def test_durations_have_two_units_at_most(seconds: float, expected: str) -> None:
    """As people say them."""
    assert words.duration(seconds) == expected
    assert words.duration(86_400 * 3 + 3_600 * 4 + 59) == "3 d 4 h"


@pytest.mark.parametrize(
    ("count", "expected"),
    [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (268_435_456, "256 MiB"), (1 << 40, "1 TiB")],
)
def test_sizes_are_binary(count: int, expected: str) -> None:
    """The units are those of the settings."""
    assert words.size(count) == expected


@pytest.mark.parametrize(
    ("pending", "is_led", "doing", "is_stopped", "is_silent", "expected"),
    [
        (0, False, "idle", False, False, "idle"),
        (0, True, "retrying", True, True, "idle"),
        (1, False, "retrying", False, True, "no_leader"),
        (1, True, "idle", False, False, "delivering"),
        (1, True, "delivering", False, True, "stalled"),
        (1, True, "retrying", False, True, "retrying"),
        (1, True, "circuit_open", False, True, "circuit_open"),
        (1, True, "retrying", True, False, "stalled"),
    ],
)
def test_the_state_of_a_spool(
    pending: int, is_led: bool, doing: Any, is_stopped: bool, is_silent: bool, expected: str
) -> None:
    """Nothing pending is idle, whatever else; a leader that waits for its next try is not stalled."""
    state = state_of(pending=pending, is_led=is_led, doing=doing, is_stopped=is_stopped, is_silent=is_silent)
    assert state == expected


@pytest.mark.parametrize(
    ("error", "meaning"),
    [
        ("AccessDeniedException: User x is not authorized", "Allow the action"),
        ("ExpiredTokenException: expired", "credentials"),
        ("EndpointConnectionError: Could not connect", "network"),
        ("InternalFailure: oops", "busy or out of reach"),
        ("SomethingNew: ?", "busy or out of reach"),
    ],
)
def test_an_error_is_explained(error: str, meaning: str) -> None:
    """The last error comes with what it means."""
    assert meaning in advice_on(error)


@pytest.mark.parametrize("name", ["a b", "it's", "ü", "a\nb", "\x1b[31m'\\1", "\udcff0", "\u202eä\t", "$(id)", "\x011"])
def test_a_command_for_a_path_can_be_pasted(name: str) -> None:
    """A shell finds the path in it again, and no terminal obeys what is in it, or shows it as something else."""
    path = f"/var/{name}"
    command = words.to_send(path)
    assert printable(command, one_line=True) == command
    shown = command.removeprefix("`cwsink flush --once ").removesuffix("`")
    assert subprocess.check_output(["bash", "-c", f"printf %s {shown}"]) == os.fsencode(path)


@pytest.mark.parametrize(
    "words",
    [
        ["status", "--watch", "0"],
        ["status", "--watch", "soon"],
        ["status", "a", "b"],
        ["tail", "-n", "-1"],
        ["tail", "-n", "many"],
        ["tail", "--level", "LOUD"],
        ["flush", "--timeout", "-5"],
        ["flush", "--timeout", "nan"],
        ["frobnicate"],
    ],
)
def test_wrong_usage_is_code_2(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing is done, and stderr names what was wrong."""
    with pytest.raises(SystemExit) as raised:
        parser().parse_args(words)
    assert raised.value.code == 2
    assert "error: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "usage", "why"),
    [
        (["export", "--json"], "usage: cwsink export ", "unrecognized arguments: --json"),
        (["status", "a", "b"], "usage: cwsink status ", "unrecognized arguments: b"),
        (["--frobnicate", "status"], "usage: cwsink status ", "unrecognized arguments: --frobnicate"),
        (["--frobnicate"], "usage: cwsink [-h]", "unrecognized arguments: --frobnicate"),
        (["statsu"], "usage: cwsink [-h]", "no command 'statsu'. Did you mean status? `cwsink --help` lists them."),
        (["Flush"], "usage: cwsink [-h]", "no command 'Flush'. Did you mean flush? `cwsink --help` lists them."),
        (["xyzzy"], "usage: cwsink [-h]", "no command 'xyzzy'. `cwsink --help` lists them."),
    ],
)
def test_a_wrong_word_is_told_with_what_would_be_right(
    words: list[str], usage: str, why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The usage of the command it was said to, or the command that is probably meant."""
    with pytest.raises(SystemExit) as raised:
        parse(words)
    assert raised.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith(usage)
    assert said.endswith(f"{why}\n")


@pytest.mark.parametrize("number", [-5, -(10**40), 10**40, True])
def test_any_number_of_a_level_is_shown(number: int) -> None:
    """A number below all levels, as an application may log it, is shown like any other one, in colours too."""
    made = entry("MINE", data={}, context={}, diagnostics={"levelno": number})
    assert line_of(made) == "MINE     api.orders: order placed"
    assert "order placed" in line_of(made, colour=True)


ODD = ["", "5hs", "2mm", "soon", "1e308h", "nan", "inf", "-5", "0", "0s", "1000000001", "9" * 400 + "h", "h", "."]


@pytest.mark.parametrize("text", ODD)
@pytest.mark.parametrize(
    "words",
    [["check", "--max-age"], ["tail", "--since"], ["export", "--until"], ["verify", "--patience"],
     ["status", "--watch"], ["flush", "--timeout"], ["run", "--drain-timeout"]],
)  # fmt: skip
def test_a_time_that_is_none_is_wrong_usage(words: list[str], text: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever is typed: code 2, with the option and the text, and no name of ours. What is too long for sleep, too."""
    with pytest.raises(SystemExit) as ended:
        parser().parse_args([words[0], f"{words[1]}={text}"])
    assert ended.value.code == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert f"argument {words[1]}: {text!r}" in line
    why = ": a duration is a number of seconds, or a text", " is not above 0 s and up to", " is not a number of seconds"
    assert any(f"{text!r}{each}" in line for each in why)


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90.0), ("1.5h", 5400.0), (".5m", 30.0), ("250ms", 0.25), ("5.s", 5.0), ("1 h", 3600.0)]
)
def test_times_on_the_command_line_are_written_as_in_settings(text: str, seconds: float) -> None:
    """One parser serves both."""
    assert parser().parse_args(["check", "--max-age", text]).max_age == pytest.approx(seconds)
    assert units.read("batch_timeout_seconds", text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["nan", "", "inf", "0", "-3", "high"])
def test_a_percentage_that_is_none_is_called_so(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    """And a rate is a number: neither is one of seconds."""
    for typed, what in (["check", f"--max-fill={text}"], "percentage"), (["verify", f"--rate={text}"], "number"):
        with pytest.raises(SystemExit):
            parser().parse_args(typed)
        assert f"{text!r} is not a {what} above 0" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_no_help_is_wider_than_a_terminal_of_80_columns(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """But for a line that is one word. A terminal would fold the others in the middle of a word."""
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        main([*filter(None, [command]), "--help"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) > 5
    assert [line for line in lines if len(line) > 80 and " " in line.strip()] == []
