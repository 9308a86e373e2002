"""netloom's address management: which address a pod gets, and that nobody else gets it.

The nouns, in reading order: a **range** is a stretch of addresses of one subnet, a **range set** yields one address per
attachment (ranges.py). The **search order** says in which order a set's addresses are tried (allocate.py). A
**reservation** is one file of the **store**, the directory that the reference plugin reads and writes, too (store.py).
The **index** beside it finds a free address, or the reservations of an owner, without walking (index.py).
host_local.py and static.py are the plugins.
"""
