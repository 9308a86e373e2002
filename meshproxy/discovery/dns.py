"""Endpoints by DNS: A and AAAA with the configured port, or SRV with its own; asked again when the answer ages.

When asking fails the old snapshot stays and the next question comes later and later. That a name does not exist, or has
no address, is taken for a failure, too: resolvers say so while they restart, and an empty cluster answers nobody.
Endpoints that are truly gone are found out by checks and ejection. dnspython is loaded here and nowhere else.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from ipaddress import ip_address

import dns.asyncresolver
import dns.exception
import dns.resolver
from dns.rdtypes.IN.SRV import SRV

from meshproxy.config import DnsDiscovery, EndpointConfig
from meshproxy.discovery.source import Snapshot

FIRST_BACK_OFF_S = 1.0
MAX_BACK_OFF_S = 60.0
DNS_PORT = 53
LIFETIME_S = 5.0  # of one question, its repetitions included

log = logging.getLogger(__name__)


class DnsSource:
    """Yields what the name resolves to whenever that changes."""

    def __init__(
        self,
        config: DnsDiscovery,
        *,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
        lifetime_s: float = LIFETIME_S,
    ) -> None:
        self.config = config
        self.error: str | None = None  # of the last question
        self._sleep = sleep
        self._lifetime_s = lifetime_s
        self._resolver: dns.asyncresolver.Resolver | None = None  # made when first asked: it may fail, too

    async def snapshots(self) -> AsyncIterator[Snapshot]:
        """Iterate for ever."""
        last: Snapshot | None = None
        back_off_s = FIRST_BACK_OFF_S
        while True:
            try:
                snapshot, ttl_s = await self._ask()
            except (dns.exception.DNSException, OSError) as error:
                self.error = f"{self.config.name}: {error}"
                log.warning("DNS, asked again in %g s, old endpoints stay: %s", back_off_s, self.error)
                await self._sleep(back_off_s)
                back_off_s = min(MAX_BACK_OFF_S, back_off_s * 2)
                continue
            self.error = None
            back_off_s = FIRST_BACK_OFF_S
            if snapshot != last:
                last = snapshot
                yield snapshot
            await self._sleep(min(self.config.max_ttl_s, max(self.config.min_ttl_s, ttl_s)))

    async def _ask(self) -> tuple[Snapshot, float]:
        """Return the endpoints and for how long that holds."""
        if self.config.record == "srv":
            return await self._ask_srv()
        assert self.config.port is not None, "config_file.py refuses an address record without a port"
        addresses, ttl_s = await self._addresses(self.config.name)
        port = self.config.port
        return _in_order(EndpointConfig(address=address, port=port) for address in addresses), ttl_s

    async def _ask_srv(self) -> tuple[Snapshot, float]:
        answer = await self._resolve(self.config.name, "SRV")
        records = [record for record in answer if isinstance(record, SRV)]
        ttls = [_ttl(answer)]
        found = []
        # RFC 2782: a lower priority is asked first; ours count from 0 without gaps.
        priorities = {priority: place for place, priority in enumerate(sorted({one.priority for one in records}))}
        for record in records:
            try:
                addresses, ttl_s = await self._addresses(record.target.to_text(omit_final_dot=True))
            except (dns.resolver.NXDOMAIN, dns.resolver.NoAnswer) as error:
                log.warning("%s: target without address: %s", self.config.name, error)
                continue
            ttls.append(ttl_s)
            found += [
                EndpointConfig(
                    address=address,
                    port=record.port,
                    weight=max(1, record.weight),  # 0 is for those with nothing to choose from
                    priority=priorities[record.priority],
                )
                for address in addresses
            ]
        if not found:
            raise dns.resolver.NoNameservers
        return _in_order(found), min(ttls)

    async def _resolve(self, name: str, kind: str) -> dns.resolver.Answer:
        if self._resolver is None:
            self._resolver = _resolver(self.config.resolver)
            self._resolver.lifetime = self._lifetime_s
        # The search list belongs to the system's resolver; one that is named is asked for whole names.
        return await self._resolver.resolve(name, kind, search=self.config.resolver is None)

    async def _addresses(self, name: str) -> tuple[list[str], float]:
        """Return the addresses of both families. One family without any is fine, a failure of one is not."""
        found: list[str] = []
        ttls: list[float] = []
        missing: dns.exception.DNSException | None = None
        for kind in ("A", "AAAA"):
            try:
                answer = await self._resolve(name, kind)
            except dns.resolver.NoAnswer as error:
                missing = error
                continue
            ttls.append(_ttl(answer))
            found += [record.address for record in answer]
        if not found:
            raise missing if missing is not None else dns.resolver.NoNameservers
        return found, min(ttls)


def _resolver(address: str | None) -> dns.asyncresolver.Resolver:
    if address is None:
        return dns.asyncresolver.Resolver()
    resolver = dns.asyncresolver.Resolver(configure=False)
    host, port = address, DNS_PORT
    if address.startswith("["):
        host, _, after = address[1:].partition("]")
        port = int(after[1:]) if after else DNS_PORT
    elif address.count(":") == 1:
        host, _, text = address.partition(":")
        port = int(text)
    resolver.nameservers = [str(ip_address(host))]
    resolver.port = port
    return resolver


def _ttl(answer: dns.resolver.Answer) -> float:
    # Of all records in the chain, aliases included.
    return float(answer.chaining_result.minimum_ttl)


def _in_order(endpoints: Iterable[EndpointConfig]) -> Snapshot:
    """Sorted, and none twice: servers turn their answers, and that is no change."""
    found = {endpoint.key: endpoint for endpoint in endpoints}
    return tuple(sorted(found.values(), key=lambda one: (one.priority, one.key)))
