"""The interfaces between the parts of the shell: who calls whom while a request is carried.

    Downstream (server_http1, server_http2)  <->  Exchange  <->  UpstreamStream (upstream_http1, upstream_http2)

An exchange is one request and its answer. It calls its Downstream, which speaks to the client, and the UpstreamStream
of its attempt, which speaks to an endpoint; both call back. Heads come whole, bodies in pieces, trailers last. All of
it runs on one loop, never waits, and never calls back from inside the call it answers to after `reset` or `abort`.

Nothing here does anything; the classes are structural. exchange.py implements AnswerReceiver.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from meshproxy.listener import ListenerRuntime
    from meshproxy.message import Fields, ProxyError, RequestHead, ResponseHead


class Downstream(Protocol):
    """What an exchange answers to: an HTTP/1 connection, or a stream of an HTTP/2 connection."""

    @property
    def peer_address(self) -> str: ...

    @property
    def listener(self) -> ListenerRuntime: ...

    @property
    def http2(self) -> bool: ...

    def send_interim(self, head: ResponseHead, /) -> None:
        """A 1xx answer, 101 excepted: that one is a head."""

    def send_head(self, head: ResponseHead, /, *, end: bool) -> None:
        """The final answer's head (or 101, after which data is a tunnel's). `end`: no body and no trailers follow."""

    def send_data(self, data: bytes, /) -> None: ...

    def send_end(self, trailers: Fields, /) -> None: ...

    def send_answer(self, head: ResponseHead, data: bytes, /) -> None:
        """Head, body and end in one call, since most answers arrive whole: one write."""

    def abort(self, error: ProxyError, /) -> None:
        """The answer cannot be finished: break the connection, or RST_STREAM."""

    def pause_request(self) -> None:
        """Ask for no more of the request's body until resume_request."""

    def resume_request(self) -> None: ...


class AnswerReceiver(Protocol):
    """What an UpstreamStream and a Pool report to: the exchange, or its hedge or mirror."""

    @property
    def answer_paused(self) -> bool:
        """Whether a stream that joins now has to begin with its answer paused."""

    def on_upstream(self, stream: UpstreamStream, /) -> None:
        """The pool gives the stream that `open` promised."""

    def on_interim(self, head: ResponseHead, /) -> None: ...

    def on_answer_head(self, head: ResponseHead, /, *, end: bool) -> None: ...

    def on_answer_data(self, data: bytes, /) -> None: ...

    def on_answer_end(self, trailers: Fields, /) -> None: ...

    def on_answer(self, head: ResponseHead, data: bytes, /) -> None:
        """Head, body and end in one call."""

    def on_failure(self, error: ProxyError, /) -> None:
        """The attempt failed. Nothing follows."""

    def pause_request(self) -> None: ...

    def resume_request(self) -> None: ...


class UpstreamStream(Protocol):
    """One attempt's way to an endpoint: an HTTP/1 connection while it carries it, or an HTTP/2 stream."""

    def send_request(self, head: RequestHead, /, *, end: bool) -> None: ...

    def send_data(self, data: bytes, /) -> None: ...

    def send_end(self, trailers: Fields, /) -> None: ...

    def reset(self) -> None:
        """Give the attempt up. The receiver hears nothing more."""

    def pause_answer(self) -> None: ...

    def resume_answer(self) -> None: ...


class Pool(Protocol):
    """The connections to one endpoint over one protocol. upstream.py makes it, `Endpoint.pool` holds it."""

    def open(self, receiver: AnswerReceiver, /) -> UpstreamStream | None:
        """A stream now; or None, and on_upstream or on_failure later. Never calls back before it returns.

        Raises ProxyError where it is full.
        """

    def cancel(self, receiver: AnswerReceiver, /) -> None:
        """The receiver no longer waits for the stream it was promised."""

    def close(self) -> None:
        """Close what is idle, let what is busy end, then close that: the endpoint has left or is another one now."""
