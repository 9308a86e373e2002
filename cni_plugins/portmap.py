"""The portmap plugin: connections to ports of the host are led to a pod. Chained after the plugin that makes the pod.

As the reference's, with keys as in portmap_config.py; what differs, on purpose: a port that another pod holds is
refused (the reference lets the last one win); a pod on two networks holds its ports by the first of them; what DEL
removes is what this attachment added, in this network alone; [::1] is never served (IPv6 has no route_localnet) rather
than hanging; a connection from the pod's whole subnet to its host port works, not only from the pod itself. As there,
where br_netfilter is loaded and passes bridged packets to nftables, a pod reaches itself by its host port only if the
bridge has `hairpinMode`.

A pod without mappings costs nothing: no socket is opened, and nothing is imported that it does not need. What happens
for the others is in portmap_verbs.py.
"""

from __future__ import annotations

from .errors import invalid_config
from .protocol import Call
from .results import Result
from .skel import Plugin


def add(call: Call) -> Result:
    """Take the ports and lead them to the pod."""
    _require_chain(call)
    if _has_mappings(call):
        from . import portmap_verbs

        return portmap_verbs.add(call)
    assert call.config.prev_result is not None
    return call.config.prev_result


def _require_chain(call: Call) -> None:
    if call.config.prev_result is None:
        raise invalid_config(
            "portmap must be a chained plugin: there is no prevResult",
            "list it after the plugin that makes the interface (bridge, ptp, ...)",
        )


def _has_mappings(call: Call) -> bool:
    return bool(call.config.runtime.items("portMappings"))


def delete(call: Call) -> None:
    """Give the ports back. With prevResult, no mappings means that there are none: the runtime keeps both in one
    cache. Without it, there may be some as long as there is the table."""
    if call.config.prev_result is not None and not _has_mappings(call):
        return
    from . import nft_lookup

    if nft_lookup.is_there("inet", "netloom_portmap"):
        from . import portmap_verbs

        portmap_verbs.delete(call)


def check(call: Call) -> None:
    """Compare what is with what ADD made."""
    if _has_mappings(call):
        from . import portmap_verbs

        portmap_verbs.check(call)


def gc(call: Call) -> None:
    """Remove what attachments of this network hold that are not valid any more; repair the rules."""
    from . import portmap_verbs

    portmap_verbs.gc(call)


def status(call: Call) -> None:
    """Whether an ADD could be served: the configuration is sound, the kernel has nftables."""
    from . import nft_lookup, portmap_config

    portmap_config.parse(call.config)
    nft_lookup.require_nftables()


def explain(call: Call) -> str:
    """`--explain`: the nft script."""
    _require_chain(call)
    from . import portmap_verbs

    return portmap_verbs.explain(call)


PLUGIN = Plugin(
    name="portmap",
    about="leads connections to ports of the host to a pod",
    add=add,
    delete=delete,
    check=check,
    gc=gc,
    status=status,
    explain=explain,
)
