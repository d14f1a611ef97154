"""``publish.yaml``: what of ``ear/`` is published, under which terms (docs/format.md, "Curation").

A path is *asked for* when an ``include`` glob matches it. Two things outrank that: the built-in `DENY` rules,
always, and the author's ``exclude`` globs.
"""

from __future__ import annotations

import enum
import fnmatch
import functools
import re
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Annotated, Any, Final

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from ari_core.citation import SPDX, Deposit
from ari_core.errors import ConfigurationError, escape, from_os_error
from ari_core.names import STAGING_PREFIX
from ari_core.wish import CHOICES, why_not
from ari_core.yamlfile import YamlFile, explain, read_yaml

POLICY_NAME: Final = "publish.yaml"
MAX_POLICY_BYTES: Final = 1024 * 1024
MEBIBYTE: Final = 1024 * 1024
"""What one unit of ``max_file_mb`` stands for, in bytes."""

MAX_FILE_MB: Final = 2**43  # then a size still fits into 63 bits, as the format wants it

DEFAULT_INCLUDE: Final = ("reproduce.sh", "environment.json", "code/**", "data/**", "scripts/**", "configs/**")

DENY: Final = {
    ".env": "settings of a program, passwords among them",
    ".env.*": "the same, for one environment",
    ".envrc": "the same, for direnv",
    "secrets/**": "says so itself",
    "*.pem": "private keys, mostly",
    "*.key": "private keys",
    "*.ppk": "private keys of PuTTY",
    "*.p12": "private keys with certificates",
    "*.pfx": "the same, on Windows",
    "*.jks": "private keys of Java programs",
    "*.keystore": "the same",
    "*.keytab": "Kerberos keys",
    "*.kdbx": "a password safe",
    "id_rsa": "an SSH key; the public half, *.pub, may be published",
    "id_dsa": "the same",
    "id_ecdsa": "the same",
    "id_ecdsa_sk": "the same",
    "id_ed25519": "the same",
    "id_ed25519_sk": "the same",
    ".ssh/**": "SSH keys under any name",
    ".gnupg/**": "OpenPGP keys",
    ".netrc": "passwords for hosts; read by curl, git, ftp and many libraries",
    "_netrc": "the same, on Windows",
    ".pgpass": "PostgreSQL passwords",
    ".my.cnf": "MySQL passwords",
    ".mylogin.cnf": "the same",
    ".htpasswd": "passwords of a web server",
    ".aws/**": "keys of Amazon's services",
    ".azure/**": "tokens of Microsoft's services",
    ".config/gcloud/**": "tokens of Google's services",
    "application_default_credentials.json": "the same",
    ".boto": "keys of object stores",
    ".s3cfg": "the same",
    "rclone.conf": "the same",
    ".docker/config.json": "passwords for image registries",
    ".dockercfg": "the same",
    ".kube/config": "keys of clusters",
    ".npmrc": "tokens for package registries",
    ".pypirc": "the same",
    ".git-credentials": "passwords for code hosts",
    ".vault-token": "opens a store of secrets",
    ".cdsapirc": "a key of the climate data store",
    "kaggle.json": "a key of a data and contest platform",
    ".Renviron": "settings of R, tokens among them",
    ".git": "history: also of what was removed from the files",
    ".git/**": "the same",
    ".ari": "this program's own settings, tokens among them",
    ".ari/**": "the same",
    STAGING_PREFIX + "*": "half-done work of this program",
}
"""The built-in deny rules, each with its reason.

They hold at any depth, whatever ``include`` says, and without regard to case: on a file system that folds case
``ID_RSA`` is the same secret, and a key does not become harmless by its spelling. A rule ending in ``/**`` covers
everything below a folder of that name.
"""

PRUNED: Final = ".git"
"""A folder that is never looked into; it counts as one denied file."""

_BACKEND: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_WILDCARD: Final = re.compile(r"[*?\[]")
_SHOWN: Final = 60
_LONGEST_GLOB: Final = 4096
_GLOBS_TRIED_ONE_BY_ONE: Final = 100
ANYTHING: Final = "\0\0\0\0\0\0\0\0"
"""Stands for a name that no file has: only a wildcard matches it."""


class Verdict(enum.Enum):
    """What the policy says about one path."""

    WANTED = "wanted"
    EXCLUDED = "excluded"
    DENIED = "denied"
    NOT_ASKED = "not asked for"


class Globs:
    """A list of globs, matched as one.

    A glob is matched against a POSIX path relative to ``ear/``, as a whole and by case. ``*`` stands for any
    characters, slashes among them, ``?`` for one, ``[abc]``, ``[a-z]`` and ``[!abc]`` for one of a set. A leading
    ``**/`` also stands for nothing, so that ``**/x`` is ``x`` in any folder.
    """

    def __init__(self, patterns: Iterable[str], *, ignore_case: bool = False) -> None:
        every = list(dict.fromkeys(variant for pattern in patterns for variant in _variants(pattern)))
        literal = [pattern for pattern in every if not ignore_case and not _WILDCARD.search(pattern)]
        # A long list of plain names would make the one regular expression slow.
        self._literal = frozenset(literal)
        globs = [pattern for pattern in every if pattern not in self._literal]
        self._regex = re.compile("|".join(map(fnmatch.translate, globs)), re.IGNORECASE if ignore_case else 0)
        self._has_globs = bool(globs)
        self._beginnings = {_WILDCARD.split(pattern, maxsplit=1)[0] for pattern in globs}

    def match(self, path: str) -> bool:
        """Says whether one of the globs matches `path`."""
        return path in self._literal or (self._has_globs and self._regex.match(path) is not None)

    def may_match_below(self, folder: str) -> bool:
        """Says whether some file in `folder` could match, as far as can be told without its name."""
        prefix = folder + "/"
        return any(start.startswith(prefix) or prefix.startswith(start) for start in self._beginnings) or any(
            path.startswith(prefix) for path in self._literal
        )


def _variants(pattern: str) -> Iterable[str]:
    """A leading ``**/``, or many of them, which say no more than one, also matches nothing."""
    rest = pattern
    while rest.startswith("**/"):
        rest = rest.removeprefix("**/")
    if rest != pattern:
        yield "**/" + rest
    yield rest


_DENIED: Final = Globs((f"**/{rule}" for rule in DENY), ignore_case=True)


def _visibility(value: str) -> str:
    if reason := why_not(value):
        raise ValueError(reason)
    return value


def is_denied_place(path: str) -> bool:
    """Says whether the built-in rules keep back what is in a folder, wherever on this machine it is."""
    return _DENIED.match(f"{path.strip('/')}/file")


def _relative(glob: str) -> str:
    if len(glob) > _LONGEST_GLOB:
        raise ValueError(f"cannot be longer than {_LONGEST_GLOB} characters")
    if glob.startswith("/") or not {".", ".."}.isdisjoint(glob.split("/")):
        raise ValueError(
            f"cannot be '{_short(glob)}': globs are relative to ear/, with no / in front and no part '.' or '..'"
        )
    return glob


def _spelled_as(rule: re.Pattern[str], value: str) -> str:
    if not rule.fullmatch(value):
        raise ValueError(f"cannot be '{_short(value)}'")
    return value


def _short(value: str) -> str:
    return escape(value if len(value) <= _SHOWN else value[:_SHOWN] + "…")


_Glob = Annotated[
    str, AfterValidator(functools.partial(_spelled_as, re.compile(r"(?s:.+)"))), AfterValidator(_relative)
]


class Policy(BaseModel):
    """A checked ``publish.yaml``. A field's description says which values are allowed."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    include: list[_Glob] = Field(
        default=list(DEFAULT_INCLUDE), description="a list of globs, such as ['code/**', 'README.md']"
    )
    exclude: list[_Glob] = Field(default=[], description="a list of globs, such as ['data/raw/**']")
    max_file_mb: float = Field(
        default=100.0,
        gt=0,
        le=MAX_FILE_MB,
        allow_inf_nan=False,
        description="a number above 0, of 1,048,576 bytes each",
    )
    visibility: Annotated[str, AfterValidator(_visibility)] = Field(default="staged", description=CHOICES)
    required: bool = Field(default=False, description="true or false")
    auto_promote: bool = Field(default=False, description="true or false")
    license: Annotated[str, AfterValidator(functools.partial(_spelled_as, SPDX))] | None = Field(
        default=None, description="an SPDX expression, such as MIT or Apache-2.0 OR GPL-3.0-or-later"
    )
    backend: Annotated[str, AfterValidator(functools.partial(_spelled_as, _BACKEND))] | None = Field(
        default=None, description="the name of a backend or profile, such as local-tarball"
    )
    zenodo: Deposit | None = Field(default=None, description="what a repository shows of the bundle, see below")

    @functools.cached_property
    def _include(self) -> Globs:
        return Globs(self.include)

    @functools.cached_property
    def _exclude(self) -> Globs:
        return Globs(self.exclude)

    @property
    def max_file_bytes(self) -> int:
        """The size cap for one file, in bytes."""
        return int(self.max_file_mb * MEBIBYTE)

    def publish_section(self) -> dict[str, Any]:
        """Returns the manifest's ``publish``: terms only, never the globs, which name private things."""
        megabytes = self.max_file_mb
        return {
            "visibility": self.visibility,
            "license": self.license,
            "max_file_mb": int(megabytes) if megabytes.is_integer() else megabytes,
            "backend": self.backend,
            "required": self.required,
            "auto_promote": self.auto_promote,
        }

    def verdict(self, path: str, real: str | None = None) -> Verdict:
        """Judges a file.

        Args:
            path: POSIX path relative to ``ear/``.
            real: Where a link in that path leads, likewise: deny rules and ``exclude`` hold for both.
        """
        return self._judge({path, real or path}, asked_for=self._include.match(path))

    def verdict_below(self, folder: str, real: str | None = None) -> Verdict:
        """Judges a folder without looking into it: `WANTED` if some file in it could be."""
        inside = {f"{folder}/{ANYTHING}", f"{real or folder}/{ANYTHING}"}
        return self._judge(inside, asked_for=self._include.may_match_below(folder))

    def _judge(self, paths: set[str], *, asked_for: bool) -> Verdict:
        if any(map(_DENIED.match, paths)):
            return Verdict.DENIED
        if not asked_for:
            return Verdict.NOT_ASKED
        return Verdict.EXCLUDED if any(map(self._exclude.match, paths)) else Verdict.WANTED

    def wants_all_below(self, folder: str) -> bool:
        """Says whether any file in `folder` would be published, whatever its name."""
        return self.verdict(f"{folder}/{ANYTHING}") is Verdict.WANTED

    def unmatched(self, paths: Collection[str]) -> list[str]:
        """Returns the author's ``include`` globs that match none of `paths`: misspelled ones, often."""
        if "include" not in self.model_fields_set or len(self.include) > _GLOBS_TRIED_ONE_BY_ONE:
            return []
        return [glob for glob in self.include if not any(map(Globs([glob]).match, paths))]

    def excludes(self) -> Excludes:
        """Returns a watch on which ``exclude`` globs have something to do."""
        few = len(self.exclude) <= _GLOBS_TRIED_ONE_BY_ONE
        # What a deny rule keeps at home anyway, and `.git` is not even looked into, needs no warning.
        return Excludes([glob for glob in self.exclude if few and not _DENIED.match(glob)])


class Excludes:
    """Finds the ``exclude`` globs that match nothing: misspelled ones, which let out what they were to keep."""

    def __init__(self, globs: Iterable[str]) -> None:
        self._idle = {glob: Globs([glob]) for glob in globs}
        self._any = Globs(self._idle)

    def see(self, *paths: str) -> None:
        """Takes note of paths that there are; for whatever is in a folder, that is its path and `ANYTHING`."""
        if self._idle and any(map(self._any.match, paths)):
            self._idle = {glob: one for glob, one in self._idle.items() if not any(map(one.match, paths))}

    @property
    def idle(self) -> list[str]:
        """The globs that matched nothing so far."""
        return list(self._idle)


def load_policy(ear: Path) -> Policy:
    """Reads ``publish.yaml`` in `ear`, or returns the defaults if there is none.

    Raises:
        ConfigurationError: It breaks the schema; one line with file, line, key, what was found and what would do.
        LocalPermissionError: It cannot be read.
    """
    path = ear / POLICY_NAME
    try:
        path.stat()
    except OSError as error:
        if not isinstance(error, FileNotFoundError):
            raise from_os_error(error, f"reading {escape(str(path))}") from error
        if path.is_symlink():
            raise ConfigurationError(f"{escape(str(path))}: a link that leads nowhere") from None
        return Policy()
    return parse_policy(read_yaml(path, MAX_POLICY_BYTES))


def parse_policy(file: YamlFile) -> Policy:
    """Checks what a ``publish.yaml`` holds.

    Raises:
        ConfigurationError: As `load_policy`.
    """
    try:
        return Policy.model_validate(file.data)
    except ValidationError as error:
        first = min(error.errors(include_url=False), key=lambda found: file.line_of(found["loc"]) or 0)
    what = explain(first, Policy)
    key, *within = first["loc"]
    if (field := Policy.model_fields.get(str(key))) is not None and not any(isinstance(w, str) for w in within):
        what += f"; allowed: {field.description}"
    raise file.error(first["loc"], what)
