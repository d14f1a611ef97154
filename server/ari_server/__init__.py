"""The registry: identity, visibility and ownership over HTTP, on top of any suitable backend."""
