"""Counters as Prometheus reads them; its own parser is the oracle."""

from prometheus_client.parser import text_string_to_metric_families

from meshproxy import metrics_text
from meshproxy.cluster import Cluster
from meshproxy.config import ClusterConfig, EndpointConfig, StaticDiscovery
from meshproxy.metrics import Statistics


def counted() -> tuple[Statistics, dict[str, Cluster]]:
    statistics = Statistics()
    statistics.listener("in").refuse("bad-request")
    stats = statistics.route("in", 'odd "name"\\', cluster="web")
    stats.count(200, 0.0007)
    stats.count(200, 3.0)
    stats.count(503, 100.0)
    stats.fail("timeout")
    discovery = StaticDiscovery(endpoints=tuple(EndpointConfig(address="10.0.0.1", port=1 + n) for n in range(300)))
    cluster = Cluster(ClusterConfig(name="web", discovery=discovery), stats=statistics.cluster("web"))
    cluster.update(discovery.endpoints)
    return statistics, {"web": cluster}


def samples(page: str) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    found = {}
    names = set()
    for family in text_string_to_metric_families(page):
        assert family.name not in names, "a family comes once"
        names.add(family.name)
        for sample in family.samples:
            found[(sample.name, tuple(sorted(sample.labels.items())))] = sample.value
    return found


def test_prometheus_reads_what_was_counted() -> None:
    statistics, clusters = counted()
    found = samples("".join(metrics_text.render(statistics, clusters)))
    labels = (("cluster", "web"), ("listener", "in"), ("route", 'odd "name"\\'))
    assert found["meshproxy_requests_total", tuple(sorted((*labels, ("code_class", "2xx"))))] == 2
    assert found["meshproxy_request_failures_total", tuple(sorted((*labels, ("reason", "timeout"))))] == 1
    name = "meshproxy_request_duration_seconds"
    assert found[name + "_bucket", tuple(sorted((*labels, ("le", "0.001"))))] == 1
    assert found[name + "_bucket", tuple(sorted((*labels, ("le", "5.0"))))] == 2
    assert found[name + "_bucket", tuple(sorted((*labels, ("le", "+Inf"))))] == 3
    assert found[name + "_count", labels] == 3
    assert found[name + "_sum", labels] == 103.0007
    refused = (("listener", "in"), ("reason", "bad-request"))
    assert found["meshproxy_listener_requests_refused_total", refused] == 1
    assert found["meshproxy_upstream_endpoints", (("cluster", "web"),)] == 300


def test_a_large_page_comes_in_slices() -> None:
    statistics, clusters = counted()
    slices = list(metrics_text.render(statistics, clusters))
    assert max(part.count("\n") for part in slices) <= 600
    assert all(part.endswith("\n") for part in slices)


def test_workers_pages_add_up() -> None:
    statistics, clusters = counted()
    one = "".join(metrics_text.render(statistics, clusters))
    other, _ = counted()
    other.route("in", "only-there", cluster="web").count(200, 1)
    two = "".join(metrics_text.render(other, clusters))
    total, first, second = samples(metrics_text.add_up([one, two])), samples(one), samples(two)
    assert total.keys() == first.keys() | second.keys()
    for key, value in total.items():
        assert abs(value - first.get(key, 0) - second.get(key, 0)) < 1e-6
