"""Judges the entity of a PutLogEvents call (pure).

Called by `actions`. The answer names a bad entity in `rejectedEntityInfo`. It is no error.

Source: CloudWatch Logs API reference, "Entity" and "RejectedEntityInfo".
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from cwsink.limits import ENTITY_KEYS, MAX_ENTITY_ATTRIBUTES, MAX_ENTITY_KEYS, MIN_ENTITY_KEYS

# "Entity": keyAttributes: key 1 to 32, value 1 to 512 characters; attributes: key 1 to 256, value 1 to 512.
MAX_ENTITY_NAME_CHARACTERS: Final = 256
MAX_ENTITY_VALUE_CHARACTERS: Final = 512

# CloudWatch User Guide, "How to add related information to telemetry": the attributes that each Type needs.
ENTITY_TYPES: Final[Mapping[str, frozenset[str]]] = {
    "Service": frozenset(("Name", "Environment")),
    "RemoteService": frozenset(("Name",)),
    "AWS::Service": frozenset(("Name",)),
    "Resource": frozenset(("ResourceType", "Identifier")),
    "AWS::Resource": frozenset(("ResourceType", "Identifier")),
}


def entity_error(
    keys: Mapping[str, str] | None, attributes: Mapping[str, str] | None, *, group_class: str
) -> str | None:
    """Return `rejectedEntityInfo.errorType` of an entity, or None if it is accepted.

    The events of a call with a bad entity are accepted all the same. AWS does not document
    which log classes take entities. The strict reading is that only STANDARD does.
    """
    if group_class != "STANDARD":
        return "UnsupportedLogGroupType"
    if not keys or "Type" not in keys:
        return "MissingRequiredFields"
    if not MIN_ENTITY_KEYS <= len(keys) <= MAX_ENTITY_KEYS or not set(ENTITY_KEYS).issuperset(keys):
        return "InvalidKeyAttributes"
    if keys["Type"] not in ENTITY_TYPES:
        return "InvalidTypeValue"
    if not ENTITY_TYPES[keys["Type"]].issubset(keys):
        return "MissingRequiredFields"
    if not all(1 <= len(value) <= MAX_ENTITY_VALUE_CHARACTERS for value in keys.values()):
        return "InvalidKeyAttributes"
    if len(attributes or ()) > MAX_ENTITY_ATTRIBUTES:
        return "InvalidAttributes"
    for name, value in (attributes or {}).items():
        if not 1 <= len(name) <= MAX_ENTITY_NAME_CHARACTERS or not 1 <= len(value) <= MAX_ENTITY_VALUE_CHARACTERS:
            return "InvalidAttributes"
    return None
