"""Publish research bundles whose digest stands in the paper; clone any copy and know it is the one.

The whole Python interface is what stands in ``__all__``; everything is imported when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ari_core.errors import AriError as AriError
    from ari_core.errors import Problem as Problem
    from ari_core.limits import Limits as Limits
    from ari_core.record import Record as Record
    from ari_core.streams import Progress as Progress
    from ari_core.workflows.clone import CloneResult as CloneResult
    from ari_core.workflows.clone import clone as clone
    from ari_core.workflows.copies import Copy as Copy
    from ari_core.workflows.curate import CurateResult as CurateResult
    from ari_core.workflows.curate import curate as curate
    from ari_core.workflows.delete import Deleted as Deleted
    from ari_core.workflows.delete import DeleteResult as DeleteResult
    from ari_core.workflows.delete import delete as delete
    from ari_core.workflows.mirror import MirrorResult as MirrorResult
    from ari_core.workflows.mirror import mirror as mirror
    from ari_core.workflows.promote import Promoted as Promoted
    from ari_core.workflows.promote import PromoteResult as PromoteResult
    from ari_core.workflows.promote import promote as promote
    from ari_core.workflows.publish import PublishResult as PublishResult
    from ari_core.workflows.publish import publish as publish
    from ari_core.workflows.share import ShareResult as ShareResult
    from ari_core.workflows.share import share as share
    from ari_core.workflows.status import StatusResult as StatusResult
    from ari_core.workflows.status import status as status
    from ari_core.workflows.verify import ShowResult as ShowResult
    from ari_core.workflows.verify import VerifyResult as VerifyResult
    from ari_core.workflows.verify import show as show
    from ari_core.workflows.verify import verify as verify

_HOMES = {
    "AriError": "errors",
    "Problem": "errors",
    "Limits": "limits",
    "Progress": "streams",
    "Record": "record",
    "CloneResult": "workflows.clone",
    "clone": "workflows.clone",
    "CurateResult": "workflows.curate",
    "curate": "workflows.curate",
    "Deleted": "workflows.delete",
    "DeleteResult": "workflows.delete",
    "delete": "workflows.delete",
    "Copy": "workflows.copies",
    "MirrorResult": "workflows.mirror",
    "mirror": "workflows.mirror",
    "Promoted": "workflows.promote",
    "PromoteResult": "workflows.promote",
    "promote": "workflows.promote",
    "PublishResult": "workflows.publish",
    "publish": "workflows.publish",
    "ShareResult": "workflows.share",
    "share": "workflows.share",
    "StatusResult": "workflows.status",
    "status": "workflows.status",
    "ShowResult": "workflows.verify",
    "VerifyResult": "workflows.verify",
    "show": "workflows.verify",
    "verify": "workflows.verify",
}

__all__ = [  # noqa: PLE0604 - the names are those of the table
    *_HOMES
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'ari_core' has no attribute {name!r}")
    return getattr(importlib.import_module(f"ari_core.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
