"""Two real servers with two workers each, of one store and one database, behind nginx.

with Cluster(folder, rgw.store.with_bucket(), url) as cluster:
    alice = cluster.token("alice")
    sample = cluster.store(Sample.new(), alice, "public")    # by whichever server nginx chooses
    cluster.two.get(sample.path)
"""

import contextlib
import json

import httpx2
from support.faults import Faults
from support.nginx import Nginx
from support.programs import lasting_port
from support.registry import PATIENCE, Api, Registry, together
from support.run import ari
from support.s3 import keys, s3

from ari_core.errors import NotFound

PART = 5 << 20
"""Bytes of a part of an upload: the fewest that stores take."""
_MANY = {"rate=50r/s": "rate=5000r/s"}  # users of a test all have one address


class Cluster(Api):
    """The registry as its users reach it.

    Attributes:
        name: The store's.
        one: A server.
        two: The other one.
        nginx: In front of them.
        faults: A proxy between servers and store.
        s3: The backend, past that proxy.
        env: What both servers are told.
    """

    def __init__(self, folder, store, database, **settings):
        """`store` is a `support.stores.Store` with a bucket; `settings` are more of the servers'."""
        folder.mkdir(exist_ok=True)
        self.name = store.name
        self.faults = Faults(store.endpoint_url)
        self.s3 = s3(store, known=False)
        options = {"bucket": store.bucket, "endpoint_url": self.faults.origin, "part_size": str(PART)}
        self.env = {
            **store.behind(self.faults).env,
            "ARI_REGISTRY_BACKEND": "s3",
            "ARI_REGISTRY_OPTIONS": json.dumps(options),
            "ARI_REGISTRY_DB": database,
            **{f"ARI_REGISTRY_{name.upper()}": str(value) for name, value in settings.items()},
        }
        self.one, self.two = (self.server(folder / name) for name in ("one", "two"))
        self.servers = (self.one, self.two)
        self.nginx = Nginx(folder / "nginx", self.one.port, self.two.port, changes=_MANY)
        self.http = httpx2.Client(
            base_url=self.nginx.url, timeout=PATIENCE, trust_env=False, follow_redirects=True
        )
        self._stack = contextlib.ExitStack()

    def server(self, folder, **changes):
        """Makes one more server of the same store; `changes` replace variables, None takes one away."""
        env = {name: value for name, value in {**self.env, **changes}.items() if value is not None}
        return Registry(folder, workers=2, env=env, port=lasting_port())

    def __enter__(self):
        with contextlib.ExitStack() as stack:
            stack.callback(self.http.close)
            stack.callback(self.s3.close)
            stack.enter_context(self.faults)
            done = self.one.run("registry", "db", "upgrade")
            assert done.returncode == 0, done.stderr
            for server in self.servers:
                stack.push(server)
            together(*(server.start for server in self.servers))
            stack.enter_context(self.nginx)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exception):
        self._stack.__exit__(*exception)

    def token(self, user):
        return self.one.token(user)

    def workers(self):
        """Gives each server once for each of its workers, which then is the only one to answer."""
        for server in self.servers:
            for worker in server.worker_pids:
                with server.only(worker):
                    yield server

    def run(self, *arguments, token=None, cwd=None):
        """Runs `ari` as a user of the registry does."""
        own = {name: value for name, value in self.one.env.items() if not name.startswith(("AWS_", "ARI_"))}
        theirs = {"URL": self.nginx.url, "TOKEN": token or "", "NAME": "lab"}
        return ari(*arguments, env={**own, **{f"ARI_REGISTRY_{n}": v for n, v in theirs.items()}}, cwd=cwd)

    # -- what lies in the store -----------------------------------------------------------------------------------

    def keys(self, sample=None):
        """The objects in the bucket, or those of one artifact by their names."""
        found = [key for key in keys(self.s3) if key.startswith("artifacts/")]
        return found if sample is None else [key.rpartition("/")[2] for key in found if sample.sha256 in key]

    def unfinished(self):
        """The uploads of several parts that have not come to an end."""
        return [upload.key for upload in self.s3._client.uploads("")]

    def levels(self, sample):
        """The level of each owner, as the store has it; of nobody if it is not there."""
        try:
            artifact = self.s3.stat(self.s3.find(sample.sha256))
        except NotFound:
            return {}
        return {owner.user: str(owner.visibility) for owner in artifact.owners}

    def collect_garbage(self):
        """Removes what interrupted runs left an hour ago or more, as an operator does; counts each kind."""
        settings = json.loads(self.env["ARI_REGISTRY_OPTIONS"])
        options = [part for name in ("bucket", "endpoint_url") for part in ("-o", f"{name}={settings[name]}")]
        done = self.one.run("backends", "gc", "s3", *options, "--older-than", "1h", "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)["kinds"]
