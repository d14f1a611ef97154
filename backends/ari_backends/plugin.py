"""Declares the built-in backends through the same hooks a third party's package uses."""
