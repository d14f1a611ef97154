"""zenodo.org, sandbox.zenodo.org and doi.org by their real names, on 127.0.0.1 and for one program only.

They are reached as a user would behind a firewall: through a proxy, trusting an authority of the house.
"""

from contextlib import ExitStack

from support.httpd import Authority, Proxy
from support.zenodo import Zenodo

ZENODO, SANDBOX, DOI_ORG = "zenodo.org", "sandbox.zenodo.org", "doi.org"


class _RealNames(Authority):
    names = (ZENODO, SANDBOX, DOI_ORG)


class Internet:
    """Both repositories, working inside the ``with`` block.

    Attributes:
        zenodo, sandbox: The simulated services.
        settings: Of the backend, to reach them.
    """

    def __init__(self, folder, **options):
        """`options` are those of the simulated services."""
        folder.mkdir(parents=True, exist_ok=True)
        authority = _RealNames(folder)
        self.zenodo = Zenodo(folder / ZENODO, prefix="10.5281", authority=authority, **options)
        self.sandbox = Zenodo(folder / SANDBOX, prefix="10.5072", authority=authority, **options)
        ports = {ZENODO: self.zenodo.port, DOI_ORG: self.zenodo.port, SANDBOX: self.sandbox.port}
        self._proxy = Proxy({f"{host}:443": port for host, port in ports.items()})
        self.settings = {"ca_file": str(authority.file), "proxy": f"http://127.0.0.1:{self._proxy.port}"}
        self._stack = ExitStack()

    @property
    def environment(self):
        """What leads every program there."""
        return {"HTTPS_PROXY": self.settings["proxy"], "SSL_CERT_FILE": self.settings["ca_file"]}

    def __enter__(self):
        for server in (self.zenodo, self.sandbox, self._proxy):
            self._stack.enter_context(server)
        return self

    def __exit__(self, *_):
        self._stack.close()
