"""conf/meshproxy.yaml: every key is in it, and every default in it is the program's."""

from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path

import pytest

from meshproxy import config as config_module
from meshproxy import config_file
from meshproxy.config import Config, StringMatch

CONF = Path(__file__).resolve().parents[2] / "conf"
SAMPLE = CONF / "meshproxy.yaml"

# Read by forms of their own: an action is `cluster`, `redirect` or `answer`, a discovery `endpoints`, `file` or `dns`.
WRITTEN_OTHERWISE = {
    ("Route", "action"),
    ("ClusterConfig", "discovery"),
    ("WeightedCluster", "cluster"),
    ("WeightedCluster", "weight"),
}


def test_the_sample_has_every_key() -> None:
    reader, config = config_file.read(SAMPLE.read_text())
    assert isinstance(config, Config)
    assert reader.problems == []
    classes = [kind for kind in vars(config_module).values() if isinstance(kind, type) and is_dataclass(kind)]
    known = {(kind.__name__, field.name) for kind in classes for field in fields(kind)}
    assert known - reader.given.keys() == WRITTEN_OTHERWISE


def test_every_default_in_the_sample_is_the_programs() -> None:
    text = SAMPLE.read_text()
    reader, _ = config_file.read(text)
    lines = text.splitlines()
    wrong, compared = [], 0
    for (kind, name), given in reader.given.items():
        field = next(field for field in fields(getattr(config_module, kind)) if field.name == name)
        default = field.default_factory() if field.default_factory is not MISSING else field.default
        for line, value in given:
            if "example" in lines[line - 1].partition("#")[2] or _is_example(kind, name, value):
                continue
            compared += 1
            if value != default:
                wrong.append(f"line {line}: {kind}.{name} is {default!r}, the sample says {value!r}")
    assert wrong == []
    assert compared > 100


def _is_example(kind: str, name: str, value: object) -> bool:
    """Names have no default; parts that are shown with their own keys have theirs compared one by one."""
    if name == "name" or (kind, name) in {("ClusterConfig", "outlier_detection"), ("ClusterConfig", "health_check")}:
        return True
    return is_dataclass(value) and not isinstance(value, StringMatch) and kind == "Route" and name == "match"


@pytest.mark.parametrize("path", sorted(CONF.glob("meshproxy*.yaml")), ids=lambda path: path.name)
def test_each_sample_is_accepted(path: Path) -> None:
    assert config_file.load(str(path)).listeners
