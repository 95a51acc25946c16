"""Isolation drivers behind one port.

spec.py       what a sandbox is asked to be (values)
execution.py  what a command is and what comes back (values)
errors.py     the platform's failures (exceptions); a guest's failure is a value, ``Exited``
driver.py     the port every tier implements
registry.py   name -> driver, and why a tier is absent here
wasm/  jail/  container/  the tiers
outbox.py     a guest's unread output, bounded        channel.py   the host's end of its frame channel
identity.py   uids of guests        tmpfs.py   bounded file systems        verdict.py   why a guest ended
conformance.py  the public suite every driver and the fake pass
testing.py    FakeDriver, the double that passes it
guest/        the one module guests import, ``stockade_tools``
"""
