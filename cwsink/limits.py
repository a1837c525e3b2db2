"""The documented limits of CloudWatch Logs, all in one place (pure).

Their source is the CloudWatch Logs API reference, at the action or type that each comment names
(docs.aws.amazon.com/AmazonCloudWatchLogs/latest/APIReference/), and "CloudWatch Logs quotas". The settings are checked
against these limits, the flusher cuts requests by them, and the strict server in `cwsink.testing` judges by them.
"""

from __future__ import annotations

import re
from typing import Final

# PutLogEvents: "The maximum number of log events in a batch is 10,000."
MAX_BATCH_EVENTS: Final = 10_000

# "The maximum batch size is 1,048,576 bytes. This size is calculated as the sum of all event
# messages in UTF-8, plus 26 bytes for each log event."
MAX_BATCH_BYTES: Final = 1_048_576
EVENT_OVERHEAD_BYTES: Final = 26

# "Each log event can be no larger than 1 MB" (raised from 256 KB in April 2025). The 26 bytes count here, too. So this
# is the longest message that always fits.
MAX_EVENT_BYTES: Final = MAX_BATCH_BYTES - EVENT_OVERHEAD_BYTES

# "A batch of log events in a single request cannot span more than 24 hours. Otherwise, the
# operation fails." In practice exactly 24 h is refused, too, so a span must be below this.
MAX_BATCH_SPAN_MS: Final = 86_400_000

# "None of the log events in the batch can be more than 2 hours in the future." / "None of the
# log events in the batch can be more than 14 days in the past" (or older than the retention).
# Such events are rejected with HTTP 200 and `rejectedLogEventsInfo`; the others are accepted.
MAX_FUTURE_MS: Final = 2 * 3_600_000
MAX_PAST_MS: Final = 14 * 86_400_000

# CreateLogGroup: "a-z, A-Z, 0-9, '_', '-', '/', '.', '#', 1 to 512 characters; can't start with aws/".
LOG_GROUP_NAME: Final = re.compile(r"[.\-_/#A-Za-z0-9]{1,512}")
RESERVED_GROUP_PREFIX: Final = "aws/"

# CreateLogStream: "1 to 512 characters; don't use ':' (colon) or '*' (asterisk) characters."
LOG_STREAM_NAME: Final = re.compile(r"[^:*]{1,512}")
MAX_NAME_CHARACTERS: Final = 512

# botocore refuses a region that is no part of a host name.
REGION: Final = re.compile(r"(?!\d+$)[a-zA-Z0-9]([a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?")

# PutRetentionPolicy, "retentionInDays": "Possible values are ...".
RETENTION_DAYS: Final = (
    1, 3, 5, 7, 14, 30, 60, 90, 120, 150, 180, 365, 400, 545, 731, 1096, 1827, 2192, 2557, 2922, 3288, 3653,
)  # fmt: skip

# CreateLogGroup and TagResource, "tags": 1 to 50 items, key 1 to 128, value 0 to 256 characters out of
# [\p{L}\p{Z}\p{N}_.:/=+\-@]; keys that start with "aws:" are AWS's own.
MAX_TAGS: Final = 50
MAX_TAG_KEY_CHARACTERS: Final = 128
MAX_TAG_VALUE_CHARACTERS: Final = 256
TAG_PUNCTUATION: Final = frozenset("_.:/=+-@")
TAG_CHARACTERS: Final = "letters, digits, spaces or _.:/=+-@"
RESERVED_TAG_PREFIX: Final = "aws:"

# "Entity": keyAttributes 2 to 4 items, "five allowed attributes (key names)"; attributes 0 to 10 items.
ENTITY_KEYS: Final = ("Type", "ResourceType", "Identifier", "Name", "Environment")
MIN_ENTITY_KEYS: Final = 2
MAX_ENTITY_KEYS: Final = 4
MAX_ENTITY_ATTRIBUTES: Final = 10


def is_tag_text(text: str) -> bool:
    """Tell whether each character may be in a tag. The documented pattern names classes that `re` does not know."""
    import unicodedata  # here, because few tag, and every worker would hold it in memory

    return all(c in TAG_PUNCTUATION or unicodedata.category(c)[0] in "LZN" for c in text)
