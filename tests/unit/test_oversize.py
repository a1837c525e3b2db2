"""What is too long for CloudWatch, cut or in pieces: legal, readable, and nothing is made up."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cwsink.flusher import oversize
from cwsink.flusher.oversize import is_embedded_metric, split, truncate
from cwsink.limits import MAX_EVENT_BYTES

LIMIT = 1024
QUARTER_MIB = 262_118
ID = "ffffffffffffffff-18446744073709551615"
HANG_SECONDS = 60.0

quick = settings(max_examples=100, deadline=None)

# All that UTF-8 can say: a message is never anything else, see Writer.append.
characters = st.characters(exclude_categories=["Cs"])
# What JSON escapes, what takes two, three and four bytes, and what splits if treated as UTF-16.
awkward = st.sampled_from(
    ["\0", "\x1f", '"', "\\", "\n", "\x7f", "é", "€", "😀", "e\u0301", "👩‍👩‍👧", "\u2028", "a", "/"]
)
texts = st.builds(
    lambda pieces, times: "".join(pieces) * times,
    st.lists(awkward | st.text(characters, max_size=8), min_size=1, max_size=12),
    st.integers(1, 400),
)
limits = st.integers(LIMIT, 3 * LIMIT)
scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(characters, max_size=6), inner, max_size=4),
    max_leaves=8,
)


def size_of(message: str) -> int:
    return len(message.encode())


def strict(message: str) -> Any:
    """Parse as a reader that is stricter than Python: no NaN, no Infinity."""

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    return json.loads(message, parse_constant=refuse)


def joined(parts: list[str]) -> str:
    """Reassemble as documented, from events in any order."""
    contents = [json.loads(part) for part in reversed(parts)]
    contents.sort(key=lambda content: content["_cwsink_part"]["index"])
    return "".join(content["text"] for content in contents)


# truncate


@quick
@given(message=texts | values.map(json.dumps), limit=limits)
def test_a_message_within_the_limit_is_untouched(message: str, limit: int) -> None:
    """To the byte: nothing is parsed, reordered or noted."""
    limit = max(limit, size_of(message))
    assert truncate(message, limit) == message


@quick
@given(message=texts, limit=limits)
def test_a_text_is_cut_at_a_character_and_says_so(message: str, limit: int) -> None:
    """What is no JSON: the longest beginning that fits, and a note with the original size."""
    size = size_of(message)
    if size <= limit or is_json(message):
        return
    cut = truncate(message, limit)
    kept, mark, note = cut.rpartition("... [truncated by cwsink, ")
    assert mark
    assert note == f"{size} bytes]"
    assert message.startswith(kept)
    assert limit - 4 < size_of(cut) <= limit


def is_json(message: str) -> bool:
    try:
        json.loads(message)
    except ValueError:
        return False
    return True


@quick
@given(content=st.dictionaries(st.text(characters, max_size=6), values, min_size=1, max_size=5), limit=limits)
def test_an_object_stays_an_object_and_only_texts_get_shorter(content: dict[str, Any], limit: int) -> None:
    """Keys, numbers, structure and short texts are as they were; or, at worst, the object became its own text."""
    content.pop("_cwsink", None)
    message = json.dumps(content, ensure_ascii=False)
    size = size_of(message)
    if size <= limit:
        return
    cut = truncate(message, limit)
    assert size_of(cut) <= limit
    read = strict(cut)
    assert read.pop("_cwsink") == {"truncated": True, "original_bytes": size}
    if set(read) == {"text"} and set(content) != {"text"}:
        assert message.startswith(read["text"].removesuffix("..."))
        assert len(read["text"]) >= limit // 8  # each character may take six bytes, and its escape two
    else:
        assert_only_shortened(content, read)


def assert_only_shortened(before: Any, after: Any) -> None:
    if isinstance(before, str) and before != after:
        assert after.endswith("...")
        assert before.startswith(after.removesuffix("..."))
    elif isinstance(before, dict):
        assert list(before) == list(after)
        for key, value in before.items():
            assert_only_shortened(value, after[key])
    elif isinstance(before, list):
        assert len(before) == len(after)
        for one, other in zip(before, after, strict=True):
            assert_only_shortened(one, other)
    else:
        assert before == after


@quick
@given(content=st.lists(values, min_size=1, max_size=4), limit=limits)
def test_json_that_is_no_object_becomes_the_text_of_one(content: list[Any], limit: int) -> None:
    """A list or a bare text stays readable JSON: an object that holds its beginning."""
    message = json.dumps(content)
    if size_of(message) <= limit:
        return
    cut = truncate(message, limit)
    assert size_of(cut) <= limit
    read = strict(cut)
    assert read["_cwsink"] == {"truncated": True, "original_bytes": size_of(message)}
    assert message.startswith(read["text"].removesuffix("..."))


def test_the_longest_texts_are_cut_to_one_length() -> None:
    """What is short says what the event is about: it stays whole, and the long ones share the room evenly."""
    content = {"level": "ERROR", "time": "2026-11-23T05:58:05.112Z", "a": "a" * 5000, "data": {"b": ["b" * 900, 7]}}
    read = strict(truncate(json.dumps(content), LIMIT))
    assert (read["level"], read["time"], read["data"]["b"][1]) == ("ERROR", "2026-11-23T05:58:05.112Z", 7)
    assert len(read["a"]) == len(read["data"]["b"][0])
    assert read["a"].endswith("a...")
    assert LIMIT - 2 <= size_of(truncate(json.dumps(content), LIMIT)) <= LIMIT


def test_an_object_of_many_short_texts_becomes_its_own_text() -> None:
    """Ten thousand texts of a few characters each would say nothing; the beginning does."""
    message = json.dumps({f"key{number}": "a text of forty characters, all in all.." for number in range(10_000)})
    read = strict(truncate(message, LIMIT))
    assert set(read) == {"_cwsink", "text"}
    assert read["text"].startswith('{"key0": "a text of forty characters')


@pytest.mark.parametrize(
    "member",
    [
        pytest.param("1e999", id="a number beyond a double's range"),
        pytest.param("1" * 5_000, id="an integer of more digits than Python converts"),
        pytest.param("[" * 100_000 + "]" * 100_000, id="nested deeper than Python goes"),
        *(pytest.param("[" * depth + "]" * depth, id=f"nested {depth} deep") for depth in range(900, 1000, 7)),
        pytest.param(r'"\ud83d"', id="half a surrogate pair"),
        pytest.param(r'{"\udc00": "\udc00 \ud800"}', id="halves in the wrong order, in a key too"),
    ],
)
def test_json_that_python_cannot_give_back_stays_json(member: str) -> None:
    """Whatever a logger of another language wrote: no exception, which would stop all delivery, and legal JSON."""
    message = f'{{"a": {member}, "text": "{"x" * 300_000}"}}'
    cut = truncate(message, QUARTER_MIB)
    assert size_of(cut) <= QUARTER_MIB
    assert strict(cut)["_cwsink"]["original_bytes"] == size_of(message)


def test_half_a_surrogate_pair_keeps_the_structure() -> None:
    """It is written as the escape it came from, and the rest of the object is shortened as ever."""
    cut = truncate(r'{"half": "\ud83d", "long": "' + "é" * LIMIT + '"}', LIMIT)
    assert r'"half":"\ud83d"' in cut
    assert strict(cut)["long"].endswith("é...")


def test_the_original_size_is_in_bytes() -> None:
    """Not characters: it is what CloudWatch would have counted."""
    assert strict(truncate(json.dumps({"m": "é" * 2000}, ensure_ascii=False), LIMIT))["_cwsink"] == {
        "truncated": True,
        "original_bytes": 4009,
    }
    assert truncate("é" * 2000, LIMIT).endswith("... [truncated by cwsink, 4000 bytes]")


# split


@quick
@given(message=texts, limit=limits)
def test_parts_are_legal_json_within_the_limit_and_give_the_message_back(message: str, limit: int) -> None:
    """Byte for byte, in any order: controls, quotes, astral characters, NUL."""
    parts = split(message, limit, ID)
    assert all(size_of(part) <= limit for part in parts)
    headers = [strict(part)["_cwsink_part"] for part in parts]
    assert headers == [{"id": ID, "index": index, "total": len(parts)} for index in range(len(parts))]
    assert joined(parts).encode() == message.encode()


@quick
@given(message=texts, limit=limits)
def test_parts_are_few(message: str, limit: int) -> None:
    """Each but the last is full, but for its envelope and a character that did not fit."""
    parts = split(message, limit, ID)
    assert all(size_of(part) > limit - 250 for part in parts[:-1])


@pytest.mark.parametrize("limit", [LIMIT, QUARTER_MIB, MAX_EVENT_BYTES])
@pytest.mark.parametrize("character", ["x", "\0", "\\", '"', "é", "€", "😀"])
def test_a_message_of_one_character_is_split_at_every_limit(character: str, limit: int) -> None:
    """The worst cases of each width of an escape and of UTF-8, at the limits there are."""
    message = character * (2 * limit + 1)
    parts = split(message, limit, ID)
    assert max(map(size_of, parts)) <= limit
    assert joined(parts) == message


@pytest.mark.parametrize("content", [{"m": "x" * 5000}, ["\\" * 5000], "é" * 5000])
def test_a_split_message_may_itself_be_json(content: Any) -> None:
    """Escapes within escapes come back as they were."""
    for message in (json.dumps(content), json.dumps(content, ensure_ascii=False, indent=2)):
        assert joined(split(message, LIMIT, ID)) == message


# Both


MIB = 1 << 20
LARGE = {
    "ascii": "x" * (16 * MIB - 100),
    "nul": "\0" * (16 * MIB - 100),
    "astral": "😀" * (4 * MIB - 100),
    "escapes, then none": ("\0" * 166_000 + "x" * 400_000) * 29,
    "one text": json.dumps({"m": "y" * 15 * MIB}),
    "90,000 texts": json.dumps({str(number): "z" * 160 for number in range(90_000)}),
    "300 texts": json.dumps({str(number): "z" * 50_000 for number in range(300)}),
    "no text": json.dumps(list(range(2_000_000))),
}


@pytest.mark.parametrize("message", LARGE.values(), ids=LARGE.keys())
def test_the_largest_record_there_can_be_takes_no_quadratic_time(message: str) -> None:
    """16 MiB: about a second on a slow day. One round of encoding for each text took half a minute."""
    began = time.process_time()  # of the CPU: another process may have it meanwhile
    cut = truncate(message, MAX_EVENT_BYTES)
    parts = split(message, MAX_EVENT_BYTES, ID)
    assert time.process_time() - began < HANG_SECONDS / 4
    assert size_of(cut) <= MAX_EVENT_BYTES
    assert joined(parts) == message


def test_nothing_that_is_legal_reaches_the_last_resort() -> None:
    """An object that holds only the note would have lost everything: the object of one text always fits."""
    worst = json.dumps(["\0" * 3000])
    assert len(strict(truncate(worst, LIMIT))["text"]) > LIMIT // 4
    assert oversize._shorten({"_cwsink": {"truncated": True, "original_bytes": 1 << 60}, "text": "\0" * 9999}, LIMIT)


# is_embedded_metric


@pytest.mark.parametrize(
    ("message", "is_one"),
    [
        ('{"_aws": {"Timestamp": 1, "CloudWatchMetrics": []}, "latency": 5}', True),
        ('{"latency": 5, "_aws": {}}', True),
        ('{"data": {"_aws": {}}}', False),
        ('{"message": "\\"_aws\\" is a key"}', False),
        ('[{"_aws": {}}]', False),
        ('"_aws"', False),
        ('{"_aws": ', False),
        ('text with "_aws" in it', False),
        ("{}", False),
        ("", False),
        ('"_aws"' + "[" * 100_000, False),
    ],
)
def test_an_embedded_metric_is_known_by_its_member(message: str, is_one: bool) -> None:
    """A JSON object with `_aws` at its top, and nothing that merely looks like one."""
    assert is_embedded_metric(message) is is_one
