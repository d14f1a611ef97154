"""Archives: the one strict reader and the one deterministic writer (docs/format.md)."""
