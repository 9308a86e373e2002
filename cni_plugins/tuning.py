"""The tuning plugin: kernel settings of the pod's namespace, and address, MTU, queue length and flags of its link.

Keys, result and files as the reference's tuning plugin. What the link was like is kept in `dataDir` and put back by
DEL; settings go with the namespace. Refuses settings outside `net/`, which are not the pod's own, and those that an
allow-list of the node does not name. Links are reached through links.py, imported when a link is to change.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from . import originals, plan, sysctl
from .errors import CniError, Code, Failures, check_failed, from_os_error, invalid_config
from .fields import Fields
from .originals import LinkProperties
from .plan import POD, Sysctl
from .protocol import Call, Config
from .results import Interface, Result
from .skel import Plugin

if TYPE_CHECKING:
    from .links import Link
    from .netlink import NetlinkSocket

ALLOW_LIST = Path("/etc/cni/tuning/allowlist.conf")  # the reference's; no file: all of net/ is allowed
_DATA_DIR = "/run/cni/tuning"
_MAC = re.compile(r"[0-9a-fA-F]{2}([:-])[0-9a-fA-F]{2}(?:\1[0-9a-fA-F]{2}){4}|(?:[0-9a-fA-F]{4}\.){2}[0-9a-fA-F]{4}")


@dataclass(frozen=True, slots=True)
class Tuning:
    """What is asked for. `named` are the settings as the configuration spells them, which the allow-list judges."""

    sysctls: tuple[Sysctl, ...]
    named: tuple[str, ...]
    link: LinkProperties

    @property
    def steps(self) -> tuple[Sysctl | LinkProperties, ...]:
        return self.sysctls + (() if self.link.is_empty else (self.link,))


# --- deciding


def parse(config: Config, args: Mapping[str, str], ifname: str) -> Tuning:
    """Read the configuration; `args.cni` wins over the capability, that over CNI_ARGS, that over the plain keys (as
    the reference). Raises CniError 7."""
    own, wins = config.fields, config.cni_args
    given = {**_texts(own, "sysctl"), **_texts(wins, "sysctl")}
    sysctls: dict[str, Sysctl] = {}
    for name, value in given.items():
        key = sysctl_key(name, ifname)
        if sysctls.setdefault(key, Sysctl(POD, key, value)).value != value:
            raise invalid_config(f"sysctl: {key} is given twice, with different values")
    mac = wins.text("mac") or config.runtime.text("mac") or args.get("MAC", "") or own.text("mac")

    def chosen(key: str) -> Fields:
        return wins if key in wins else own

    link = LinkProperties(
        link=ifname,
        mac=parse_mac(mac) if mac else None,
        mtu=chosen("mtu").number("mtu", most=2**31 - 1) or None,
        txqlen=chosen("txQLen").number("txQLen") if "txQLen" in chosen("txQLen") else None,
        promisc=chosen("promisc").flag("promisc") or None,
        allmulti=chosen("allmulti").flag("allmulti") if "allmulti" in chosen("allmulti") else None,
    )
    return Tuning(tuple(sysctls.values()), tuple(given), link)


def _texts(where: Fields, key: str) -> dict[str, str]:
    inner = where.inner(key)
    return {name: inner.text(name) for name in inner.raw()}


def sysctl_key(name: str, ifname: str) -> str:
    """A setting's path below /proc/sys. Dots or slashes separate; after a first slash, dots belong to names (as with
    sysctl(8), so that a link called eth0.5 can be meant). IFNAME stands for the pod's link. Raises CniError 7."""
    separator = re.search(r"[./]", name)
    parts = name.split("/") if separator and separator[0] == "/" else re.split(r"[./]", name)
    key = "/".join(parts).replace("IFNAME", ifname, 1)
    if not key.startswith("net/"):
        raise invalid_config(
            f"sysctl {name!r} is not a setting of the network", "only net.* is the pod's own; set others on the node"
        )
    sysctl.path_of(key)
    return key


def parse_mac(text: str) -> str:
    """A unicast address in the kernel's spelling. Raises CniError 7."""
    digits = re.sub("[^0-9a-f]", "", text.lower())
    if not _MAC.fullmatch(text) or int(digits[:2], 16) & 1 or not int(digits, 16):
        raise invalid_config(f"{text!r} is no unicast MAC address", "expected six octets such as 02:00:00:00:00:01")
    return ":".join(digits[i : i + 2] for i in range(0, 12, 2))


def check_allowed(named: Iterable[str], allow_list: str) -> None:
    """Refuse settings that no line of the allow-list, a regular expression, matches anywhere. Raises CniError 7."""
    patterns = [line.strip() for line in allow_list.splitlines() if line.strip()]
    try:
        allowed = [re.compile(pattern) for pattern in patterns]
    except re.error as error:
        raise invalid_config(f"{ALLOW_LIST}: {error.pattern!r} is no regular expression", str(error)) from error
    for name in named:
        if not any(pattern.search(name) for pattern in allowed):
            raise invalid_config(f"sysctl {name} is not allowed on this node", f"{ALLOW_LIST} allows: {patterns}")


def properties_of(link: Link, wanted: LinkProperties) -> LinkProperties:
    """What the link has of what is wanted."""
    has = {"mac": link.mac, "mtu": link.mtu, "txqlen": link.txqlen}
    has |= {"promisc": link.is_promisc, "allmulti": link.is_allmulti}
    asked = {f.name for f in fields(wanted) if getattr(wanted, f.name) is not None} - {"link"}
    return LinkProperties(link.name, **{name: has[name] for name in asked})  # type: ignore[arg-type]


def with_properties(result: Result, wanted: LinkProperties) -> Result:
    """The result with the pod's link as it is now."""

    def changed(interface: Interface) -> Interface:
        if interface.name != wanted.link or not interface.sandbox:
            return interface
        return replace(interface, mac=wanted.mac or interface.mac, mtu=wanted.mtu or interface.mtu)

    return replace(result, interfaces=tuple(changed(interface) for interface in result.interfaces))


# --- doing


def add(call: Call) -> Result:
    """Tune the pod. All of it holds afterwards, or nothing was changed."""
    prev = call.config.prev_result
    if prev is None:
        raise invalid_config("tuning has no prevResult", "put it after the plugin that makes the interface")
    wanted = parse(call.config, call.args, call.ifname)
    if wanted.named:
        _check_allowed(wanted.named)
    with ExitStack() as undo:
        for step in wanted.sysctls:
            _set(call, step, undo)
        if not wanted.link.is_empty:
            _change_link(call, wanted.link)
        undo.pop_all()
    return with_properties(prev, wanted.link)


def _check_allowed(named: tuple[str, ...]) -> None:
    try:
        allow_list = ALLOW_LIST.read_text()
    except FileNotFoundError:
        return
    except OSError as error:
        raise from_os_error(error, "reading the allow-list of settings") from error
    check_allowed(named, allow_list)


def _set(call: Call, step: Sysctl, undo: ExitStack) -> None:
    before = sysctl.read(step.key, call.pod)
    if before is None:
        raise invalid_config(f"the pod has no sysctl {step.key}", "is it misspelt, or of a module that is not loaded?")
    if before.split() != step.value.split():
        undo.callback(sysctl.write, step.key, before, call.pod)
        sysctl.write(step.key, step.value, call.pod)


def _change_link(call: Call, wanted: LinkProperties) -> None:
    from . import links

    with links.open_route(call.pod) as socket, ExitStack() as undo:
        link = links.get_link(socket, wanted.link)
        if link is None:
            raise invalid_config(f"the pod has no interface {wanted.link}", "put tuning after the plugin that makes it")
        before = properties_of(link, wanted)
        if before == wanted:
            return
        undo.callback(originals.save(_data_dir(call.config), call.owner, before))
        undo.callback(_restore, socket, link, before)
        for change in _changes(socket, link, wanted):
            change()
        undo.pop_all()


def _changes(socket: NetlinkSocket, link: Link, wanted: LinkProperties) -> list[Callable[[], None]]:
    """What makes the link so, one by one. The MTU comes last: below 1280 the kernel drops the link's IPv6 addresses,
    which no undo brings back (RFC 8200, 5)."""
    from . import links

    found: list[Callable[[], None]] = []
    if wanted.mac is not None:
        found.append(partial(links.set_link, socket, link, mac=wanted.mac))
    if wanted.promisc is not None:
        found.append(partial(links.set_promisc, socket, link, on=wanted.promisc))
    if wanted.allmulti is not None:
        found.append(partial(links.set_allmulti, socket, link, on=wanted.allmulti))
    if wanted.txqlen is not None:
        found.append(partial(links.set_link, socket, link, txqlen=wanted.txqlen))
    if wanted.mtu is not None:
        found.append(partial(links.set_link, socket, link, mtu=wanted.mtu))
    return found


def _restore(socket: NetlinkSocket, link: Link, before: LinkProperties) -> None:
    """Put back what can be put back. What cannot is said on standard error: most links are about to go, and a DEL that
    fails would leave them."""
    for change in _changes(socket, link, before):
        try:
            change()
        except CniError as error:
            print(f"tuning: could not restore {link.name}: {error}", file=sys.stderr)


def _data_dir(config: Config) -> Path:
    return Path(config.fields.text("dataDir") or _DATA_DIR)


def delete(call: Call) -> None:
    """Put the link back as it was, where it is still there. Another container may get it next (host-device)."""
    folder = _data_dir(call.config)
    before = originals.load(folder, call.owner)
    if before is not None and not before.is_empty and call.netns is not None:
        from . import links

        with links.open_route(call.netns) as socket:
            link = links.get_link(socket, call.ifname)
            if link is not None:
                _restore(socket, link, before)
    originals.remove(folder, call.owner)


def check(call: Call) -> None:
    """Each value holds."""
    wanted = parse(call.config, call.args, call.ifname)
    for step in wanted.sysctls:
        found = sysctl.read(step.key, call.pod)
        if found is None:
            raise check_failed(f"the pod has no sysctl {step.key}")
        if found.split() != step.value.split():
            raise check_failed(f"sysctl {step.key} is {found!r} in the pod, not {step.value!r}")
    if wanted.link.is_empty:
        return
    from . import links

    with links.open_route(call.pod) as socket:
        link = links.get_link(socket, wanted.link.link)
        if link is None:
            raise check_failed(f"link {wanted.link.link} is missing in the pod")
        has = properties_of(link, wanted.link)
    for field in fields(has):
        is_, should = getattr(has, field.name), getattr(wanted.link, field.name)
        if is_ != should:
            raise check_failed(f"{field.name} of {link.name} is {_shown(is_)}, not {_shown(should)}")


def _shown(value: object) -> str:
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else str(value)


def gc(call: Call) -> None:
    """Forget what links of this network's attachments were like, of those that are not valid any more."""
    failures = Failures()
    originals.sweep(_data_dir(call.config), call.config.name, call.config.valid_attachments(), failures)
    failures.report(Code.SWEEP_FAILED)


def status(call: Call) -> None:
    """Whether the configuration is sound. The kernel has all that tuning needs."""
    wanted = parse(call.config, call.args, call.ifname or "IFNAME")
    try:
        _check_allowed(wanted.named)
    except CniError as error:
        raise CniError(Code.NOT_AVAILABLE, error.msg, error.details) from error


def explain(call: Call) -> str:
    """`--explain`."""
    wanted = parse(call.config, call.args, call.ifname)
    title = f"tuning: ADD of {call.owner.tag}"
    return plan.explain(title if wanted.steps else f"{title}: nothing to do", wanted.steps)


PLUGIN = Plugin(
    name="tuning",
    about="sets kernel settings in the pod, and address, MTU and flags of its link",
    add=add,
    delete=delete,
    check=check,
    gc=gc,
    status=status,
    explain=explain,
)
