"""Publish research bundles whose digest stands in the paper; clone any copy and know it is the one."""
