"""The netlink socket: batches answered in order, the kernel's words in errors, dumps whole, nothing read twice."""

from __future__ import annotations

import errno
from collections.abc import Iterator

import pytest

from cni_plugins import links
from cni_plugins.errors import Code
from cni_plugins.netlink import KernelError, NetlinkSocket, attributes, walk
from cni_plugins.netns import inside, open_netns
from cni_plugins.plan import Bridge
from namespaces import Namespace


@pytest.fixture
def route(host: Namespace) -> Iterator[NetlinkSocket]:
    with host.inside(), links.open_route() as socket:
        yield socket


def test_the_answers_of_a_batch_are_in_order_and_each_has_its_own_error(route: NetlinkSocket) -> None:
    names = ["lo", "nobody", "lo"]
    answers = route.exchange([links._link(links._GETLINK, 0, name, links._name(name)) for name in names])
    assert [answer.number for answer in answers] == [0, errno.ENODEV, 0]
    assert [len(answer.bodies) for answer in answers] == [1, 0, 1]
    assert route.sent == 3


def test_run_raises_for_the_first_error_with_its_place_and_what_was_being_done(route: NetlinkSocket) -> None:
    names = ["lo", "nobody", "nobody-too"]
    with pytest.raises(KernelError) as caught:
        route.run([links._link(links._GETLINK, 0, f"looking for {name}", links._name(name)) for name in names])
    assert (caught.value.number, caught.value.index, caught.value.code) == (errno.ENODEV, 1, Code.KERNEL)
    assert caught.value.msg == "looking for nobody: No such device"


def test_an_error_carries_the_kernels_own_words(route: NetlinkSocket) -> None:
    with pytest.raises(KernelError) as caught:
        route.run([links._link(links._NEWLINK, 0x400, "making it", links._info("?"))])
    assert caught.value.details == "Unknown device type"


def test_a_tolerated_error_is_an_answer(route: NetlinkSocket) -> None:
    request = links._link(links._GETLINK, 0, "looking", links._name("nobody"))
    request.tolerated = frozenset((errno.ENODEV,))
    assert route.run([request])[0].number == errno.ENODEV


def test_an_empty_batch_sends_nothing(route: NetlinkSocket) -> None:
    assert route.run([]) == []
    assert route.sent == 0


def test_a_dump_of_many_datagrams_is_whole(host: Namespace, route: NetlinkSocket) -> None:
    commands = "".join(f"link add b{i} type bridge\n" for i in range(120))
    host.run("ip", "-batch", "-", input=commands)
    assert {link.name for link in links.list_links(route)} == {"lo", *(f"b{i}" for i in range(120))}


def test_a_look_at_a_dumps_beginning_disturbs_no_later_answer(host: Namespace, route: NetlinkSocket) -> None:
    host.run("ip", "-batch", "-", input="".join(f"link add b{i} type bridge\n" for i in range(120)))
    request = links._link(links._GETLINK, 0, "listing")
    assert route.first_of_dump(request)
    assert links.require_link(route, "b7").name == "b7"


def test_a_dump_that_is_left_midway_disturbs_no_later_answer(host: Namespace, route: NetlinkSocket) -> None:
    host.run("ip", "-batch", "-", input="".join(f"link add b{i} type bridge\n" for i in range(20)))
    for _ in links.list_links(route):
        break
    assert links.require_link(route, "b7").name == "b7"
    assert len(list(links.list_links(route))) == 21


def test_an_error_of_a_dump_is_raised(route: NetlinkSocket) -> None:
    with pytest.raises(KernelError):
        list(route.dump(links._link(links._GETLINK, 0, "listing by index", index=1)))  # no filter for links


def test_a_socket_stays_in_the_namespace_it_was_made_in(host: Namespace) -> None:
    netns = open_netns(host.netns_path)
    try:
        with links.open_route(netns) as there:
            links.ensure_bridge(there, Bridge("br0"))
            assert links.get_link(there, "br0") is not None
        with links.open_route() as here:
            assert links.get_link(here, "br0") is None
        with inside(netns), links.open_route() as visiting:
            assert links.get_link(visiting, "br0") is not None
    finally:
        netns.close()


def test_attributes_are_walked_in_order_and_broken_ones_end_the_walk() -> None:
    data = b"\x06\x00\x01\x00ab\0\0" + b"\x05\x00\x02\x80c\0\0\0" + b"\x05\x00\x01\x00d\0\0\0"
    assert list(walk(data)) == [(1, b"ab"), (2, b"c"), (1, b"d")]
    assert attributes(data) == {1: b"d", 2: b"c"}
    assert list(walk(data + b"\x03\x00\x01\x00")) == list(walk(data))
    assert list(walk(b"\x01")) == []
