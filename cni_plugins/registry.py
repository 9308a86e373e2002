"""Which plugins there are, by the name a configuration gives as `type`, and where each lives.

Modules are imported when asked for, because a plugin lives for milliseconds and imports are most of them. Read next:
launcher.py (the process), delegate.py (one plugin calling another).
"""

from __future__ import annotations

import importlib
import os

from .errors import from_import_error
from .skel import Plugin

# name -> the module that holds its `PLUGIN`; this is also the order in which `netloom install` writes them
MODULES = {
    "bridge": "cni_plugins.bridge",
    "host-local": "ipam.host_local",
    "static": "ipam.static",
    "loopback": "cni_plugins.loopback",
    "portmap": "cni_plugins.portmap",
    "firewall": "cni_plugins.firewall",
    "bandwidth": "cni_plugins.bandwidth",
    "tuning": "cni_plugins.tuning",
}

SOURCE = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))  # the folder that holds cni_plugins and ipam


def load(name: str) -> Plugin:
    """The plugin called `name`. Raises KeyError where netloom has none, CniError 100 where it cannot be imported."""
    module = MODULES[name]
    try:
        plugin = importlib.import_module(module).PLUGIN
    except ImportError as error:
        raise from_import_error(error, name) from error
    assert isinstance(plugin, Plugin), f"{module}.PLUGIN"
    return plugin
