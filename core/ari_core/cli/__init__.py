"""The `ari` command: parse, call one workflow, render."""
