"""The container runtime interface, as a kubelet speaks it: the messages of `runtime.v1` that pods need, and a client.

The messages are a table turned into protobuf classes at import, so that neither protoc nor a generated module of 20,000
lines is needed. Field numbers are those of k8s.io/cri-api `runtime/v1/api.proto`; fields we do not use are left out,
which protobuf allows on both sides. Refuses to know how the runtime was started: see containerd.py.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

PACKAGE = "runtime.v1"
# A sandbox takes 0.2 s on an idle machine; ten times that and more is a runtime that hangs.
CALL_TIMEOUT_S = 30.0
# Enumerations travel as plain varints, so they are declared as int32 and named here.
PROTOCOLS = {"tcp": 0, "udp": 1, "sctp": 2}
STATES = ("ready", "not ready")

# message: fields as `name number type`; `[]` repeats, `{}` is a map from string to string.
MESSAGES: dict[str, tuple[str, ...]] = {
    "PodSandboxMetadata": ("name 1 string", "uid 2 string", "namespace 3 string", "attempt 4 uint32"),
    "PortMapping": ("protocol 1 int32", "container_port 2 int32", "host_port 3 int32", "host_ip 4 string"),
    "LinuxPodSandboxConfig": ("cgroup_parent 1 string",),
    "PodSandboxConfig": (
        "metadata 1 PodSandboxMetadata",
        "hostname 2 string",
        "log_directory 3 string",
        "port_mappings 5 PortMapping[]",
        "labels 6 {}",
        "annotations 7 {}",
        "linux 8 LinuxPodSandboxConfig",
    ),
    "RunPodSandboxRequest": ("config 1 PodSandboxConfig",),
    "RunPodSandboxResponse": ("pod_sandbox_id 1 string",),
    "StopPodSandboxRequest": ("pod_sandbox_id 1 string",),
    "StopPodSandboxResponse": (),
    "RemovePodSandboxRequest": ("pod_sandbox_id 1 string",),
    "RemovePodSandboxResponse": (),
    "PodIP": ("ip 1 string",),
    "PodSandboxNetworkStatus": ("ip 1 string", "additional_ips 2 PodIP[]"),
    "PodSandboxStatus": ("id 1 string", "state 3 int32", "network 5 PodSandboxNetworkStatus"),
    "PodSandboxStatusRequest": ("pod_sandbox_id 1 string", "verbose 2 bool"),
    "PodSandboxStatusResponse": ("status 1 PodSandboxStatus", "info 2 {}"),
    "PodSandbox": ("id 1 string", "state 3 int32"),
    "ListPodSandboxRequest": (),
    "ListPodSandboxResponse": ("items 1 PodSandbox[]",),
    "ImageSpec": ("image 1 string",),
    "Image": ("id 1 string", "repo_tags 2 string[]"),
    "ImageStatusRequest": ("image 1 ImageSpec",),
    "ImageStatusResponse": ("image 1 Image",),
    "RuntimeCondition": ("type 1 string", "status 2 bool", "reason 3 string", "message 4 string"),
    "RuntimeStatus": ("conditions 1 RuntimeCondition[]",),
    "StatusRequest": (),
    "StatusResponse": ("status 1 RuntimeStatus",),
}


@dataclass(frozen=True)
class PortMapping:
    """A port of the host that leads to a port of the pod."""

    host_port: int
    container_port: int
    protocol: str = "tcp"
    host_ip: str = ""


@dataclass(frozen=True)
class SandboxStatus:
    """What the runtime says of a sandbox. `netns` is a path in the runtime's mount namespace, empty when it is gone."""

    state: str
    addresses: tuple[str, ...]
    netns: str


def _field(message: Any, text: str) -> None:
    name, number, kind = text.split()
    field = message.field.add(name=name, number=int(number))
    field.label = field.LABEL_REPEATED if kind.endswith(("[]", "{}")) else field.LABEL_OPTIONAL
    kind = kind.removesuffix("[]")
    if kind == "{}":
        # A map is a repeated entry of key and value, on the wire and in descriptors.
        entry = message.nested_type.add(name="".join(part.capitalize() for part in name.split("_")) + "Entry")
        entry.options.map_entry = True
        _field(entry, "key 1 string")
        _field(entry, "value 2 string")
        field.type, field.type_name = field.TYPE_MESSAGE, f".{PACKAGE}.{message.name}.{entry.name}"
    elif kind in MESSAGES:
        field.type, field.type_name = field.TYPE_MESSAGE, f".{PACKAGE}.{kind}"
    else:
        field.type = getattr(field, f"TYPE_{kind.upper()}")


def _build() -> dict[str, Any]:
    file = descriptor_pb2.FileDescriptorProto(name="netloom_tests/cri.proto", package=PACKAGE, syntax="proto3")
    for name, fields in MESSAGES.items():
        message = file.message_type.add(name=name)
        for text in fields:
            _field(message, text)
    # A pool of its own: the default one is shared with every other protobuf user of the process.
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{PACKAGE}.{name}")) for name in MESSAGES}


MESSAGE_CLASSES = _build()


class CriError(Exception):
    """The runtime refused a call; the text holds its reason, as a kubelet would log it."""


class CriClient:
    """Calls over the runtime's unix socket. One channel; close() ends it."""

    def __init__(self, socket: Path) -> None:
        self._socket = socket
        # grpc would send the escaped path as :authority, which Go servers refuse.
        self._channel = grpc.insecure_channel(f"unix:{socket}", options=(("grpc.default_authority", "localhost"),))

    def __repr__(self) -> str:
        return f"<CriClient {self._socket}>"

    def close(self) -> None:
        """Close the channel; a second call does nothing."""
        self._channel.close()

    def run_pod_sandbox(
        self,
        name: str,
        *,
        cgroup_parent: str,
        log_directory: str,
        port_mappings: Sequence[PortMapping] = (),
        annotations: Mapping[str, str] | None = None,
    ) -> str:
        """Make and start a pod; returns its id. Raises CriError, and leaves nothing, when the network refuses."""
        config = {
            "metadata": {"name": name, "uid": f"uid-{name}", "namespace": "default"},
            "hostname": name,
            "log_directory": log_directory,
            "port_mappings": [
                {
                    "protocol": PROTOCOLS[port.protocol],
                    "container_port": port.container_port,
                    "host_port": port.host_port,
                    "host_ip": port.host_ip,
                }
                for port in port_mappings
            ],
            "annotations": dict(annotations or {}),
            "linux": {"cgroup_parent": cgroup_parent},
        }
        return str(self._call("RunPodSandbox", config=config).pod_sandbox_id)

    def stop_pod_sandbox(self, sandbox_id: str) -> None:
        """End the pod's processes and take its network down; may be called any number of times."""
        self._call("StopPodSandbox", pod_sandbox_id=sandbox_id)

    def remove_pod_sandbox(self, sandbox_id: str) -> None:
        """Forget the pod; takes the network down once more."""
        self._call("RemovePodSandbox", pod_sandbox_id=sandbox_id)

    def pod_sandbox_status(self, sandbox_id: str) -> SandboxStatus:
        """State, addresses and network namespace of a pod."""
        answer = self._call("PodSandboxStatus", pod_sandbox_id=sandbox_id, verbose=True)
        network = answer.status.network
        addresses = tuple(ip for ip in (network.ip, *(extra.ip for extra in network.additional_ips)) if ip)
        netns = ""
        for namespace in json.loads(answer.info["info"])["runtimeSpec"]["linux"]["namespaces"]:
            if namespace["type"] == "network":
                netns = namespace.get("path", "")
        return SandboxStatus(STATES[answer.status.state], addresses, netns)

    def sandbox_ids(self) -> list[str]:
        """Every sandbox the runtime knows, in whatever state."""
        return [str(item.id) for item in self._call("ListPodSandbox").items]

    def has_image(self, reference: str) -> bool:
        """Whether the CRI side has taken notice of an image (imports reach it by an event, later)."""
        answer = self._call("ImageStatus", service="ImageService", image={"image": reference})
        return bool(answer.HasField("image"))

    def conditions(self) -> dict[str, str]:
        """The runtime's conditions, `RuntimeReady` and `NetworkReady`: empty text when met, else the reason."""
        found = self._call("Status").status.conditions
        return {item.type: "" if item.status else f"{item.reason}: {item.message}" for item in found}

    def _call(self, method: str, *, service: str = "RuntimeService", **fields: Any) -> Any:
        call = self._channel.unary_unary(
            f"/{PACKAGE}.{service}/{method}",
            request_serializer=lambda request: request.SerializeToString(),
            response_deserializer=MESSAGE_CLASSES[f"{method}Response"].FromString,
        )
        try:
            return call(MESSAGE_CLASSES[f"{method}Request"](**fields), timeout=CALL_TIMEOUT_S, wait_for_ready=True)
        except grpc.RpcError as error:
            raise CriError(f"{method}: {error.code().name}: {error.details()}") from error
