"""One request and its answer: from the route to the last byte, over one or more attempts.

A Downstream makes an Exchange for each request, calls `start`, then hands over the body. parts.py has the interfaces.
After `on_client_gone` or `abort` nobody calls the other any more.
"""

from __future__ import annotations

from meshproxy.listener import ListenerRuntime
from meshproxy.message import Fields, ProxyError, RequestHead, ResponseHead
from meshproxy.parts import Downstream, UpstreamStream


class Exchange:
    """The interface that codecs build on; implemented step by step."""

    def __init__(self, downstream: Downstream, listener: ListenerRuntime, head: RequestHead) -> None:
        raise NotImplementedError

    def start(self, *, end: bool) -> None:
        """Route and send the request. `end`: it has no body."""

    # -- called by the Downstream

    def on_request_data(self, data: bytes) -> None: ...

    def on_request_end(self, trailers: Fields) -> None: ...

    def on_client_gone(self) -> None: ...

    def pause_answer(self) -> None: ...

    def resume_answer(self) -> None: ...

    # -- called by the UpstreamStream (AnswerReceiver)

    @property
    def answer_paused(self) -> bool:
        raise NotImplementedError

    def on_upstream(self, stream: UpstreamStream) -> None: ...

    def on_interim(self, head: ResponseHead) -> None: ...

    def on_answer_head(self, head: ResponseHead, *, end: bool) -> None: ...

    def on_answer_data(self, data: bytes) -> None: ...

    def on_answer_end(self, trailers: Fields) -> None: ...

    def on_answer(self, head: ResponseHead, data: bytes) -> None: ...

    def on_failure(self, error: ProxyError) -> None: ...

    def pause_request(self) -> None: ...

    def resume_request(self) -> None: ...
