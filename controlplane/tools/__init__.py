"""Registered tools: what they take, what they do to the world, and how a call becomes an HTTP request."""
