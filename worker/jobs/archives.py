"""What kind of archive a file is, told by its first bytes."""

from typing import Final, Literal

HEAD_BYTES: Final = 512  # a tar's first header

ArchiveKind = Literal["zip", "tar", "tar.gz"]


def kind_of(head: bytes) -> ArchiveKind | None:
    """`head` is the first HEAD_BYTES of the file. None for anything that is not accepted."""
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):  # the second: a zip without entries
        return "zip"
    if head.startswith(b"\x1f\x8b"):
        return "tar.gz"
    if head[257:262] == b"ustar":
        return "tar"
    return None
