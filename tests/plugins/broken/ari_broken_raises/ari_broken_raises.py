"""Raises when it is imported."""

raise RuntimeError("this package was left\nhalf finished")
