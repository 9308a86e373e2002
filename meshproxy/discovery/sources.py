"""From what a cluster says of its discovery to the source. What one source needs is loaded only for it."""

from __future__ import annotations

from importlib import import_module
from typing import cast

from meshproxy.config import DnsDiscovery, FileDiscovery, StaticDiscovery
from meshproxy.discovery.source import Source
from meshproxy.discovery.static import StaticSource


def source_of(discovery: StaticDiscovery | FileDiscovery | DnsDiscovery) -> Source:
    """Return the source of a cluster's snapshots."""
    match discovery:
        case StaticDiscovery():
            return StaticSource(discovery)
        case FileDiscovery():
            # yaml is loaded with the configuration anyway.
            return cast(Source, import_module("meshproxy.discovery.file").FileSource(discovery))
        case DnsDiscovery():
            # dnspython takes 34 ms and 7 MB.
            return cast(Source, import_module("meshproxy.discovery.dns").DnsSource(discovery))
