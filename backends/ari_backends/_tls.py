"""What a TLS handshake that failed means, whatever library met it: most such failures last."""

from __future__ import annotations

import re
import ssl
from collections.abc import Iterable
from typing import Final

from ari_core.errors import escape

_PLAIN: Final = {"WRONG_VERSION_NUMBER", "HTTP_REQUEST", "UNKNOWN_PROTOCOL", "PACKET_LENGTH_TOO_LONG"}
_LASTING: Final = re.compile(
    "ALERT_(PROTOCOL_VERSION|HANDSHAKE_FAILURE|CERTIFICATE_REQUIRED|UNKNOWN_CA|ACCESS_DENIED|INSUFFICIENT_SECURITY)"
    "|UNSUPPORTED_PROTOCOL|UNRECOGNIZED_NAME|TOO_SMALL"
)

OTHER_NAME: Final = "write the address with the name that the certificate is for"
"""What to do about a certificate of another name."""

# OpenSSL's X509_V_ERR_…
_DATES: Final = {9, 10}
_NAMES: Final = {62, 63, 64}


def handshake_problem(errors: Iterable[BaseException], *, trust: str, plain: str) -> tuple[str, str] | None:
    """Says what is wrong, and what to do; None if it is no such failure, or one that may pass.

    Args:
        errors: An error and what it came from.
        trust: How to name a file of authorities, for a hint.
        plain: What to do where no TLS is spoken.
    """
    for error in errors:
        if isinstance(error, ssl.SSLCertVerificationError):
            why = escape(error.verify_message)
            return f"its certificate is not trusted: {why}", _hint(error.verify_code, trust)
        if isinstance(error, ssl.SSLError) and error.reason in _PLAIN:
            return "what answers there is not https", plain
        if isinstance(error, ssl.SSLError) and _LASTING.search(error.reason or ""):
            return f"no secure connection: {escape(error.reason)}", "tell whoever runs that server"
    return None


def _hint(code: int, trust: str) -> str:
    if code in _DATES:
        return "its operator has to renew it, unless this machine's clock is wrong"
    if code in _NAMES:
        return OTHER_NAME
    return f"if its authority is your own, name it with {trust}"
