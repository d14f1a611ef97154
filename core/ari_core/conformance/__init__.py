"""The conformance suite: what every backend has to pass, for whoever writes one.

::

    from ari_core.conformance import BackendContract

    class TestMine(BackendContract):
        @pytest.fixture
        def backend(self):           # new and empty
            with Mine(Mine.Settings(...)) as backend:
                yield backend

That is all that is needed. `Knobs` lists what may be added: hooks that go behind the backend's back, and knobs
for a service's oddities. Cases for what the store cannot do here (`Backend.probe`) are skipped and say why.

Needs pytest: ``ari-registry[plugin-dev]``. Nothing else in core imports it.
"""

from __future__ import annotations

from typing import Final

import pytest

# Before the modules with the assertions are imported, so that a failing one shows its values.
pytest.register_assert_rewrite(
    *(f"{__name__}.{module}" for module in ("knobs", "reading", "storing", "levels", "keeping", "manners"))
)

from ari_core.conformance.bundles import (  # noqa: E402 - see above
    Bundle,
    BundleSource,
    SourceFailedError,
    make_bundle,
    repacked,
)
from ari_core.conformance.keeping import Keeping  # noqa: E402
from ari_core.conformance.knobs import Knobs, Step  # noqa: E402
from ari_core.conformance.levels import Levels  # noqa: E402
from ari_core.conformance.manners import Manners  # noqa: E402
from ari_core.conformance.reading import Reading  # noqa: E402
from ari_core.conformance.storing import Storing  # noqa: E402

SUITE_VERSION: Final = 1
"""Goes up whenever a case is added or made stricter."""


class BackendContract(Reading, Storing, Levels, Keeping, Manners):
    """All cases. Subclass it as ``Test…`` and give it a fixture `backend`."""


__all__ = [
    "SUITE_VERSION",
    "BackendContract",
    "Bundle",
    "BundleSource",
    "Knobs",
    "SourceFailedError",
    "Step",
    "make_bundle",
    "repacked",
]
