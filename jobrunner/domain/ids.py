"""Identifiers: UUIDv7 (RFC 9562), which sort by the time they were made."""

import re
import secrets
import uuid

_UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.ASCII | re.IGNORECASE)
_NUMBER = re.compile(r"[1-9][0-9]{0,17}", re.ASCII)


def make_job_id(unix_ms: int) -> str:
    """Make the id of a job that is submitted at this time (milliseconds since 1970)."""
    value = (unix_ms & (1 << 48) - 1) << 80 | secrets.randbits(80)
    value = value & ~(0xF << 76) | 0x7 << 76  # version 7
    value = value & ~(0x3 << 62) | 0x2 << 62  # variant of RFC 9562
    return str(uuid.UUID(int=value))


def parse_job_reference(text: str) -> str | int | None:
    """Read what a client calls a job by: its uuid (str), its number (int), or neither (None)."""
    if _UUID.fullmatch(text):
        return text.lower()
    if _NUMBER.fullmatch(text):
        return int(text)
    return None
