"""The sidecar's data plane: carries HTTP/1.1, HTTP/2, gRPC, WebSocket and TCP between services.

A **listener** takes connections. A request's **route** says which **cluster** carries it; balancing picks an
**endpoint** of the cluster's **snapshot**; each try is an **attempt**, and all attempts of one request an **exchange**.

To read: config.py (what can be said), message.py (what flows), wire/ (bytes to messages and back, without I/O),
route.py, balance/ and cluster.py (where a request goes), retry.py and outlier.py (what happens when that fails),
parts.py (who calls whom), exchange.py with attempts.py, server.py and upstream.py (the shell), discovery/, stack.py
(all of it assembled, and changed while it runs), run.py and supervisor.py (from start to end, one process or several),
listening.py and handover.py (the sockets that outlive processes), admin.py (what operators see).
"""
