"""netloom's CNI plugins: programs that a container runtime executes to wire pods.

The nouns, in reading order: a **call** (protocol.py) is what the runtime asks: a verb, an attachment, a network
configuration. A **result** (results.py) is the answer. An **owner** (owner.py) is the (network, container, interface)
that every kernel object of ours carries. A **plan** (plan.py) is a tuple of steps; links.py, qdiscs.py and tables.py
make steps true in the kernel over netlink (netlink.py), and undo them. Each plugin is one module; skel.py runs its
verbs.
"""

__version__ = "0.1.0"
