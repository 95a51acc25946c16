"""The ``wasm`` tier: CPython compiled to WebAssembly, one worker process per running guest.

engine.py   wasmtime's configuration, the same for compiling and running
images.py   which modules there are, compiled ahead of time into a cache no guest can write
worker.py   the process around one guest (never imported by the driver)
filter.py   the system calls that process may still make; lockdown.py binds it to them
launch.py   how that process is walled in, and the driver's handle on it
pool.py     warm workers, each with its interpreter already started and waiting for a job
running.py  one command: streams, frames, limits, the verdict
driver.py   the port
"""
