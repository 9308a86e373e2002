"""The store: one network's reservations, a directory that the reference plugin can take over, and hand back, any time.

    <dataDir>/<network>/lock                 held (flock) around each operation, as the reference does
    <dataDir>/<network>/<address>            a reservation: the owner, `containerID\\r\\nifname` (of old: the id alone)
    <dataDir>/<network>/last_reserved_ip.N   where the round robin of range set N stands
    <dataDir>/.netloom/<network>/index       ours: see index.py. No network's name starts with a dot
    <dataDir>/.netloom/<network>/new         ours: a file on its way into the directory

Files are the truth, the index is a shortcut. The question is when to believe that it knows all files, as the
reference, or a person, may add and remove some at any time. The answer is the directory's mtime: when we have changed
directory and index, we *set* the mtime, ten seconds into the past, and note it in the index. The kernel sets it to the
present whenever a name appears or vanishes; hence it equals our note exactly while nobody else has changed the
directory, and neither has one of us who was killed midway. Where they differ, one walk builds the index anew. (To
compare a noted mtime alone would not do: two changes within one tick of the kernel's clock, 4 ms, leave equal mtimes.)
The index survives no reboot, since a power failure may lose its pages, nor a copy of the directory: the header names
boot and inode. Not seen: a change that ignores the lock while we hold it, and a file whose content changes in place.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache

from .index import Index, build_index, open_index, owner_key
from .ranges import parse_address, to_address, to_number

_STATE = ".netloom"
_SECOND = 1_000_000_000
# Far enough back that no clock tick, coarse file system (2 s on some) or small step of the clock can bring it about;
# whole seconds, since some file systems keep no more.
_BACK = 10
_CONTENT_MAX = 4096  # bytes; an owner has at most 1,041


def owner_content(container_id: str, ifname: str) -> bytes:
    """What a reservation file holds."""
    return f"{container_id}\r\n{ifname}".encode(errors="surrogateescape")


class Store:
    """The reservations of one network, while its lock is held (`opened`)."""

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._state = state_of(directory)
        self._new = os.path.join(self._state, "new")
        self._changed = False  # the index was, the directory may have been
        self._consistent = True  # the index knows what the directory holds
        self._on_disk = True  # where the index is in memory, it serves this call alone
        with suppress(OSError):
            os.unlink(self._new)  # of one that was killed: we hold the lock
        index = open_index(os.path.join(self._state, "index"), _boot_id(), os.stat(directory))
        self._index = index or self._walked(_is_written, [])

    def __repr__(self) -> str:
        flags = f"changed={self._changed}, consistent={self._consistent}, on_disk={self._on_disk}"
        return f"Store({self._directory}, {flags}, {self._index!r})"

    # -- questions -----------------------------------------------------------------------------------------------------

    def owned_by(self, content: bytes) -> tuple[int, ...]:
        """The addresses whose files hold `content`: what the index says, checked against the files."""
        with suppress(OSError):  # damaged, or a file that cannot be read any more
            found = self._index.find(owner_key(content))
            if all((_read(self._path(number)) or b"").strip() == content for number in found):
                return tuple(sorted(found))
        self.rebuild()  # somebody works in here without the lock
        return tuple(sorted(self._index.find(owner_key(content))))

    def first_free(self, first: int, last: int) -> int | None:
        """The lowest free number from `first` to `last`."""
        try:
            return self._index.first_free(first, last)
        except OSError:
            self.rebuild()
        return self._index.first_free(first, last)

    def holder(self, number: int) -> str:
        """Who has the address, in words."""
        words = []
        with suppress(OSError):
            words = (_read(self._path(number)) or b"").decode(errors="replace").split()
        return f"container {words[0]}" if words else "nobody known"

    # -- changes -------------------------------------------------------------------------------------------------------

    def reserve(self, number: int, content: bytes) -> bool:
        """Reserve an address; False where it is taken."""
        with self._changing():
            new = self._new_file(content)
            try:
                os.link(new, self._path(number))  # all or nothing, unlike the reference's create and write
            except FileExistsError:
                return False
            finally:
                os.unlink(new)
            self._update(lambda index: index.add(owner_key(content), number))
        return True

    def release(self, number: int, content: bytes) -> None:
        """Free an address that was found to hold `content`."""
        with self._changing():
            with suppress(FileNotFoundError):
                os.unlink(self._path(number))
            self._update(lambda index: index.remove(owner_key(content), number))

    def remember_last(self, position: int, number: int) -> None:
        """Move the round robin of the range set at `position`."""
        path, text = _last_path(self._directory, position), str(to_address(number)).encode()
        with suppress(FileNotFoundError):
            fd = os.open(path, os.O_WRONLY)
            try:
                # In place: ext4 starts to write back at once when a file is replaced, 0.3 ms. Only where one write is
                # all: a kill between it and a truncation would leave an address that nobody meant.
                if os.fstat(fd).st_size == len(text):
                    os.write(fd, text)
                    return
            finally:
                os.close(fd)
        with self._changing():
            os.rename(self._new_file(text), path)

    def sweep(self, is_valid: Callable[[bytes], bool]) -> list[OSError]:
        """Free every address whose content is not valid. Goes on after errors, and returns them."""
        errors: list[OSError] = []
        self._replace_index(is_valid, errors)
        return errors

    def rebuild(self) -> None:
        """Build the index anew from the files."""
        self._replace_index(_is_written, [])

    def close(self) -> None:
        """Make the index believed, if it describes the directory."""
        try:
            if self._changed and self._consistent and self._on_disk:
                status = os.stat(self._directory)
                stamp = (status.st_mtime_ns // _SECOND - _BACK) * _SECOND
                self._index.seal(_boot_id(), status, stamp)
                os.utime(self._directory, ns=(status.st_atime_ns, stamp))
        except OSError:
            pass  # no room, or not ours to touch: the next one walks
        finally:
            self._index.close()

    # -- inside --------------------------------------------------------------------------------------------------------

    def _path(self, number: int) -> str:
        return os.path.join(self._directory, str(to_address(number)))

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """Directory and index may differ inside; who leaves by an exception leaves an index that nobody believes."""
        consistent, self._consistent, self._changed = self._consistent, False, True
        yield
        self._consistent = consistent

    def _update(self, change: Callable[[Index], None]) -> None:
        """Tell the index. Where it has no room, or is damaged, the change stands: the files count."""
        try:
            change(self._index)
        except OSError:
            self.rebuild()

    def _new_file(self, content: bytes) -> str:
        """A file that is not yet in the directory. A kill leaves at most this one, and the next call removes it."""
        path = self._new
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
        try:
            fd = os.open(path, flags, 0o600)
        except FileExistsError:  # no O_TRUNC: it may be the second name of a reservation
            os.unlink(path)
            fd = os.open(path, flags, 0o600)
        except FileNotFoundError:
            make_directories(self._state, 0o700)
            fd = os.open(path, flags, 0o600)
        try:
            os.write(fd, content)
        finally:
            os.close(fd)
        return path

    def _replace_index(self, is_valid: Callable[[bytes], bool], errors: list[OSError]) -> None:
        self._index.close()
        self._index = self._walked(is_valid, errors)
        self._consistent = True

    def _walked(self, is_valid: Callable[[bytes], bool], errors: list[OSError]) -> Index:
        """Walk: remove what is not valid, and index the rest; in memory where no index can be written."""
        entries = []
        for name in os.listdir(self._directory):
            number = _number_of(name)
            if number is None:
                continue
            path = os.path.join(self._directory, name)
            content = None  # an address that cannot be read is taken, by nobody known
            try:
                content = _read(path)
                if content is None or not is_valid(content.strip()):
                    with suppress(FileNotFoundError):
                        os.unlink(path)
                    continue
            except OSError as error:
                errors.append(OSError(error.errno, error.strerror, path))
            entries.append((owner_key((content or b"").strip()), number))
        self._changed = True
        try:
            make_directories(self._state, 0o700)
            fd = os.open(os.path.join(self._state, "index"), os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
            self._on_disk = True
            return build_index(fd, entries)
        except OSError:
            self._on_disk = False
            return build_index(os.memfd_create("index"), entries)


def _is_written(content: bytes) -> bool:
    """Whoever writes here holds the lock, and so do we when we ask: the writer of an empty file was killed."""
    return content != b""


@contextmanager
def opened(directory: str, *, create: bool) -> Iterator[Store | None]:
    """The store in `directory`, locked; None where there is none and it shall not be created."""
    lock = _locked(directory, create=create)
    if lock is None:
        yield None
        return
    try:
        store = Store(directory)
        try:
            yield store
        finally:
            store.close()
    finally:
        os.close(lock)


def last_reserved(directory: str, position: int) -> int | None:
    """The last reservation of the range set at `position`; None where it is unknown."""
    try:
        return to_number(parse_address((_read(_last_path(directory, position)) or b"").decode("ascii")))
    except (OSError, ValueError):
        return None  # the reference, killed, may leave an empty file


def taken_numbers(directory: str) -> frozenset[int]:
    """The reserved addresses, by a walk without the lock: for a preview."""
    try:
        names = os.listdir(directory)
    except FileNotFoundError:
        names = []
    return frozenset(number for number in map(_number_of, names) if number is not None)


def state_of(directory: str) -> str:
    """Where the index of a store is."""
    data_dir, network = os.path.split(directory)
    return os.path.join(data_dir, _STATE, network)


def make_directories(path: str, mode: int = 0o755) -> None:
    """Like mkdir -p, with the mode of Go's MkdirAll for the whole path."""
    try:
        os.mkdir(path, mode)
    except FileExistsError:
        pass
    except FileNotFoundError:
        make_directories(os.path.dirname(path), mode)
        with suppress(FileExistsError):
            os.mkdir(path, mode)


def _locked(directory: str, *, create: bool) -> int | None:
    """A descriptor that holds the directory's lock."""
    while True:
        try:
            fd = os.open(os.path.join(directory, "lock"), os.O_RDWR | os.O_CREAT, 0o750)
        except FileNotFoundError:
            if not create:
                return None
            make_directories(directory)
            continue
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            if os.fstat(fd).st_nlink:
                return fd
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)  # the network was removed while we waited: this lock guards nothing


@cache
def _boot_id() -> bytes:
    """16 bytes; random ones where the kernel does not tell, so that no index of another process is believed."""
    text = b""
    with suppress(OSError):
        text = _read("/proc/sys/kernel/random/boot_id") or b""
    return bytes.fromhex(text.decode().replace("-", "")) or os.urandom(16)


def _last_path(directory: str, position: int) -> str:
    return os.path.join(directory, f"last_reserved_ip.{position}")


def _number_of(name: str) -> int | None:
    """The address that a file's name says; None for names that are not exactly an address's text."""
    try:
        number = to_number(parse_address(name))
    except ValueError:
        return None
    return number if ":" not in name or str(to_address(number)) == name else None  # IPv4 has but one spelling


def _read(path: str) -> bytes | None:
    """The content of a file; None where there is none."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    try:
        return os.read(fd, _CONTENT_MAX)
    finally:
        os.close(fd)
