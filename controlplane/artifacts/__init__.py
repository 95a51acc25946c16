"""Artifacts: bytes by digest, references by id; and the stored output of attempts."""
