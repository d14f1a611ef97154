"""The client of the HTTP server: backend ``ari-registry``, ``registries.yaml``, `ari config check`."""
