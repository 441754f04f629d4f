"""What else a PNG or AVIF holds, such as texts and profiles: left out where it keeps whole pixels from being read."""

import struct
import zlib

PNG = b"\x89PNG\r\n\x1a\n"
AVIF = (b"ftypavif", b"ftypavis", b"ftypmif1")  # after 4 bytes
CHUNK = struct.Struct(">I4s")  # length of what follows, kind


def without_notes(data: bytes, all_of_them: bool) -> bytes:
    """A PNG without what can be missed behind the pixels, or anywhere; an AVIF without EXIF; other bytes as they are.

    Of a PNG, colours stay, and EXIF that is whole, as it holds the orientation; an AVIF's stands elsewhere.
    """
    if all_of_them and data[4:12] in AVIF:
        return data.replace(b"Exif", b"none")
    kept, start, at = [], 0, len(PNG) if data.startswith(PNG) else len(data)
    while at + CHUNK.size <= len(data):
        length, kind = CHUNK.unpack_from(data, at)
        end = at + CHUNK.size + length + 4
        all_of_them = all_of_them or kind == b"IDAT"
        missable = kind[0] & 32 and kind != b"tRNS"  # as it begins with a small letter
        damaged = kind != b"eXIf" or zlib.crc32(data[at + 4 : end - 4]).to_bytes(4, "big") != data[end - 4 : end]
        if all_of_them and missable and damaged:
            kept.append(data[start:at])
            start = end
        at = end
    return b"".join((*kept, data[start:])) if kept else data
