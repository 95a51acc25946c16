"""Model servers on the node: kept as the control plane wants them, adopted or ended after a crash of the daemon.

supervisor.py   all of them ─▶ replica.py   one: started, watched, started again, drained, ended
                                  └─▶ process.py   as processes and files, behind keeper.py; log_file.py
server.py       the port of an engine ─▶ sglang.py, llamacpp.py; flags.py   from the server's own --help
engines.py      which engines there are; asking.py   what a server says of itself
"""
