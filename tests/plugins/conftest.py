"""The packages here are other people's: their tests run in an environment that has them, not in ours."""

collect_ignore_glob = ["*/tests/*"]
