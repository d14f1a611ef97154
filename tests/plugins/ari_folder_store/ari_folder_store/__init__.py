"""Keeps ARI bundles in a plain folder, one file each."""
