"""Parts of PNGs."""

import struct
import zlib


def chunk(kind: bytes, content: bytes, damaged: bool = False) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content) ^ damaged)
