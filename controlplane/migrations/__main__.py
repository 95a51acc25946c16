"""``python -m controlplane.migrations DATABASE``: bring a database's schema to the newest revision, and end."""

from __future__ import annotations

import sys
from pathlib import Path

from controlplane.store import Store

store = Store(Path(sys.argv[1]))
store.migrate()
store.close()
