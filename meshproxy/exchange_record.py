"""What the access log tells of an exchange. Off the hot path: asked only when somebody wants the record."""

from __future__ import annotations

from typing import TYPE_CHECKING

from meshproxy.access_log import Record

if TYPE_CHECKING:
    from meshproxy.exchange import Exchange


def record_of(exchange: Exchange) -> Record:
    """The record of a finished exchange."""
    head = exchange.head
    plan = getattr(exchange, "plan", None)
    cluster = getattr(exchange, "cluster", None)
    error = exchange.error
    return Record(
        listener=exchange.listener.config.name,
        route="" if plan is None else plan.route.name,
        cluster="" if cluster is None else cluster.name,
        endpoint="" if exchange.endpoint is None else exchange.endpoint.key,
        protocol="HTTP/2" if exchange.downstream.http2 else "HTTP/1.1",
        method=head.method,
        authority=head.authority,
        path=head.path,
        status=exchange.status,
        grpc_status=exchange.grpc_status,
        error=None if error is None else error.kind,
        detail="" if error is None else error.detail,
        attempts=exchange.attempts,
        duration_s=exchange.listener.shell.now() - exchange.started_at,
        bytes_received=exchange.request_bytes,
        bytes_sent=exchange.answer_bytes,
        peer=exchange.downstream.peer_address,
        request_id=head.get(b"x-request-id") or b"",
        traceparent=head.get(b"traceparent") or b"",
        user_agent=head.get(b"user-agent") or b"",
    )
