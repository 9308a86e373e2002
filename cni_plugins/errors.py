"""CNI errors: what a plugin answers when it could not do what was asked (CNI SPEC, section 5 'Error').

Read next: protocol.py, which raises most of them, and skel.py, which prints them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum


class Code(IntEnum):
    """Error codes: 1-99 are the specification's, 100 and up are netloom's."""

    INCOMPATIBLE_VERSION = 1
    UNSUPPORTED_FIELD = 2
    UNKNOWN_CONTAINER = 3
    INVALID_ENVIRONMENT = 4
    IO_FAILURE = 5
    DECODING_FAILURE = 6
    INVALID_CONFIG = 7
    INVALID_NETNS = 8
    TRY_AGAIN = 11
    NOT_AVAILABLE = 50  # STATUS: an ADD could not be served
    LIMITED_CONNECTIVITY = 51  # STATUS: running pods are impaired, too
    INTERNAL = 100  # a defect of netloom
    ALREADY_EXISTS = 101  # the attachment is there already
    CHECK_FAILED = 102  # CHECK found something missing
    EXHAUSTED = 103  # no free address
    CONFLICT = 104  # a host port or an address is held by somebody else
    KERNEL = 105  # the kernel refused
    DELEGATE = 106  # a delegated plugin could not be run
    SWEEP_FAILED = 107  # GC went on, but could not remove everything


class CniError(Exception):
    """One failed verb.

    `msg` says what was being done and to what, `details` says what to do about it.
    """

    def __init__(self, code: Code | int, msg: str, details: str = "") -> None:
        super().__init__(msg)
        self.code = int(code)
        self.msg = msg
        self.details = details

    def __str__(self) -> str:
        return f"{self.msg}: {self.details}" if self.details else self.msg

    def to_json(self, cni_version: str) -> dict[str, object]:
        """The error object of the specification."""
        body: dict[str, object] = {"cniVersion": cni_version, "code": self.code, "msg": self.msg}
        if self.details:
            body["details"] = self.details
        return body


def invalid_config(msg: str, details: str = "") -> CniError:
    """The network configuration asks for something impossible."""
    return CniError(Code.INVALID_CONFIG, msg, details)


def check_failed(what: str, details: str = "") -> CniError:
    """CHECK found that `what` does not hold."""
    return CniError(Code.CHECK_FAILED, f"CHECK: {what}", details)


def from_os_error(error: OSError, doing: str) -> CniError:
    """An operating system error, with the words of what was being done."""
    reason = os.strerror(error.errno) if error.errno else str(error)
    name = f" {error.filename}" if error.filename else ""
    return CniError(Code.IO_FAILURE, f"{doing}:{name} {reason}")


def from_import_error(error: ImportError, name: str) -> CniError:
    """A library that is not where `netloom install` found it."""
    return CniError(
        Code.INTERNAL,
        f"netloom's plugin {name} could not be loaded: {error}",
        "a library was moved or removed since `netloom install` was run: run it again",
    )


class Failures:
    """Errors of a verb that goes on: DEL is best effort, GC reports at its end (CNI SPEC, DEL and GC)."""

    def __init__(self) -> None:
        self.errors: list[CniError] = []

    def __repr__(self) -> str:
        return f"Failures({self.errors})"

    @contextmanager
    def trying(self, doing: str) -> Iterator[None]:
        """Do something; keep its error for later."""
        try:
            yield
        except CniError as error:
            self.errors.append(error)
        except OSError as error:
            self.errors.append(from_os_error(error, doing))

    def report(self, code: Code | None = None) -> None:
        """Raise what was kept: one error as it is, several as one (with `code`, or the first one's)."""
        if not self.errors:
            return
        first = self.errors[0]
        if len(self.errors) == 1 and code is None:
            raise first
        words = "; ".join(map(str, self.errors[:20]))
        raise CniError(first.code if code is None else code, f"{len(self.errors)} steps failed", words) from first
