"""The service mesh proxy of netloom.

Nothing to run yet: the data plane lands with its own issue, and this package keeps its place until then.
"""
