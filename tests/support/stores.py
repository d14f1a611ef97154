"""Real object stores and PostgreSQL on 127.0.0.1, of the test's own or shared by all processes of a test session.

    with Rgw(folder) as rgw:                     # of the test's own: may be stopped, killed, started again
        rgw.store.client().list_buckets()

    with shared("rgw", folder) as store:         # what is in `folder` decides who shares it
        store.client().list_buckets()

Nothing outlives the tests, however they end: a test's own server dies with the thread that started it; a shared
one has a keeper, which waits for a lock that its users hold for as long as they live.
"""

import contextlib
import fcntl
import json
import os
import pwd
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from urllib.parse import urlsplit

from support.programs import SWIFT, Daemon, accepts, find, lasting_port, run
from support.registry import eventually

PROGRAMS = {
    "moto": ("moto_server", "setpriv"),
    "rgw": ("radosgw", "ceph-mon", "ceph-osd", "ceph", "setpriv"),
    "swift": ("swift-proxy-server", "setpriv"),
    "postgres": ("initdb", "setpriv"),
}
"""What each kind of server needs to be there."""
S3 = ("moto", "rgw", "swift")


@dataclass(frozen=True)
class Store:
    """How to reach an S3 server, and the bucket in it that is the test's own, if any."""

    name: str
    endpoint_url: str
    access_key: str
    secret_key: str = field(repr=False)
    region: str = "us-east-1"
    bucket: str | None = None

    @property
    def env(self):
        """Variables for a program that finds its credentials by itself."""
        return {
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_DEFAULT_REGION": self.region,
            "AWS_ENDPOINT_URL_S3": self.endpoint_url,
        }

    @property
    def host(self):
        """Host and port."""
        return urlsplit(self.endpoint_url).netloc

    def client(self, **config):
        """Makes a boto3 client; `config` goes to botocore's Config."""
        import boto3
        from botocore.config import Config

        defaults = {"signature_version": "s3v4", "s3": {"addressing_style": "path"}, "max_pool_connections": 32}
        return boto3.client(
            "s3",
            endpoint_url=self.endpoint_url,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            region_name=self.region,
            config=Config(**defaults, **config),
        )

    def behind(self, proxy):
        """Returns the same store as reached through a proxy (`support.faults.Faults`)."""
        return replace(self, endpoint_url=proxy.origin)

    def with_bucket(self):
        """Makes a bucket that nobody has used before."""
        bucket = f"ari-{uuid.uuid4().hex}"
        with contextlib.closing(self.client()) as client:
            client.create_bucket(Bucket=bucket)
        return replace(self, bucket=bucket)


class Server:
    """A server in a folder of its own, running inside the ``with`` block."""

    def __init__(self, folder):
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.port = lasting_port()

    def __enter__(self):
        try:
            return self.start()
        except BaseException:
            self.__exit__()
            raise

    def __exit__(self, *_):
        self.kill()

    def start(self):
        """Starts it, also again."""
        self.front.start(lambda: accepts(self.port))
        return self

    def stop(self):
        """Stops what clients talk to in good order."""
        self.front.stop()

    def kill(self):
        """Kills it."""
        self.front.kill()

    def restart(self):
        self.stop()
        return self.start()

    def described(self):
        """What users of a shared one need to know."""
        return asdict(self.store)


class Moto(Server):
    """The emulator: checks no signature, and forgets everything when it ends."""

    def __init__(self, folder):
        super().__init__(folder)
        self.store = Store("moto", f"http://127.0.0.1:{self.port}", "testkey", "testsecret123")
        command = (sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", self.port)
        self.front = Daemon(*command, log=self.folder / "moto.log")


class Rgw(Server):
    """A Ceph cluster as small as they get. `stop`, `kill` and `start` are about its gateway; the data stay.

    It keeps them in memory, 8 GiB at most.
    """

    def __init__(self, folder):
        super().__init__(folder)
        self.store = Store("rgw", f"http://127.0.0.1:{self.port}", "testkey", secrets.token_hex(20))
        self.conf = self.folder / "ceph.conf"
        self.mon, self.osd, self.front = (
            self._daemon(*command)
            for command in (
                ("ceph-mon", "-i", "a"),
                ("ceph-osd", "-i", "0"),
                ("radosgw", "-n", "client.rgw.a"),
            )
        )

    def _daemon(self, program, *options):
        return Daemon(find(program), "-f", *options, "-c", self.conf, log=self.folder / f"{program}.out")

    def start(self):
        if not self.conf.exists():
            self._make()
        return super().start()

    def __exit__(self, *_):
        for daemon in (self.front, self.osd, self.mon):
            daemon.kill()

    def _make(self):
        fsid, osd, at = uuid.uuid4(), uuid.uuid4(), f"[v2:127.0.0.1:{lasting_port()}/0]"
        self.conf.write_text(CEPH.format(fsid=fsid, mon=at, folder=self.folder, port=self.port))
        for name in ("mon", "osd", "rgw", "crash"):
            (self.folder / name).mkdir()
        mon_map = self.folder / "monmap"
        run(find("monmaptool"), "--create", "--fsid", fsid, "--addv", "a", at, mon_map)
        run(find("ceph-mon"), "--mkfs", "-i", "a", "--monmap", mon_map, "-c", self.conf)
        self.mon.start(lambda: accepts(int(at[:-3].rpartition(":")[2])))
        run(find("ceph"), "-c", self.conf, "osd", "new", osd)
        run(find("ceph-osd"), "-i", "0", "--mkfs", "--osd-uuid", osd, "-c", self.conf)
        self.osd.start(lambda: True)  # what follows waits for it
        self.user("test", self.store.access_key, self.store.secret_key)

    def user(self, name, access_key, secret_key):
        """Makes one more user, and returns the store as theirs."""
        keys = (f"--access-key={access_key}", f"--secret-key={secret_key}")
        self.admin("user", "create", f"--uid={name}", f"--display-name={name}", "--max-buckets=0", *keys)
        return replace(self.store, access_key=access_key, secret_key=secret_key)

    def admin(self, *arguments):
        """Runs radosgw-admin: quotas, suspended users and the like."""
        return run(find("radosgw-admin"), "-c", self.conf, *arguments)


# In memory, and with clients that look every 0.2 s (not 5) whether a disk is there, it starts in 2 s instead of 8.
# No `admin_socket`: the path of a socket may have 107 bytes. Without keys (`auth_*`), all modes must be `crc`.
CEPH = """\
[global]
fsid = {fsid}
mon_host = {mon}
public_addr = 127.0.0.1
cluster_addr = 127.0.0.1
ms_bind_ipv6 = false
ms_bind_msgr1 = false
auth_cluster_required = none
auth_service_required = none
auth_client_required = none
ms_mon_client_mode = crc
ms_mon_service_mode = crc
ms_mon_cluster_mode = crc
osd_pool_default_size = 1
osd_pool_default_min_size = 1
osd_pool_default_pg_num = 4
osd_pool_default_pgp_num = 4
osd_pool_default_pg_autoscale_mode = off
mon_allow_pool_size_one = true
osd_crush_chooseleaf_type = 0
admin_socket =
run_dir = {folder}
crash_dir = {folder}/crash
log_file = {folder}/$name.log
mon_data = {folder}/mon
mon_data_avail_crit = 1
paxos_propose_interval = 0.05
paxos_min_wait = 0.01
mon_tick_interval = 1
osd_data = {folder}/osd
osd_objectstore = memstore
memstore_device_bytes = 8589934592
objecter_tick_interval = 0.2
osd_class_load_list = *
osd_class_default_list = *
[client.rgw.a]
rgw_data = {folder}/rgw
rgw_frontends = beast endpoint=127.0.0.1:{port} tcp_nodelay=1
rgw_thread_pool_size = 32
rgw_override_bucket_index_max_shards = 1
rgw_enable_usage_log = false
rgw_gc_obj_min_wait = 1
"""


class Swift(Server):
    """OpenStack Swift on one disk. `stop`, `kill` and `start` are about its proxy; the data stay.

    It accepts `If-None-Match: *` and lets several of those who race win.
    """

    def __init__(self, folder):
        super().__init__(folder)
        self.etc = self.folder / "etc"
        self.store = Store("swift", f"http://127.0.0.1:{self.port}", "test:tester", secrets.token_hex(20))
        self.ports = {kind: lasting_port() for kind in ("account", "container", "object")}
        self.front, *self.back = (
            Daemon(
                *(SWIFT / "bin" / "python", SWIFT / "bin" / f"swift-{kind}-server", self.etc / f"{kind}.conf"),
                log=self.folder / f"{kind}.log",
            )
            for kind in ("proxy", *self.ports)
        )

    def start(self):
        if not self.etc.exists():
            self._make()
        return super().start()

    def __exit__(self, *_):
        for daemon in (self.front, *self.back):
            daemon.kill()

    def _make(self):
        for folder in (self.etc, self.folder / "srv" / "d1"):
            folder.mkdir(parents=True)
        common = {"user": pwd.getpwuid(os.geteuid()).pw_name, "folder": self.folder}
        (self.etc / "swift.conf").write_text(SWIFT_CONF)
        proxy = SWIFT_PROXY.format(port=self.port, secret=self.store.secret_key, **common)
        (self.etc / "proxy.conf").write_text(proxy)
        for kind, port in self.ports.items():
            (self.etc / f"{kind}.conf").write_text(SWIFT_SERVER.format(kind=kind, port=port, **common))
        run(SWIFT / "bin" / "python", "-c", SWIFT_RINGS, self.etc, json.dumps(self.ports))
        for daemon in self.back:
            daemon.start(lambda: True)
        assert eventually(lambda: all(map(accepts, self.ports.values())))


SWIFT_RINGS = """
import json, sys
from swift.common.ring import RingBuilder
for kind, port in json.loads(sys.argv[2]).items():
    builder = RingBuilder(4, 1, 0)
    device = {"id": 0, "region": 1, "zone": 1, "ip": "127.0.0.1", "port": port, "device": "d1", "weight": 1}
    builder.add_dev(device)
    builder.rebalance()
    builder.get_ring().save(f"{sys.argv[1]}/{kind}.ring.gz")
"""
SWIFT_CONF = """\
[swift-hash]
swift_hash_path_prefix = tests
swift_hash_path_suffix = tests
[storage-policy:0]
name = default
default = yes
[swift-constraints]
max_header_size = 16384
"""
SWIFT_COMMON = """\
[DEFAULT]
bind_ip = 127.0.0.1
bind_port = {port}
workers = 0
user = {user}
swift_dir = {folder}/etc
log_address = /nonexistent
log_level = WARNING
"""
SWIFT_SERVER = f"""{SWIFT_COMMON}\
devices = {{folder}}/srv
mount_check = false
fallocate_reserve = 0
[pipeline:main]
pipeline = {{kind}}-server
[app:{{kind}}-server]
use = egg:swift#{{kind}}
[{{kind}}-replicator]
[{{kind}}-updater]
[{{kind}}-auditor]
"""
_FILTERS = {
    "catch_errors": "",
    "gatekeeper": "",
    "listing_formats": "",
    "bulk": "",
    "tempurl": "",
    "s3api": "location = us-east-1\ns3_acl = false\ncheck_bucket_owner = false\n",
    "tempauth": "user_test_tester = {secret} .admin\n",
    "copy": "",
    "slo": "",
    "dlo": "",
    "versioned_writes": "allow_object_versioning = true\n",
    "symlink": "",
}
SWIFT_PROXY = f"""{SWIFT_COMMON}\
[pipeline:main]
pipeline = {" ".join(_FILTERS)} proxy-server
[app:proxy-server]
use = egg:swift#proxy
allow_account_management = true
account_autocreate = true
""" + "".join(f"[filter:{name}]\nuse = egg:swift#{name}\n{more}" for name, more in _FILTERS.items())


@dataclass(frozen=True)
class Cluster:
    """How to reach a PostgreSQL server."""

    port: int
    password: str = field(repr=False)
    user: str = "ari"

    def url(self, database="postgres"):
        """SQLAlchemy's URL of a database."""
        return f"postgresql+psycopg://{self.user}:{self.password}@127.0.0.1:{self.port}/{database}"

    def run(self, statement, database="postgres"):
        """Runs one statement and returns its rows, if it has any."""
        import psycopg

        where = self.url(database).replace("+psycopg", "")
        with psycopg.connect(where, autocommit=True, connect_timeout=10) as connection:
            done = connection.execute(statement)
            return done.fetchall() if done.description else []

    @contextlib.contextmanager
    def database(self):
        """Makes a database; gives its URL, and drops it whoever still uses it."""
        name = f"ari_{uuid.uuid4().hex}"
        self.run(f"CREATE DATABASE {name}")
        try:
            yield self.url(name)
        finally:
            self.run(f"DROP DATABASE {name} WITH (FORCE)")


@contextlib.contextmanager
def _locked(folder, how):
    """Locks a folder for as long as the block, or this process, lasts."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(fd, how)
        yield
    finally:
        os.close(fd)


class Postgres(Server):
    """A PostgreSQL server that asks for a password. Killed and started again it has what was committed."""

    def __init__(self, folder):
        super().__init__(folder)
        self.user = "postgres" if os.geteuid() == 0 else None
        self.store = Cluster(self.port, secrets.token_hex(20))
        self.data = self.folder / "data"
        if self.user:  # who may not enter the folders of root's tests
            self.data = self._outside() / "data"
        options = {
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": "",
            "dynamic_shared_memory_type": "mmap",  # nothing stays in /dev/shm when it is killed
            "fsync": "off",
            "full_page_writes": "off",
        }
        flags = [f"--{name}={value}" for name, value in options.items()]
        self.front = Daemon(
            *(self._program("postgres"), "-D", self.data, "-p", self.port, *flags),
            log=self.folder / "postgres.log",
            user=self.user,
            dies_by="QUIT",  # ends the others it started, too
            cwd="/",
            env={"LC_ALL": "C"},
        )

    def _outside(self):
        """Makes a folder in /tmp, and removes those of test runs that were killed."""
        for old in Path("/tmp").glob("ari-postgres-*"):  # noqa: S108 - mkdtemp's names
            with contextlib.suppress(OSError), _locked(old, fcntl.LOCK_EX | fcntl.LOCK_NB):
                if time.time() - old.stat().st_mtime > 60:  # who makes one locks it a moment later
                    shutil.rmtree(old, ignore_errors=True)
        folder = Path(tempfile.mkdtemp(prefix="ari-postgres-", dir="/tmp"))
        self._mine = contextlib.ExitStack()
        self._mine.enter_context(_locked(folder, fcntl.LOCK_SH))
        shutil.chown(folder, self.user)
        return folder

    @staticmethod
    def _program(name):
        return Path(find("initdb")).resolve().parent / name

    def start(self):
        if not self.data.exists():
            password = self.data.with_name("password")
            password.write_text(self.store.password)
            if self.user:
                shutil.chown(password, self.user)
            initdb = (self._program("initdb"), "-D", self.data, "-U", self.store.user, "-A", "scram-sha-256")
            options = ("-E", "UTF8", "--no-locale", "--no-sync", f"--pwfile={password}")
            run(*initdb, *options, user=self.user, cwd="/", env={"LC_ALL": "C"})
        self.front.start(self._answers)
        return self

    def _answers(self):
        import psycopg

        with contextlib.suppress(psycopg.OperationalError):
            return self.store.run("SELECT 1")
        return False

    def stop(self):
        """Stops it without waiting for its clients to leave."""
        self.front.stop(by=signal.SIGINT)

    def __exit__(self, *_):
        self.front.stop(by=signal.SIGQUIT)
        if self.user:
            shutil.rmtree(self.data.parent, ignore_errors=True)
            self._mine.close()


KINDS = {"moto": Moto, "rgw": Rgw, "swift": Swift, "postgres": Postgres}


@contextlib.contextmanager
def shared(kind, folder):
    """Gives the `Store` (or `Cluster`) that all share who name the same folder; the first one starts it."""
    folder = Path(folder) / kind
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "users").open("ab") as users:
        with (folder / "turn").open("ab") as turn:
            fcntl.flock(turn, fcntl.LOCK_EX)
            fcntl.flock(users, fcntl.LOCK_SH)  # waits for a keeper that is just ending
            state = folder / "state.json"
            if not state.exists():
                with (folder / "keeper.log").open("ab") as log:
                    subprocess.run(
                        [sys.executable, __file__, kind, folder],
                        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
                        stdin=subprocess.DEVNULL,
                        stdout=log,
                        stderr=log,
                        check=False,
                    )
            if not state.exists():
                raise AssertionError(f"{kind} did not start:\n{(folder / 'keeper.log').read_text()[-4000:]}")
        yield (Cluster if kind == "postgres" else Store)(**json.loads(state.read_text()))


def keep(kind, folder):
    """Runs a server until nobody uses it any more; returns when it runs, in another process than it began."""
    said, saying = os.pipe()
    if os.fork():
        os.close(saying)
        os.read(said, 1)
        return
    os.close(said)
    os.setsid()
    state = folder / "state.json"
    with (folder / "users").open("ab") as users, KINDS[kind](folder / "server") as server:
        (folder / "new.json").write_text(json.dumps(server.described()))
        (folder / "new.json").rename(state)
        os.close(saying)
        fcntl.flock(users, fcntl.LOCK_EX)
        state.unlink()


if __name__ == "__main__":
    keep(sys.argv[1], Path(sys.argv[2]))
