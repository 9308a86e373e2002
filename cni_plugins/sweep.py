"""Deciding what `netloom gc` keeps, where no runtime is there to say it.

Valid are the attachments in the result cache (ours, and of every libcni that shares the folder) whose namespace still
exists. One whose namespace cannot be told is kept: a leak is better than a pod cut off.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from .attachments import Attachment, Cached
from .conflist import NetworkList
from .results import version_order


@dataclass(frozen=True, slots=True)
class Sweep:
    """What one GC keeps and removes. `doubtful` are those kept whose namespace is unknown (also in `keep`)."""

    network: NetworkList
    keep: tuple[Attachment, ...]
    remove: tuple[Attachment, ...]
    doubtful: frozenset[str]

    def describe(self) -> str:
        """The plan, a line for each attachment."""
        lines = [f"network {self.network.name} ({self.network.source})"]
        for attachment in self.keep:
            reason = "namespace unknown" if attachment.file_name in self.doubtful else attachment.netns
            lines.append(f"  keep    {attachment.container_id} {attachment.ifname}  {reason}")
        for attachment in self.remove:
            lines.append(f"  remove  {attachment.container_id} {attachment.ifname}  {attachment.netns} is gone")
        if version_order(self.network.cni_version) >= (1, 1):
            others = "anything else" if self.keep else "anything: no attachment is known to be live"
            lines.append(f"  remove  what the plugins hold of this network for {others}")
        else:
            lines.append(f"  (cniVersion {self.network.cni_version} has no GC: the plugins themselves are not asked)")
        return "\n".join(lines)


def plan_sweep(network: NetworkList, cached: Iterable[Cached]) -> Sweep:
    """Sort the cached attachments of a network by whether their namespace is gone (looks at each path)."""
    keep: list[Attachment] = []
    remove: list[Attachment] = []
    doubtful: set[str] = set()
    for entry in cached:
        paths = sorted(entry.sandboxes())
        shown = _named(entry.attachment, ", ".join(paths))
        (remove if entry.is_gone() else keep).append(shown)
        if not paths:
            doubtful.add(shown.file_name)
    return Sweep(network, tuple(keep), tuple(remove), frozenset(doubtful))


def _named(attachment: Attachment, netns: str) -> Attachment:
    """The attachment with the namespace path that its result tells, where the cache has none (libcni before 1.2)."""
    return attachment if attachment.netns else replace(attachment, netns=netns)
