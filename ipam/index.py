"""The index: finds an owner's reservations, and the next free address, in a handful of reads however many there are.

One file: a header, a hash table of fixed records, bitmaps of taken addresses, 4,096 addresses each. It knows numbers
and keys, never the directory: store.py decides whether to believe it (the stamp in the header), and verifies what it
finds. A process killed in the midst of a change leaves an index that is not believed, hence nothing here is atomic.
It refuses, with OSError, a file that is damaged.
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Iterable, Iterator
from hashlib import blake2b

_MAGIC = b"netloom1"
_HEADER = struct.Struct("<8s16sQQqQ")  # magic, boot id, device and inode of the directory, stamp, number of buckets
_TABLE = 4096  # the header has a page of its own
_RECORD = 24  # an 8-byte key, a 16-byte value
_SLOTS = 31  # records of a bucket; its last 24 bytes hold the offset of the next bucket, or zero
_BUCKET = (_SLOTS + 1) * _RECORD
_BUCKETS_MIN = 4096  # 65,000 reservations fill a bucket half; the file is sparse, 3 MB in name only
_BLOCK = 4096  # addresses of a bitmap: a full /16 is 16 reads, and a lone address costs 512 bytes
_OWNER, _BITMAP = b"\x01", b"\x02"  # last byte of a key; zero marks a record without content


def owner_key(content: bytes) -> bytes:
    """The key of a reservation file's content. Collisions do no harm: what is found is verified."""
    return blake2b(content, digest_size=7).digest() + _OWNER


def _bitmap_key(block: int) -> bytes:
    return blake2b(block.to_bytes(16, "little"), digest_size=7).digest() + _BITMAP


class Index:
    """An open index. It is believed while `describes` holds, and updated after each change of the directory."""

    def __init__(self, fd: int, buckets: int) -> None:
        self._fd = fd
        self._buckets = buckets

    def __repr__(self) -> str:
        return f"Index(fd={self._fd}, buckets={self._buckets}, bytes={os.fstat(self._fd).st_size})"

    def close(self) -> None:
        os.close(self._fd)

    # -- the header ----------------------------------------------------------------------------------------------------

    def seal(self, boot_id: bytes, directory: os.stat_result, stamp: int) -> None:
        """Say which state of which directory the index describes."""
        header = _HEADER.pack(_MAGIC, boot_id, directory.st_dev, directory.st_ino, stamp, self._buckets)
        os.pwrite(self._fd, header, 0)

    # -- owners --------------------------------------------------------------------------------------------------------

    def find(self, key: bytes) -> list[int]:
        """The values of a key."""
        return [
            int.from_bytes(page[at + 8 : at + _RECORD], "little")
            for _, page in self._chain(key)
            for at in _positions(page, key)
        ]

    def add(self, key: bytes, number: int) -> None:
        """Note that the owner with `key` has the address `number`."""
        self._insert(key, number)
        self._mark(number, taken=True)

    def remove(self, key: bytes, number: int) -> None:
        """Forget a reservation."""
        record = key + number.to_bytes(16, "little")
        for offset, page in self._chain(key):
            for at in _positions(page, record):
                os.pwrite(self._fd, bytes(_RECORD), offset + at)
        self._mark(number, taken=False)

    def _insert(self, key: bytes, value: int) -> None:
        record = key + value.to_bytes(16, "little")
        offset = 0
        for offset, page in self._chain(key):
            for at in range(0, _SLOTS * _RECORD, _RECORD):
                if not page[at + 7]:
                    os.pwrite(self._fd, record, offset + at)
                    return
        end = self._end()
        os.pwrite(self._fd, _page([record], 0), end)
        os.pwrite(self._fd, end.to_bytes(_RECORD, "little"), offset + _SLOTS * _RECORD)

    def _chain(self, key: bytes) -> Iterator[tuple[int, bytes]]:
        """The buckets where the key may be, with their offsets."""
        offset = _TABLE + _bucket_of(key, self._buckets) * _BUCKET
        while True:
            page = os.pread(self._fd, _BUCKET, offset)
            following = int.from_bytes(page[_SLOTS * _RECORD :], "little")
            if len(page) != _BUCKET or 0 < following <= offset:  # chains only ever grow towards the end
                raise OSError(errno.EIO, "damaged index")
            yield offset, page
            if not following:
                return
            offset = following

    def _end(self) -> int:
        return os.lseek(self._fd, 0, os.SEEK_END)

    # -- free addresses ------------------------------------------------------------------------------------------------

    def first_free(self, first: int, last: int) -> int | None:
        """The lowest number from `first` to `last` that is not taken."""
        while first <= last:
            block, low = divmod(first, _BLOCK)
            high = min(last - block * _BLOCK, _BLOCK - 1)
            offset = self._bitmap(block)
            bits = int.from_bytes(self._read(offset, _BLOCK // 8), "little") if offset else 0
            free = ~bits & ((1 << high + 1) - (1 << low))
            if free:
                return block * _BLOCK + (free & -free).bit_length() - 1
            first = (block + 1) * _BLOCK
        return None

    def _bitmap(self, block: int) -> int:
        """The offset of a block's bitmap; zero where none of its addresses was ever taken."""
        return next(iter(self.find(_bitmap_key(block))), 0)

    def _mark(self, number: int, *, taken: bool) -> None:
        block, low = divmod(number, _BLOCK)
        offset = self._bitmap(block)
        if not offset:
            offset = self._end()
            os.pwrite(self._fd, bytes(_BLOCK // 8), offset)
            self._insert(_bitmap_key(block), offset)
        byte = self._read(offset + low // 8, 1)[0]
        bit = 1 << low % 8
        os.pwrite(self._fd, bytes([byte | bit if taken else byte & ~bit]), offset + low // 8)

    def _read(self, offset: int, size: int) -> bytes:
        data = os.pread(self._fd, size, offset)
        if len(data) != size:
            raise OSError(errno.EIO, "damaged index")
        return data


def open_index(path: str, boot_id: bytes, directory: os.stat_result) -> Index | None:
    """The index at `path`, if it describes the directory as it is now; None where it must be built anew."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        header = os.pread(fd, _HEADER.size, 0)
        if len(header) == _HEADER.size:
            *says, buckets = _HEADER.unpack(header)
            if says == [_MAGIC, boot_id, directory.st_dev, directory.st_ino, directory.st_mtime_ns] and buckets:
                return Index(fd, buckets)
    except OSError:
        pass
    os.close(fd)
    return None


def build_index(fd: int, entries: Iterable[tuple[bytes, int]]) -> Index:
    """Fill the file with (key, number) entries; owns `fd` from now on. It must be sealed to be believed."""
    records: list[bytes] = []
    bitmaps: dict[int, bytearray] = {}
    for key, number in entries:
        records.append(key + number.to_bytes(16, "little"))
        block, low = divmod(number, _BLOCK)
        bits = bitmaps.get(block)
        if bits is None:
            bits = bitmaps[block] = bytearray(_BLOCK // 8)
        bits[low // 8] |= 1 << low % 8
    buckets = max(_BUCKETS_MIN, 1 << (len(records) // 8).bit_length())
    try:
        _write(fd, records, bitmaps, buckets)
    except BaseException:
        os.close(fd)
        raise
    return Index(fd, buckets)


def _write(fd: int, records: list[bytes], bitmaps: dict[int, bytearray], buckets: int) -> None:
    end = _TABLE + buckets * _BUCKET
    os.ftruncate(fd, 0)  # takes the header away first: a kill from here on leaves no index
    os.ftruncate(fd, end)
    for block, bits in bitmaps.items():
        os.pwrite(fd, bits, end)
        records.append(_bitmap_key(block) + end.to_bytes(16, "little"))
        end += len(bits)
    table: dict[int, list[bytes]] = {}
    for record in records:
        table.setdefault(_bucket_of(record, buckets), []).append(record)
    for bucket, content in table.items():
        offset = _TABLE + bucket * _BUCKET
        for at in range(0, len(content), _SLOTS):
            following = end if at + _SLOTS < len(content) else 0
            os.pwrite(fd, _page(content[at : at + _SLOTS], following), offset)
            offset = end
            end += _BUCKET if following else 0


def _bucket_of(record: bytes, buckets: int) -> int:
    return int.from_bytes(record[:7], "little") % buckets


def _page(records: list[bytes], following: int) -> bytes:
    return b"".join(records).ljust(_SLOTS * _RECORD, b"\0") + following.to_bytes(_RECORD, "little")


def _positions(page: bytes, wanted: bytes) -> Iterator[int]:
    """Where records start with `wanted`."""
    at = page.find(wanted)
    while at >= 0:
        if at % _RECORD == 0 and at < _SLOTS * _RECORD:
            yield at
        at = page.find(wanted, at + 1)
