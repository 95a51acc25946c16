"""The ``container`` tier: any OCI image on a Docker Engine, with more walls than the engine builds by itself.

seccomp.json  the system-call profile: no new namespaces, sockets of this machine only, nothing obsolete
options.py    everything a container is made with (values)
presence.py   whether there is an engine at all
engine.py     the engine, through the ``docker`` package: blocking calls, one failure type, events
images.py     names, digests, and what is ready
box.py        the host's side of one sandbox: bounded files, the guest module, the socket
streams.py    a container's two output streams, taken apart
host_threads.py  where the box's files are touched: in the mounts that the engine sees
launch.py     a container from its request to its first instruction
running.py    one command: launch, drain, watch, judge, remove
remains.py    ended containers, deleted while nobody waits
pool.py       spares, and which ones to have        spares.py   how one is made
selftest.py   the smallest image there is, for the start probe
building.py   how images come to be: Dockerfile, archive, list of Debian packages        archives.py   OCI ones
driver.py     the port
"""
