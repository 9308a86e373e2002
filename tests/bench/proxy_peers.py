"""Configurations of the endpoints and of the proxies that meshproxy is measured against, the same features in each."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from pathlib import Path

ENDPOINTS = 3


def free_ports(count: int) -> list[int]:
    """Ports that nobody has now: Envoy and HAProxy cannot tell which one they were given."""
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [int(one.getsockname()[1]) for one in sockets]
    for one in sockets:
        one.close()
    return ports


def nginx_config(folder: Path, ports: Sequence[int]) -> str:
    listens = " ".join(f"listen 127.0.0.1:{port};" for port in ports)
    paths = " ".join(
        f"{name}_temp_path {folder}/{name};" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    return (
        f"worker_processes 1; daemon off; master_process off; pid {folder}/nginx.pid; error_log stderr crit;\n"
        f"events {{ worker_connections 4096; }}\n"
        f"http {{ access_log off; keepalive_requests 1000000000; keepalive_timeout 3600; {paths}\n"
        f'server {{ {listens} location / {{ default_type text/plain; return 200 "{"x" * 1024}"; }} }} }}\n'
    )


def envoy_config(port: int, endpoints: Sequence[int]) -> str:
    lb_endpoints = "\n".join(
        f"        - endpoint: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {one}}}}}}}"
        for one in endpoints
    )
    http = "type.googleapis.com/envoy.extensions.filters"
    return f"""
static_resources:
  listeners:
  - address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": {http}.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: in
          use_remote_address: true
          route_config:
            virtual_hosts:
            - name: all
              domains: ["*"]
              routes:
              - match: {{prefix: "/"}}
                route:
                  cluster: web
                  timeout: 15s
                  hash_policy: [{{header: {{header_name: x-user}}}}]
                  retry_policy: {{retry_on: "5xx,reset,connect-failure", num_retries: 1}}
          http_filters:
          - name: envoy.filters.http.router
            typed_config: {{"@type": {http}.http.router.v3.Router}}
  clusters:
  - name: web
    type: STATIC
    lb_policy: MAGLEV
    outlier_detection: {{consecutive_5xx: 5}}
    load_assignment:
      cluster_name: web
      endpoints:
      - lb_endpoints:
{lb_endpoints}
"""


def haproxy_config(port: int, endpoints: Sequence[int]) -> str:
    servers = "\n".join(
        f"  server s{one} 127.0.0.1:{one} observe layer7 error-limit 5 on-error mark-down check inter 10s"
        for one in endpoints
    )
    return f"""
global
  nbthread 1
  maxconn 4096
defaults
  mode http
  timeout connect 5s
  timeout client 1h
  timeout server 15s
  timeout http-request 15s
  retries 1
  option redispatch
  option forwardfor
  http-reuse always
frontend in
  bind 127.0.0.1:{port}
  default_backend web
backend web
  balance hdr(x-user)
  hash-type consistent sdbm avalanche
  retry-on conn-failure empty-response response-timeout
{servers}
"""
