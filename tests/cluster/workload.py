"""Clients of the cluster, and the history they write."""

import collections
import http.client
import json
import random
import select
import threading
import time

READ_SHARE_WITH_INDEX = 0.5


class Http:
    """A client's connections, one to each node. Answers with status 0 and a word when there is no answer."""

    def __init__(self, nodes, key, timeout=12.0):
        self.addresses, self.timeout = {node.name: node.api for node in nodes}, timeout
        self.headers = {"Authorization": f"Bearer {key}"}
        self.open = {}

    def ask(self, node, method, path, body=None, headers=None, kind="application/json"):
        connection, used = self.open.pop(node, (None, 0))
        # A server may close what was idle for long, or what its last life had opened, and that is no fault of it. One that goes says so
        # with its answer, and then there is no socket any more.
        alive = connection and connection.sock and time.monotonic() - used <= 2 and not select.select([connection.sock], [], [], 0)[0]
        if not alive:
            if connection:
                connection.close()
            connection = http.client.HTTPConnection(*self.addresses[node], timeout=self.timeout)
        sent = {**self.headers, **(headers or {})}
        if body is not None:
            sent["Content-Type"] = kind
        try:
            connection.request(method, path, json.dumps(body) if body is not None else None, sent)
            answer = connection.getresponse()
            text = answer.read()
        except (OSError, http.client.HTTPException) as failure:
            connection.close()
            return 0, type(failure).__name__, {}
        self.open[node] = (connection, time.monotonic())
        # To be asked for with the header's name in lower case.
        return answer.status, text, {name.lower(): value for name, value in answer.getheaders()}


class Pool:
    """What all clients know of: sessions, their newest token, and which node is slow to answer."""

    def __init__(self, nodes, subjects, seed):
        self.lock = threading.Lock()
        self.nodes = [node.name for node in nodes]
        self.subjects = [f"subject-{seed}-{number}" for number in range(subjects)]
        self.open, self.ended, self.known = {}, collections.deque(maxlen=60), {}
        self.waiting = collections.Counter()
        self.serial = 0

    def node(self, rng):
        """One at random, unless so many already wait for it that nobody would be left for the others."""
        with self.lock:
            free = [node for node in self.nodes if self.waiting[node] < 4] or self.nodes
            node = rng.choice(free)
            self.waiting[node] += 1
            return node

    def answered(self, node):
        with self.lock:
            self.waiting[node] -= 1

    def unique(self):
        with self.lock:
            self.serial += 1
            return self.serial

    def learn(self, session, token, version, subject):
        with self.lock:
            held = self.known.setdefault(session, {"session": session, "token": token, "token_version": version, "subject": subject, "version": version})
            if version >= held["token_version"]:
                held.update(token=token, token_version=version)
            if session not in self.ended:
                self.open[session] = held

    def saw(self, session, version):
        with self.lock:
            if session in self.known:
                self.known[session]["version"] = max(self.known[session]["version"], version)

    def end(self, session):
        with self.lock:
            if self.open.pop(session, None) or session not in self.ended:
                self.ended.append(session)

    def end_subject(self, subject):
        for session, held in list(self.known.items()):
            if held["subject"] == subject and session in self.open:
                self.end(session)

    def pick(self, rng, ended=0.0):
        with self.lock:
            if self.ended and rng.random() < ended:
                return dict(self.known[rng.choice(list(self.ended))])
            return dict(rng.choice(list(self.open.values()))) if self.open else None


class Client(threading.Thread):
    """Does one thing after another at random nodes, and writes down each."""

    def __init__(self, number, pool, nodes, key, seed, pace, stop):
        super().__init__(name=f"client{number}", daemon=True)
        self.number, self.pool, self.pace, self.stopping = number, pool, pace, stop
        self.rng = random.Random(f"{seed}/{number}")
        self.http = Http(nodes, key)
        self.history, self.seen = [], 0
        self.failure = None

    def run(self):
        try:
            while not self.stopping.is_set():
                self.step()
                self.stopping.wait(self.rng.uniform(0, 2 * self.pace))
        except Exception as failure:  # The suite reports it: a client that dies silently finds nothing.
            self.failure = failure
            raise

    def step(self):
        op = self.rng.choices(("create", "get", "validate", "update", "touch", "renew", "end", "logout"), (16, 22, 24, 20, 4, 4, 8, 2))[0]
        held = self.pool.pick(self.rng, 0.3 if op in ("get", "validate") else 0.05 if op in ("update", "end", "touch") else 0)
        if held is None or op == "create":
            return self.create()
        if op == "logout":
            return self.log_out(self.rng.choice(self.pool.subjects))
        getattr(self, op)(held)

    def record(self, op, node, call, **fields):
        """Makes one call; answers the record and the decoded body."""
        record = dict(client=self.number, op=op, node=node, session=None, subject=None, code=None, retry_after=False, min_index=None, if_match=None,
                      key=None, value=None, token_version=None, idempotency=None, version=None, state=None, active=None, reason=None, attributes=None,
                      index=None, leaf_hash=None, receipts=None)
        record.update(fields, start=time.monotonic())
        status, text, headers = call(node)
        record.update(end=time.monotonic(), status=status)
        self.pool.answered(node)
        body = {}
        if status == 0:
            record["code"] = text
        else:
            try:
                body = json.loads(text)
            except ValueError:
                record["code"] = f"no JSON: {text[:80]!r}"
            record["retry_after"] = "retry-after" in headers
            if status >= 400:
                record["code"] = body.get("code", record["code"])
        receipt = body.get("receipt")
        if receipt:
            record.update(index=receipt["index"], leaf_hash=receipt["leaf_hash"])
            self.seen = max(self.seen, receipt["index"])
        self.history.append(record)
        return record, body

    def shown(self, record, session):
        """Notes what an answer shows of a session."""
        record.update(session=session["id"], version=session["version"], state=session["state"], active=session["state"] == "active",
                      attributes=session["attributes"])
        self.pool.saw(session["id"], session["version"])
        if session["state"] == "ended":
            record["reason"] = session.get("end_reason")

    def index(self):
        return self.seen if self.seen and self.rng.random() < READ_SHARE_WITH_INDEX else None

    def after(self, index):
        return {"Counterfoil-Min-Index": str(index)} if index is not None else {}

    def create(self):
        subject, value = self.rng.choice(self.pool.subjects), f"made-{self.pool.unique()}"
        key = f"{self.number}-{value}" if self.rng.random() < 0.5 else None
        body = {"subject": subject, "attributes": {"made": value}}
        for _ in range(2):
            headers = {"Idempotency-Key": key} if key else {}
            record, answer = self.record("create", self.pool.node(self.rng), lambda node: self.http.ask(node, "POST", "/v1/sessions", body, headers),
                                         subject=subject, value=value, idempotency=key)
            if record["status"] == 201:
                self.shown(record, answer)
                self.pool.learn(answer["id"], answer["token"], answer["version"], subject)
            # Whoever does not know whether it happened asks again with the same key, of whichever node.
            if not key or record["status"] not in (0, 503):
                return
            self.stopping.wait(1)

    def get(self, held):
        index = self.index()
        record, answer = self.record("get", self.pool.node(self.rng), lambda node: self.http.ask(
            node, "GET", f"/v1/sessions/{held['session']}", headers=self.after(index)), session=held["session"], min_index=index)
        if record["status"] == 200:
            self.shown(record, answer)
            if answer["state"] == "ended":
                record["reason"] = answer["end_reason"] if answer["end_reason"].startswith("expired") else "ended"

    def validate(self, held):
        index = self.index()
        record, answer = self.record("validate", self.pool.node(self.rng), lambda node: self.http.ask(
            node, "POST", "/v1/sessions/validate", {"token": held["token"]}, self.after(index)),
            session=held["session"], min_index=index, token_version=held["token_version"])
        if record["status"] == 200:
            if answer["active"]:
                self.shown(record, answer["session"])
            else:
                record.update(active=False, reason=answer["reason"])

    def update(self, held):
        key, value, version = f"c{self.number}", f"set-{self.pool.unique()}", held["version"] if self.rng.random() < 0.4 else None
        headers = {"If-Match": f'"{version}"'} if version else {}
        record, answer = self.record("update", self.pool.node(self.rng), lambda node: self.http.ask(
            node, "PATCH", f"/v1/sessions/{held['session']}", {key: value}, headers, "application/merge-patch+json"),
            session=held["session"], key=key, value=value, if_match=version)
        if record["status"] == 200:
            self.shown(record, answer)

    def touch(self, held):
        record, answer = self.record("touch", self.pool.node(self.rng), lambda node: self.http.ask(
            node, "POST", f"/v1/sessions/{held['session']}/touch"), session=held["session"])
        if record["status"] == 200:
            self.shown(record, answer)

    def renew(self, held):
        record, answer = self.record("renew", self.pool.node(self.rng), lambda node: self.http.ask(
            node, "POST", f"/v1/sessions/{held['session']}/renew"), session=held["session"])
        if record["status"] == 200:
            self.shown(record, answer)
            self.pool.learn(answer["id"], answer["token"], answer["version"], held["subject"])

    def end(self, held):
        record, answer = self.record("end", self.pool.node(self.rng), lambda node: self.http.ask(
            node, "DELETE", f"/v1/sessions/{held['session']}?reason=logout"), session=held["session"])
        if record["status"] == 200:
            self.shown(record, answer)
            self.pool.end(held["session"])

    def log_out(self, subject):
        record, answer = self.record("logout", self.pool.node(self.rng), lambda node: self.http.ask(
            node, "DELETE", f"/v1/subjects/{subject}/sessions?reason=logout"), subject=subject)
        record["receipts"] = [[receipt["index"], receipt["leaf_hash"]] for receipt in answer.get("receipts", [])]
        if record["status"] == 200:
            self.seen = max([self.seen, *(index for index, _ in record["receipts"])])
            self.pool.end_subject(subject)


class Workload:
    def __init__(self, nodes, key, seed, *, clients, pace):
        self.stopping = threading.Event()
        self.pool = Pool(nodes, 40, seed)
        self.clients = [Client(number, self.pool, nodes, key, seed, pace, self.stopping) for number in range(clients)]

    def start(self):
        for client in self.clients:
            client.start()

    def stop(self):
        self.stopping.set()
        for client in self.clients:
            client.join(20)
        dead = [client for client in self.clients if client.failure or client.is_alive()]
        if dead:
            raise RuntimeError(f"{dead[0].name} failed: {dead[0].failure!r}")

    def history(self):
        return [record for client in self.clients for record in client.history]


class Probe(threading.Thread):
    """Writes at each node in turn, and watches for how long the others do not show it to a reader without an index."""

    LIMIT = 30.0

    def __init__(self, nodes, key, *, period, poll):
        super().__init__(name="probe", daemon=True)
        self.nodes, self.key, self.period, self.poll = nodes, key, period, poll
        self.stopping = threading.Event()
        # [writer, reader, when acknowledged, seconds until readable or None]; [writer, start, end, status].
        self.seen, self.writes = [], []
        self.sessions, self.pending = {}, []

    def prepare(self):
        http = Http(self.nodes, self.key)
        for node in self.nodes:
            status, text, _ = http.ask(node.name, "POST", "/v1/sessions", {"attributes": {"probe": 0}, "kind": "api"})
            if status != 201:
                raise RuntimeError(f"the probe's session at {node.name}: {status} {text}")
            self.sessions[node.name] = json.loads(text)["id"]

    def run(self):
        threads = [threading.Thread(target=self.write, args=(node.name,), daemon=True) for node in self.nodes]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def write(self, writer):
        """Each writer has its own session and readers, so that one that is cut off does not keep the others."""
        http, count = Http(self.nodes, self.key), 0
        readers = {node.name: Http(self.nodes, self.key, timeout=6) for node in self.nodes if node.name != writer}
        latest, threads = {"version": 0, "at": 0.0, "wake": threading.Condition()}, []
        for reader in readers:
            threads.append(threading.Thread(target=self.read, args=(writer, reader, readers[reader], latest), daemon=True))
            threads[-1].start()
        while not self.stopping.is_set():
            count += 1
            start = time.monotonic()
            status, text, _ = http.ask(writer, "PATCH", f"/v1/sessions/{self.sessions[writer]}", {"probe": count}, kind="application/merge-patch+json")
            end = time.monotonic()
            self.writes.append([writer, start, end, status])
            if status == 200:
                with latest["wake"]:
                    latest.update(version=json.loads(text)["version"], at=end)
                    latest["wake"].notify_all()
            self.stopping.wait(self.period)
        with latest["wake"]:
            latest["wake"].notify_all()
        for thread in threads:
            thread.join(10)

    def read(self, writer, reader, http, latest):
        done = 0
        while not self.stopping.is_set():
            with latest["wake"]:
                while latest["version"] <= done and not self.stopping.is_set():
                    latest["wake"].wait(0.5)
                version, at = latest["version"], latest["at"]
            if version <= done:
                continue
            while not self.stopping.is_set():
                status, text, _ = http.ask(reader, "GET", f"/v1/sessions/{self.sessions[writer]}")
                now = time.monotonic()
                if status == 200 and json.loads(text)["version"] >= version:
                    self.seen.append([writer, reader, at, now - at])
                    break
                if now - at > self.LIMIT:
                    self.seen.append([writer, reader, at, None])
                    break
                time.sleep(self.poll)
            done = version

    def stop(self):
        self.stopping.set()
        self.join(30)
