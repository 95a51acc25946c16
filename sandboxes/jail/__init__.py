"""The ``jail`` tier: a Linux userland in bubblewrap, with walls added from outside.

seccomp.py    the system-call filter, compiled from seccomp.json
rootfs.py     the bubblewrap arguments: what the guest sees
cgroups.py    memory, pids and cpu bounds of strength ``full`` (cgroup v1 and v2)
processes.py  what /proc says of a guest: tree, memory, start times
box.py        the host's side of one sandbox: uid, folders, record, destruction
launch.py     starts bubblewrap and wires its pipes
running.py    one command: drain, watch, judge
driver.py     the port
"""
