"""What the package offers. Read at every start of `ari`, so it imports nothing that is not needed for that."""

from ari_core.contract import BackendSpec, Claim
from ari_core.plugins import hookimpl


def claims(ref: str) -> Claim:
    return Claim.EXACT if ref.startswith("folder-store:") else Claim.NO


@hookimpl
def ari_backends() -> list[BackendSpec]:
    return [
        BackendSpec(
            name="folder-store",
            backend="ari_folder_store.store:FolderStore",
            help="keep bundles in a folder: -o path=DIR",
            claims=claims,
            api=1,
        )
    ]
