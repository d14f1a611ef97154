"""Finds content that looks like a secret, for a warning before it is published for good.

The patterns are those of the detect-secrets package, of which only the plugins that know a credential by its own
shape are used. Its entropy and keyword plugins are left out: on tables of numbers, hashes and notebooks they warn
about nearly every line, and a warning that is always there is read by nobody. Its step that tries out over the
network what was found is never taken.
"""

from __future__ import annotations

import functools
import importlib
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from detect_secrets.plugins.base import RegexBasedDetector

SCANNED_BYTES: Final = 1024 * 1024
"""Only this much of the beginning of a file is scanned: what is larger is data, not code or settings."""

PLUGINS: Final = (
    "aws.AWSKeyDetector",
    "azure_storage_key.AzureStorageKeyDetector",
    "basic_auth.BasicAuthDetector",
    "github_token.GitHubTokenDetector",
    "gitlab_token.GitLabTokenDetector",
    "jwt.JwtTokenDetector",
    "mailchimp.MailchimpDetector",
    "npm.NpmDetector",
    "openai.OpenAIDetector",
    "private_key.PrivateKeyDetector",
    "pypi_token.PypiTokenDetector",
    "sendgrid.SendGridDetector",
    "slack.SlackDetector",
    "square_oauth.SquareOAuthDetector",
    "stripe.StripeDetector",
)

# Running every plugin on every line takes long for 10,000 files, and loading them a fifth of a second. So whatever
# a plugin can match contains one of these (a test holds that), and most files contain none: 100 MB of Python
# packages take 0.9 s here. Branches start with plain text, which is what makes the search fast.
_HINT: Final = re.compile(
    rb"PRIVATE KEY|PuTTY-User-Key-File|BEGIN SSH2 ENC"
    rb"|A3T[A-Z0-9][0-9A-Z]{16}|ABIA[0-9A-Z]{16}|ACCA[0-9A-Z]{16}|AKIA[0-9A-Z]{16}|ASIA[0-9A-Z]{16}"
    rb"|AccountKey=|://[^/\s]+@|gh[oprsu]_[A-Za-z0-9_]{36}|gl[a-z]{2,5}-[A-Za-z0-9_-]{20}|GR1348941|eyJ"
    rb"|-us[0-9]|:_authToken=|T3BlbkFJ|pypi-AgE|SG\.[a-zA-Z0-9_-]{22}\.|sq0csp-|k_live_"
)
_HINT_IN_ANY_CASE: Final = re.compile(rb"aws|xox[abopsr]-|hooks\.slack\.com/")  # searched in lower-cased text

# A hint's line is looked at from so many bytes before to so many after it: a file may be one long line.
_BEFORE: Final = 512
_AFTER: Final = 4096


class Finding(NamedTuple):
    """Something that looks like a secret. The secret itself is not in here.

    Attributes:
        line: Where it is first found, from 1.
        kind: What it looks like: ``"AWS Access Key"``.
    """

    line: int
    kind: str


def find_secrets(data: bytes) -> list[Finding]:
    """Looks for secrets in the beginning of a file.

    A line that says ``pragma: allowlist secret`` in a comment is passed over, as detect-secrets documents it.

    Args:
        data: The first `SCANNED_BYTES` of a file; what has a NUL byte is not text and is not searched.

    Returns:
        The first finding of each kind, by line.
    """
    if b"\0" in data:
        return []
    first: dict[str, Finding] = {}
    for start, end in _windows(data):
        text = data[start:end].decode("utf-8", "replace")
        for kind in _kinds(text):
            if kind not in first and not _allowed(data, start, end):
                first[kind] = Finding(data.count(b"\n", 0, start) + 1, kind)
    return sorted(first.values())


def _windows(data: bytes) -> Iterator[tuple[int, int]]:
    """Yields where the neighbourhoods of hints begin and end; each is within one line."""
    for regex, text in ((_HINT, data), (_HINT_IN_ANY_CASE, data.lower())):
        position = 0
        while hint := regex.search(text, position):
            start = max(data.rfind(b"\n", 0, hint.start()) + 1, hint.start() - _BEFORE)
            line_end = data.find(b"\n", hint.end())
            if line_end < 0:
                line_end = len(data)
            end = min(line_end, hint.end() + _AFTER)
            yield start, end
            # What begins near the end of a cut window is seen whole in the next one.
            position = end if end == line_end else max(hint.end(), end - _BEFORE)


def _kinds(text: str) -> Iterator[str]:
    from detect_secrets.filters import heuristic  # noqa: PLC0415 - see `_HINT`

    for plugin in _plugins():
        for secret in plugin.analyze_string(text):
            if not (
                heuristic.is_templated_secret(secret)
                or heuristic.is_prefixed_with_dollar_sign(secret)
                or heuristic.is_not_alphanumeric_string(secret)
            ):
                yield plugin.secret_type
                break


def _allowed(data: bytes, start: int, end: int) -> bool:
    from detect_secrets.filters.allowlist import is_line_allowlisted  # noqa: PLC0415 - see `_HINT`
    from detect_secrets.util.code_snippet import CodeSnippet  # noqa: PLC0415 - see `_HINT`

    line_start = data.rfind(b"\n", 0, start) + 1
    previous_start = data.rfind(b"\n", 0, max(0, line_start - 1)) + 1
    previous, line = (
        data[previous_start:line_start].decode("utf-8", "replace"),
        data[start:end].decode("utf-8", "replace"),
    )
    return is_line_allowlisted("", line, CodeSnippet([previous, line], 0, 1))


@functools.cache
def _plugins() -> tuple[RegexBasedDetector, ...]:
    found = []
    for place in PLUGINS:
        module, _, name = place.partition(".")
        found.append(getattr(importlib.import_module(f"detect_secrets.plugins.{module}"), name)())
    return tuple(found)
