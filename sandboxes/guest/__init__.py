"""Files that run inside guests. The host never imports them; it mounts this folder read-only."""

from pathlib import Path

GUEST_DIR = Path(__file__).resolve().parent
"""Holds ``runner.py`` and ``stockade_tools.py``."""
