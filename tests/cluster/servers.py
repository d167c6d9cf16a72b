"""The programs in the namespaces: PostgreSQL with its standby, Redis, and the nodes. Each is ended by the process id it was started with."""

import base64
import ctypes
import glob
import http.client
import json
import os
import pathlib
import pwd
import shutil
import signal
import subprocess
import time

from network import BACK, FRONT, call

LOG_ADDRESS = 10  # The address that moves to whichever PostgreSQL is the primary.
STRANGER = BACK + "66"  # Of a machine on the back network that is nobody of ours.


class CannotStart(Exception):
    pass


def die_with_parent():
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def wait_for(what, seconds, *, every=0.05):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if what():
            return True
        time.sleep(every)
    return False


def descendants(pid):
    """A process and the children of it, youngest last."""
    found = [pid]
    try:
        children = pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return found
    for child in children:
        found += descendants(int(child))
    return found


def signal_all(pids, number):
    for pid in pids:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            pass


class Postgres:
    """One PostgreSQL server in a namespace."""

    def __init__(self, network, host, folder, *, standby_of=None):
        self.network, self.host, self.folder = network, host, folder / host
        self.binaries = sorted(glob.glob("/usr/lib/postgresql/*/bin"), key=lambda path: int(path.split("/")[-2]))[-1]
        self.process = None
        self.folder.mkdir()
        shutil.chown(self.folder, "postgres", "postgres")
        if standby_of is None:
            self.as_postgres("initdb", "-D", str(self.data), "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C.UTF-8")
            with open(self.data / "pg_hba.conf", "a") as hba:
                hba.write("host all all 10.99.0.0/24 trust\nhost replication all 10.99.0.0/24 trust\n")
        else:
            self.copy(standby_of)

    @property
    def data(self):
        return self.folder / "data"

    def as_postgres(self, program, *arguments):
        user = pwd.getpwnam("postgres")
        done = subprocess.run([*self.network.inside(self.host), "setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups",
                               f"{self.binaries}/{program}", *arguments], cwd="/", capture_output=True, text=True, stdin=subprocess.DEVNULL)
        if done.returncode:
            raise CannotStart(f"{program}: {done.stderr.strip()}")
        return done.stdout

    def copy(self, primary):
        """Becomes the primary's standby, from nothing."""
        shutil.rmtree(self.data, ignore_errors=True)
        self.as_postgres("pg_basebackup", "-D", str(self.data), "-R", "-X", "stream", "-c", "fast", "-d",
                         f"host={self.network.address(primary.host)} user=postgres application_name={self.host}")

    def start(self):
        (self.data / "postmaster.pid").unlink(missing_ok=True)
        with open(self.folder / "log", "a") as log:
            self.process = subprocess.Popen(
                [*self.network.inside(self.host), "setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups", f"{self.binaries}/postgres",
                 "-D", str(self.data), "-c", "listen_addresses=*", "-c", f"unix_socket_directories={self.folder}", "-c", "fsync=on",
                 "-c", "synchronous_commit=on", "-c", "max_connections=100"],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd="/", start_new_session=True)
        if not wait_for(self.ready, 30):
            raise CannotStart(f"PostgreSQL does not start: {(self.folder / 'log').read_text()[-500:]}")

    def ready(self):
        return subprocess.run([f"{self.binaries}/pg_isready", "-q", "-h", str(self.folder)], capture_output=True).returncode == 0

    def sql(self, text, database="postgres"):
        return call("psql", "-qAtX", "-v", "ON_ERROR_STOP=1", "-h", str(self.folder), "-U", "postgres", "-d", database, "-c", text).strip()

    def take_standby(self, standby):
        """From now on no commit returns before the standby has it on disk."""
        self.sql(f"ALTER SYSTEM SET synchronous_standby_names = '{standby.host}'")
        self.sql("SELECT pg_reload_conf()")
        if not wait_for(lambda: self.sql("SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'sync'") == "1", 30):
            raise CannotStart("the standby is not synchronous")

    def promote(self):
        # The settings came with the copy; nobody stands by for this one yet.
        self.sql("SELECT pg_promote(true, 30)")
        if not wait_for(lambda: self.sql("SELECT pg_is_in_recovery()") == "f", 30):
            raise CannotStart("the standby cannot be promoted")

    def kill(self):
        """As if the power failed: postmaster and backends at once."""
        if self.process and self.process.poll() is None:
            pids = descendants(self.process.pid)
            signal_all(pids, signal.SIGSTOP)
            pids = descendants(self.process.pid)
            signal_all(pids, signal.SIGKILL)
            self.process.wait()
            wait_for(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in pids), 10)

    def pause(self):
        signal_all(descendants(self.process.pid), signal.SIGSTOP)

    def resume(self):
        signal_all(descendants(self.process.pid), signal.SIGCONT)

    def stop(self):
        if self.process and self.process.poll() is None:
            self.resume()
            self.process.send_signal(signal.SIGQUIT)
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.kill()


class Log:
    """The log's PostgreSQL behind one address, with a synchronous standby if asked."""

    def __init__(self, network, folder, *, standby):
        self.network, self.folder = network, folder
        self.primary, self.standby = Postgres(network, "pg1", folder), None
        self.primary.start()
        network.move(LOG_ADDRESS, None, "pg1")
        if standby:
            self.standby = Postgres(network, "pg2", folder, standby_of=self.primary)
            self.standby.start()
            self.primary.take_standby(self.standby)

    def url(self, user="bench"):
        return f"postgres://{user}@{BACK}{LOG_ADDRESS}:5432/counterfoil"

    def make_database(self, binary, folder):
        self.primary.sql("CREATE DATABASE counterfoil")
        done = subprocess.run([*self.network.inside("pg1"), str(binary), "migrate"], capture_output=True, text=True, stdin=subprocess.DEVNULL,
                              env={**os.environ, "COUNTERFOIL__LOG__URL": self.url("postgres"), "COUNTERFOIL__DATA_DIR": str(folder / "migrate")})
        if done.returncode:
            raise CannotStart(f"migrate: {done.stderr}")
        self.primary.sql("CREATE ROLE bench LOGIN")
        self.primary.sql("GRANT counterfoil_writer TO bench", "counterfoil")

    def fail_over(self):
        """The standby takes over, and the address moves to it. What was the primary must already be dead or cut off."""
        old, new = self.primary, self.standby
        new.promote()
        self.network.move(LOG_ADDRESS, old.host, new.host)
        self.primary, self.standby = new, None
        return old

    def rejoin(self, old):
        """What was the primary comes back as a standby, without anything it had."""
        old.kill()
        old.copy(self.primary)
        old.start()
        self.primary.take_standby(old)
        self.standby = old

    def stop(self):
        for server in (self.standby, self.primary):
            if server:
                server.stop()


class Redis:
    def __init__(self, network, folder):
        self.network, self.folder, self.process = network, folder, None
        self.start()

    @property
    def url(self):
        return f"redis://{self.network.address('redis')}:6379"

    def start(self):
        with open(self.folder / "redis.log", "a") as log:
            self.process = subprocess.Popen(
                [*self.network.inside("redis"), "redis-server", "--bind", self.network.address("redis"), "127.0.0.1", "--protected-mode", "no", "--save", "", "--appendonly", "no",
                 "--dir", str(self.folder)], stdin=subprocess.DEVNULL, stdout=log, stderr=log, preexec_fn=die_with_parent)
        if not wait_for(lambda: self.ask("ping").strip() == "PONG", 10):
            raise CannotStart("Redis does not start")

    def ask(self, *words):
        return self.network.within("redis", "redis-cli", *words, check=False)

    def kill(self):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()

    stop = kill


class Sentinels:
    """A Redis master, its replica, and three sentinels that promote it."""

    SERVICE, PORTS = "sessions", (26379, 26380, 26381)

    def __init__(self, network, folder):
        self.network, self.folder, self.processes = network, folder, {}
        self.start_server("redis1")
        self.start_server("redis2", "redis1")
        address = network.address("sentinels")
        for port in self.PORTS:
            own = folder / f"sentinel-{port}"
            own.mkdir()
            (own / "sentinel.conf").write_text(
                f"sentinel monitor {self.SERVICE} {network.address('redis1')} 6379 2\nsentinel down-after-milliseconds {self.SERVICE} 1000\n"
                f"sentinel failover-timeout {self.SERVICE} 6000\n")
            self.spawn(f"sentinel-{port}", "sentinels", str(own / "sentinel.conf"), "--sentinel", "--bind", address, "--port", str(port),
                       "--dir", str(own), "--protected-mode", "no")
        if not wait_for(lambda: self.replicas() == 1, 20):
            raise CannotStart("the sentinels do not know a master and its replica")

    @property
    def url(self):
        address = self.network.address("sentinels")
        return f"redis+sentinel://{','.join(f'{address}:{port}' for port in self.PORTS)}/{self.SERVICE}"

    def spawn(self, name, host, *arguments):
        with open(self.folder / f"{name}.log", "a") as log:
            self.processes[name] = subprocess.Popen([*self.network.inside(host), "redis-server", *arguments], stdin=subprocess.DEVNULL, stdout=log,
                                                    stderr=log, preexec_fn=die_with_parent)

    def start_server(self, host, master=None):
        follow = ["--replicaof", self.network.address(master), "6379"] if master else []
        self.spawn(host, host, "--bind", self.network.address(host), "--protected-mode", "no", "--save", "", "--appendonly", "no", "--dir",
                   str(self.folder), *follow)
        if not wait_for(lambda: self.ask(host, 6379, "ping") == ["PONG"], 10):
            raise CannotStart(f"{host} does not start")

    def ask(self, host, port, *words):
        return self.network.within(host, "redis-cli", "-h", self.network.address(host), "-p", str(port), *words, check=False).split()

    def master(self):
        """The host that the sentinels say is the master."""
        found = self.ask("sentinels", self.PORTS[0], "sentinel", "get-master-addr-by-name", self.SERVICE)
        return next((host for host in ("redis1", "redis2") if found[:1] == [self.network.address(host)]), None)

    def replicas(self):
        """How many replicas of the master every sentinel knows to be connected."""
        known = [self.ask("sentinels", port, "sentinel", "replicas", self.SERVICE) for port in self.PORTS]
        return min(words.count("ok") for words in known)

    def kill(self, host):
        self.processes[host].kill()
        self.processes[host].wait()

    def fail_over(self):
        """The master dies. Answers it, once another was promoted."""
        old = self.master()
        self.kill(old)
        if not wait_for(lambda: self.master() not in (old, None), 20):
            raise CannotStart(f"the sentinels promote nobody: {(self.folder / f'sentinel-{self.PORTS[0]}.log').read_text()[-500:]}")
        return old

    def rejoin(self, old):
        self.start_server(old, self.master())

    def stop(self):
        for name in self.processes:
            self.kill(name)


class RedisCluster:
    """Three Redis masters that share the slots, each with a replica on another host."""

    HOSTS, PORTS = ("redis1", "redis2", "redis3"), (6379, 6380)

    def __init__(self, network, folder):
        self.network, self.folder, self.processes = network, folder, {}
        servers = [(host, port) for port in self.PORTS for host in self.HOSTS]
        for server in servers:
            (self.folder / self.name(server)).mkdir()
            self.start_server(server)
        network.within(self.HOSTS[0], "redis-cli", "--cluster", "create", *[self.place(server) for server in servers], "--cluster-replicas", "1",
                       "--cluster-yes")
        if not wait_for(self.whole, 30):
            raise CannotStart(f"the servers of the Redis cluster do not come together: {self.nodes(servers[0])}")

    @property
    def url(self):
        # Some of them: who is asked tells of the others.
        return "redis+cluster://" + ",".join(self.place((host, self.PORTS[0])) for host in self.HOSTS[:2])

    @staticmethod
    def name(server):
        return f"{server[0]}-{server[1]}"

    def place(self, server):
        return f"{self.network.address(server[0])}:{server[1]}"

    def start_server(self, server):
        host, port = server
        own, address = self.folder / self.name(server), self.network.address(host)
        with open(own / "log", "a") as log:
            # Masters in a minority refuse after the timeout: no later than a node gives up what it does not hear of (docs/production.md).
            self.processes[server] = subprocess.Popen(
                [*self.network.inside(host), "redis-server", "--bind", address, "--port", str(port), "--protected-mode", "no", "--save", "", "--appendonly", "no",
                 "--dir", str(own), "--cluster-enabled", "yes", "--cluster-node-timeout", "1500", "--cluster-require-full-coverage", "no",
                 "--repl-diskless-sync-delay", "0"], stdin=subprocess.DEVNULL, stdout=log, stderr=log, preexec_fn=die_with_parent)
        if not wait_for(lambda: self.ask(server, "ping").strip() == "PONG", 10):
            raise CannotStart(f"{self.name(server)} does not start")

    def ask(self, server, *words):
        host, port = server
        return self.network.within(host, "redis-cli", "-h", self.network.address(host), "-p", str(port), *words, check=False)

    def running(self):
        return [server for server, process in self.processes.items() if process.poll() is None]

    def nodes(self, by):
        """What a server says of all: place, id, flags, its master, and whether it has slots."""
        lines = [line.split() for line in self.ask(by, "cluster", "nodes").splitlines()]
        return [{"place": words[1].split("@")[0], "id": words[0], "flags": words[2].split(","), "master": words[3], "linked": words[7] == "connected",
                 "slots": words[8:]} for words in lines if len(words) >= 8]

    def masters(self):
        """Masters with slots that are not known to have failed, as a running server sees it, each with the servers that replicate it."""
        running = self.running()
        seen = self.nodes(running[0])
        by_place = {self.place(server): server for server in self.processes}
        well = [node for node in seen if not {"fail", "fail?"} & set(node["flags"])]
        replicas = lambda master: [by_place[node["place"]] for node in well if node["master"] == master["id"] and by_place[node["place"]] in running]
        return {by_place[node["place"]]: replicas(node) for node in well if "master" in node["flags"] and node["slots"]}

    def whole(self):
        """Whether every server sees three masters, each with a replica that follows it."""
        def follows(server):
            replication = self.ask(server, "info", "replication")
            return "role:master" in replication or "master_link_status:up" in replication

        def agrees(server):
            return "cluster_state:ok" in self.ask(server, "cluster", "info") and follows(server)

        masters = self.masters()
        return len(masters) == 3 and all(masters.values()) and all(agrees(server) for server in self.processes)

    def held(self):
        """How many keys each master has."""
        return {self.name(master): int(self.ask(master, "dbsize")) for master in self.masters()}

    def kill(self, server):
        self.processes[server].kill()
        self.processes[server].wait()

    def fail_over(self, rng):
        """A master dies. Answers it, once its replica has its slots."""
        old = rng.choice(sorted(self.masters()))
        self.kill(old)
        if not wait_for(lambda: len(self.masters()) == 3 and old not in self.masters(), 20):
            raise CannotStart(f"nobody takes over from {self.name(old)}: {self.nodes(self.running()[0])}")
        return old

    def rejoin(self, old):
        self.start_server(old)
        if not wait_for(self.whole, 30):
            raise CannotStart(f"{self.name(old)} does not come back as a replica: {self.nodes(self.running()[0])}")

    def move_slots(self, rng, count):
        """Gives slots of one master to another, with the keys in them, while both serve."""
        giver, taker = rng.sample(sorted(self.masters()), 2)
        ids = {node["place"]: node["id"] for node in self.nodes(giver)}
        self.network.within(giver[0], "redis-cli", "--cluster", "reshard", self.place(giver), "--cluster-from", ids[self.place(giver)],
                            "--cluster-to", ids[self.place(taker)], "--cluster-slots", str(count), "--cluster-yes")

    def stop(self):
        for server in self.running():
            self.kill(server)


class Node:
    """One node: the real binary in a namespace of its own."""

    def __init__(self, network, number, folder, binary, settings):
        self.network, self.number, self.folder, self.binary, self.settings = network, number, folder, binary, settings
        self.host = self.name = f"node{number}"
        self.api, self.management = (FRONT + str(number), 8080), (FRONT + str(number), 9090)
        self.process = None
        self.lives = 0

    def start(self, *, clock=None, wait=30, but=None):
        """`clock`: how far the wall clock is off, as faketime writes it. `but`: settings that are others in this life."""
        settings = {
            "DATA_DIR": str(self.folder / self.name), "NODE": self.name, "KEYS__DIR": str(self.folder / "keys"), "SERVER__LISTEN": "0.0.0.0:8080",
            "MANAGEMENT__LISTEN": "0.0.0.0:9090", **{f"BOOTSTRAP__{role.upper()}_KEY_FILE": str(self.folder / f"key-{role}") for role in ROLES},
            **self.settings(self), **(but or {})}
        environment = {name: value for name, value in os.environ.items() if not name.startswith("COUNTERFOIL__")}
        environment.update({f"COUNTERFOIL__{name}": value for name, value in settings.items()}, NO_COLOR="1")
        if clock:
            environment.update(LD_PRELOAD=faketime(), FAKETIME=clock, FAKETIME_DONT_FAKE_MONOTONIC="1", DONT_FAKE_MONOTONIC="1")
        self.lives += 1
        self.out = self.folder / f"{self.name}.out.{self.lives}"
        with open(self.out, "w") as out, open(self.folder / f"{self.name}.log", "a") as log:
            log.write(f"---- life {self.lives}\n")
            log.flush()
            # Names are what this file says: one for all nodes, which changes when an address does.
            named = ["unshare", "--mount", "sh", "-c", 'mount --bind "$0" /etc/hosts && exec "$@"', str(self.network.names)]
            self.process = subprocess.Popen([*self.network.inside(self.host), *named, str(self.binary), "serve"], env=environment,
                                            stdin=subprocess.DEVNULL, stdout=out, stderr=log, cwd=self.folder, preexec_fn=die_with_parent)
        if wait and not wait_for(lambda: self.ready() or self.process.poll() is not None, wait):
            raise CannotStart(f"{self.name} is not ready after {wait} s: {self.tail()}")
        if self.process.poll() is not None:
            raise CannotStart(f"{self.name} ended with status {self.process.returncode}: {self.tail()}")

    def tail(self):
        return (self.folder / f"{self.name}.log").read_text()[-1500:]

    def ask(self, path, timeout=2):
        """Status and body of a page of the management port; status 0 if there is none."""
        connection = http.client.HTTPConnection(*self.management, timeout=timeout)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        except (OSError, http.client.HTTPException):
            return 0, ""
        finally:
            connection.close()

    def ready(self):
        return self.ask("/readyz")[0] == 200

    def cluster(self, timeout=2):
        status, body = self.ask("/cluster", timeout)
        return json.loads(body) if status == 200 else None

    def presence(self, other, timeout=2):
        """How this node sees another: `up` if any life of it is, else as it sees the first that it lists."""
        seen = self.cluster(timeout) or {"members": []}
        lives = [member["presence"] for member in seen["members"] if member["node"] == other]
        return "up" if "up" in lives else lives[0] if lives else None

    def kill(self):
        self.process.kill()
        self.process.wait()

    def terminate(self, seconds=40):
        """An orderly end. Answers whether it was one."""
        self.process.send_signal(signal.SIGCONT)
        self.process.terminate()
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            return False
        return self.process.returncode == 0

    def freeze(self):
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self):
        self.process.send_signal(signal.SIGCONT)

    def wipe(self):
        shutil.rmtree(self.folder / self.name, ignore_errors=True)

    def running(self):
        return self.process is not None and self.process.poll() is None


ROLES = ("application", "auditor", "operator")


def make_keys(folder):
    for role in ROLES:
        path = folder / f"key-{role}"
        path.touch(0o600)
        path.write_text("cfk_" + base64.urlsafe_b64encode(os.urandom(32)).decode().rstrip("=") + "\n")
    return {role: (folder / f"key-{role}").read_text().strip() for role in ROLES}


def faketime():
    """The library that sets a process's clock, or nothing."""
    found = glob.glob("/usr/lib/*/faketime/libfaketimeMT.so.1")
    return found[0] if found else None


def certificates(folder, names):
    """A throw-away authority, a certificate for each name, an address of the back network, and a revocation list. Besides, what must not be let
    in: `revoked`, `expired`, and a `stranger` of another authority."""
    folder.mkdir()

    def openssl(*arguments):
        call("openssl", *arguments)

    def authority(name):
        openssl("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2", "-subj", f"/CN=suite {name}", "-keyout",
                f"{folder}/{name}.key", "-out", f"{folder}/{name}.pem", "-addext", "basicConstraints=critical,CA:TRUE", "-addext",
                "keyUsage=critical,keyCertSign,cRLSign")

    def certificate(name, address, by="ca", days="2"):
        openssl("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", f"/CN={name}", "-keyout", f"{folder}/{name}.key",
                "-out", f"{folder}/{name}.csr")
        (folder / f"{name}.ext").write_text(f"subjectAltName=DNS:{name},IP:{address}\nbasicConstraints=CA:FALSE\nkeyUsage=digitalSignature\n"
                                            "extendedKeyUsage=serverAuth,clientAuth\n")
        openssl("x509", "-req", "-in", f"{folder}/{name}.csr", "-CA", f"{folder}/{by}.pem", "-CAkey", f"{folder}/{by}.key", "-CAcreateserial", "-days", days,
                "-extfile", f"{folder}/{name}.ext", "-out", f"{folder}/{name}.pem")

    authority("ca")
    authority("other-ca")
    for name, address in names.items():
        certificate(name, address)
    certificate("revoked", STRANGER)
    certificate("expired", STRANGER, days="-1")
    certificate("stranger", STRANGER, by="other-ca")
    (folder / "index").touch()
    (folder / "ca.cnf").write_text(f"[ca]\ndefault_ca=d\n[d]\ndatabase={folder}/index\ndefault_md=sha256\ndefault_crl_days=2\n")
    sign = ("ca", "-config", f"{folder}/ca.cnf", "-keyfile", f"{folder}/ca.key", "-cert", f"{folder}/ca.pem")
    openssl(*sign, "-revoke", f"{folder}/revoked.pem")
    openssl(*sign, "-gencrl", "-out", f"{folder}/crl.pem")
