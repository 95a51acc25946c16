"""Models: where they are served, and calls to them."""
