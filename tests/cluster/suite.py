"""Runs a cluster of three nodes through bad weather, and judges what its clients saw. `run` starts it; --help says how."""

import argparse
import collections
import hashlib
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
import base64
import datetime

import faults
import network
import servers
from history import Bounds, History
from wire import payloads
from workload import Http, Probe, Workload

TRANSPORTS = ("none", "redis", "multicast", "unicast", "partner", "postgres")
LINKS = ("unicast", "partner")  # Connections from node to node.
NODES = 3
# Transports whose packets are the nodes' own, by port.
WIRES = {"multicast": 7446, "unicast": 7447, "partner": 7447}
MULTICAST_GROUP = "239.255.77.46"
WIRE = str(pathlib.Path(__file__).with_name("wire.py"))


def arguments():
    parser = argparse.ArgumentParser(prog="tests/cluster/run", description="Three nodes in network namespaces, under faults, and a judge of the history.")
    parser.add_argument("--transport", choices=TRANSPORTS, default="none")
    parser.add_argument("--view", choices=("memory", "redis", "sentinel", "redis-cluster"), default="memory", help="where sessions are held")
    parser.add_argument("--minutes", type=float, help="goes on with faults in random order until so much time has passed; default: each once")
    parser.add_argument("--only", help="faults, by name, separated by commas: " + ", ".join(faults.ALL))
    parser.add_argument("--seed", type=int, default=None, help="of the order of faults, their victims and the workload; printed")
    parser.add_argument("--short", action="store_true", help="three faults, within 90 seconds: for CI")
    parser.add_argument("--no-standby", action="store_true", help="one PostgreSQL only; leaves out its fail-over")
    parser.add_argument("--clients", type=int, default=10)
    parser.add_argument("--pace-ms", type=float, default=40, help="how long a client rests between two operations, on average")
    parser.add_argument("--json", help="file for the report")
    parser.add_argument("--keep", action="store_true", help="keeps the folder with logs, history and evidence")
    parser.add_argument("--counterfoil", default=os.environ.get("COUNTERFOIL", "target/debug/counterfoil"))
    parser.add_argument("--inside", help=argparse.SUPPRESS)
    return parser.parse_args()


class Bench:
    def __init__(self, options, folder, prefix):
        self.options, self.folder, self.transport = options, folder, options.transport
        self.rng = random.Random(options.seed)
        self.binary = pathlib.Path(options.counterfoil).resolve()
        self.network = network.Network(prefix, folder / "hosts")
        self.log = self.redis = self.sentinels = self.redis_cluster = self.tap = None
        self.nodes, self.down, self.weather, self.reports, self.complaints = [], [], [], [], []
        self.hurting, self.watches = set(), []
        self.detections = collections.defaultdict(list)

    # Servers.

    def start(self):
        options = self.options
        chosen = self.chosen = choose(options, self.rng)
        standby = any("standby" in fault.needs for fault in chosen)
        self.network.bridges()
        self.network.add("pg1", 11, False)
        if standby:
            self.network.add("pg2", 12, False)
        if options.transport == "redis" or options.view == "redis":
            self.network.add("redis", 21, False)
            self.redis = servers.Redis(self.network, self.folder)
        if options.view == "sentinel":
            for number, host in enumerate(("redis1", "redis2", "sentinels"), 22):
                self.network.add(host, number, False)
            self.sentinels = servers.Sentinels(self.network, self.folder)
        if options.view == "redis-cluster":
            for number, host in enumerate(servers.RedisCluster.HOSTS, 22):
                self.network.add(host, number, False)
            self.redis_cluster = servers.RedisCluster(self.network, self.folder)
        say(f"PostgreSQL{' with a synchronous standby' if standby else ''}")
        self.log = servers.Log(self.network, self.folder, standby=standby)
        self.keys = servers.make_keys(self.folder)
        self.log.make_database(self.binary, self.folder)
        for number in range(1, NODES + 1):
            self.network.add(f"node{number}", number, True)
            self.nodes.append(servers.Node(self.network, number, self.folder, self.binary, self.settings))
        if options.transport in LINKS:
            servers.certificates(self.folder / "certificates", {node.name: network.BACK + str(node.number) for node in self.nodes})
        if options.transport in WIRES:
            self.network.add("stranger", 66, False)
            self.tap = subprocess.Popen([sys.executable, WIRE, "capture", f"b-{self.nodes[0].host}", str(WIRES[options.transport]), str(self.captured)],
                                        stdin=subprocess.DEVNULL, preexec_fn=servers.die_with_parent)
            if not servers.wait_for(self.captured.exists, 10):
                raise servers.CannotStart("nothing can be captured here")
        say("nodes")
        for node in self.nodes:
            node.start()
        if options.transport != "none" and not servers.wait_for(self.complete, 20):
            self.complain("membership", f"20 s after their start the nodes do not all see each other: {[node.cluster() for node in self.nodes]}")

    def settings(self, node):
        settings = {"LOG__URL": self.log.url(), "CLUSTER__TRANSPORT": self.transport, "CLUSTER__NODES": str(NODES)}
        if self.options.view != "memory":
            settings["VIEW__URL"] = (self.sentinels or self.redis_cluster or self.redis).url
        if self.transport == "redis":
            settings["CLUSTER__REDIS__URL"] = self.redis.url
        if self.transport == "multicast":
            settings["CLUSTER__MULTICAST__INTERFACE"] = network.BACK + str(node.number)
        if self.transport in LINKS:
            certificates = self.folder / "certificates"
            settings |= {
                "CLUSTER__UNICAST__LISTEN": json.dumps([f"{self.network.address(node.host)}:7447"]),
                "CLUSTER__UNICAST__PEERS": json.dumps([f"node{number}:7447" for number in range(1, NODES + 1)]),
                "CLUSTER__UNICAST__CA_FILE": str(certificates / "ca.pem"),
                "CLUSTER__UNICAST__CRL_FILE": str(certificates / "crl.pem"),
                "CLUSTER__UNICAST__CERTIFICATE_FILE": str(certificates / f"{node.name}.pem"),
                "CLUSTER__UNICAST__KEY_FILE": str(certificates / f"{node.name}.key"),
            }
        return settings

    def complete(self):
        return all((node.cluster() or {}).get("up") == NODES for node in self.nodes)

    def stop(self):
        for node in self.nodes:
            if node.running():
                node.process.send_signal(signal.SIGCONT)
                node.kill()
        if self.tap:
            self.tap.kill()
            self.tap.wait()
        for server in (self.log, self.redis, self.sentinels, self.redis_cluster):
            if server:
                server.stop()

    # What faults say.

    def victim(self):
        node = self.rng.choice(self.nodes)
        self.hurt(node)
        return node

    def hurt(self, *nodes):
        self.hurting |= {node.name for node in nodes}

    def goes_down(self, node):
        self.down.append([node.name, time.monotonic(), float("inf")])

    def is_back(self, node):
        for interval in self.down:
            if interval[0] == node.name and interval[2] == float("inf"):
                interval[2] = time.monotonic() + 0.2

    def complain(self, rule, what):
        self.complaints.append({"rule": rule, "what": what, "operation": None})

    def watch_loss(self, node, what):
        """Measures, at each other node, how long it takes to see that this one is lost."""
        self.watch(node, what, lambda presence: presence not in ("up", None))

    def watch_return(self, node):
        self.watch(node, "return seen by others", lambda presence: presence == "up")

    def watch(self, node, what, done):
        if self.transport == "none":
            return
        began = time.monotonic()

        def look(other):
            while time.monotonic() < began + 20:
                if done(other.presence(node.name)):
                    self.detections[what].append(time.monotonic() - began)
                    return
                time.sleep(0.005)
            self.complain("membership", f"{what}: not by {other.name} of {node.name} within 20 s; it says {other.presence(node.name)}")

        for other in self.nodes:
            if other is not node and other.running():
                watch = threading.Thread(target=look, args=(other,), daemon=True)
                watch.start()
                self.watches.append(watch)

    # Weather.

    def probe_fair(self, seconds):
        """How soon a write is readable elsewhere, with nothing else going on. The first second is for making connections."""
        probe = Probe(self.nodes, self.keys["application"], period=0.15, poll=0.0005)
        probe.prepare()
        probe.start()
        time.sleep(1 + seconds)
        probe.stop()
        began = probe.writes[0][1]
        probe.seen = [seen for seen in probe.seen if seen[2] >= began + 1]
        return probe

    def endure(self, fault):
        """One fault, from its begin until every node serves again."""
        self.hurting, self.watches = set(), []
        begin = time.monotonic()
        mark = [begin, float("inf")]
        self.weather.append(mark)
        heal = fault.begin(self)
        time.sleep(min(fault.hold, 6) if self.options.short else fault.hold)
        # What was acknowledged before the heal, wherever, is what everybody must come to show.
        needed = self.probe_versions()
        began, moments = time.monotonic(), {}
        # Beside the heal, which may take its time: a node that serves again before all is as it was serves.
        looking = [threading.Thread(target=lambda node=node: moments.update({node.name: self.converge(node, needed)})) for node in self.nodes]
        for look in looking:
            look.start()
        healed = heal()
        healed = healed if isinstance(healed, float) else time.monotonic()
        for look in looking:
            look.join()
        converged = {name: [None if moment is None else max(0.0, moment - healed) for moment in both] for name, both in moments.items()}
        for watch in self.watches:
            watch.join()
        end = mark[1] = time.monotonic()
        report = {"fault": fault.name, "begin": begin, "healed": began, "end": end, "hurt": sorted(self.hurting),
                  "reads_after_s": {name: times[0] for name, times in converged.items()}, "writes_after_s": {name: times[1] for name, times in converged.items()}}
        self.reports.append(report)
        for name, (reads, writes) in converged.items():
            if reads is None or writes is None:
                self.complain("recovery", f"{name} does not {'show what was acknowledged' if reads is None else 'take writes'} 40 s after {fault.name} had healed")
        worst = [max((time for time in times.values() if time is not None), default=None) for times in (report["reads_after_s"], report["writes_after_s"])]
        say(f"{fault.name}: {', '.join(sorted(self.hurting)) if len(self.hurting) < NODES else 'everybody'}; {end - begin:.1f} s; "
            f"everybody reads {seconds(worst[0])} and writes {seconds(worst[1])} after the heal")

    def probe_versions(self):
        """The newest version of each probe's session, by any node that answers."""
        http, needed = Http(self.nodes, self.keys["application"], timeout=1), {}
        for node in self.nodes:
            if any(name == node.name and end == float("inf") for name, _, end in self.down):
                continue
            for session in self.probe.sessions.values():
                status, text, _ = http.ask(node.name, "GET", f"/v1/sessions/{session}")
                if status == 200:
                    needed[session] = max(needed.get(session, 0), json.loads(text)["version"])
        return needed

    def converge(self, node, needed):
        """When a node showed all that is needed, without being told an index, and when it took a write after that."""
        http, began = Http([node], self.keys["application"], timeout=6), time.monotonic()
        left, reads, writes = dict(needed), None, None
        while time.monotonic() < began + 40:
            for session in list(left):
                status, text, _ = http.ask(node.name, "GET", f"/v1/sessions/{session}")
                if status == 200 and json.loads(text)["version"] >= left[session]:
                    del left[session]
                elif status != 200:
                    break
            if not left and reads is None:
                reads = time.monotonic()
            if reads is not None:
                status, _, _ = http.ask(node.name, "PATCH", f"/v1/sessions/{self.probe.sessions[node.name]}", {"healed": str(began)},
                                        kind="application/merge-patch+json")
                if status == 200:
                    writes = time.monotonic()
                    break
            time.sleep(0.01)
        return reads, writes

    def weather_report(self):
        """Adds to each fault's report what healthy nodes felt of it."""
        writes = collections.defaultdict(list)
        for writer, start, end, status in self.probe.writes:
            if status == 200:
                writes[writer].append((start, end))
        for report in self.reports:
            healthy = [node.name for node in self.nodes if node.name not in report["hurt"]]
            within = [(writer, reader, at, delay) for writer, reader, at, delay in self.probe.seen if report["begin"] <= at <= report["healed"]]
            delays = [delay for writer, reader, _, delay in within if writer in healthy and reader in healthy and delay is not None]
            report["healthy_silence_s"] = max(delays, default=None)
            report["unavailable_s"] = {node.name: longest_gap(writes[node.name], report["begin"], report["end"]) for node in self.nodes}

    # The wire.

    @property
    def captured(self):
        return self.folder / "wire"

    def attack(self, seconds):
        """What a stranger gets in by, a line each."""
        if self.transport == "multicast":
            words = ["attack-multicast", f"{MULTICAST_GROUP}:{WIRES['multicast']}", servers.STRANGER, str(self.captured), str(seconds)]
        else:
            nodes = [f"{self.network.address(node.host)}:{WIRES['unicast']}" for node in self.nodes]
            words = ["attack-unicast", str(self.folder / "certificates"), str(seconds), *nodes]
        return network.call(*self.network.inside("stranger"), sys.executable, WIRE, *words).splitlines()

    def search_wire(self, secrets):
        """Looks for what nobody who listens may find, as text and, of session ids, as bytes. Answers how many bytes were searched."""
        wire = b"".join(payloads(self.captured))
        if len(wire) < 10_000:
            self.complain("wire", f"{len(wire)} bytes captured are no sample")
        for what, texts in secrets.items():
            for text in texts:
                if text.encode() in wire or (what == "session id" and bytes.fromhex(text.replace("-", "")) in wire):
                    self.complain("wire", f"a {what} stands on the wire: {text}")
        return len(wire)

    # The end.

    def read_log(self):
        """Every entry, oldest first, opened, with its hash checked against its bytes."""
        http, entries, cursor = Http(self.nodes, self.keys["auditor"], timeout=60), [], ""
        while True:
            node = self.nodes[len(entries) % NODES].name
            status, text, _ = http.ask(node, "GET", f"/v1/audit/entries?limit=500&reveal=true&purpose=suite{cursor}")
            if status != 200:
                raise RuntimeError(f"the log cannot be read back: {status} {text[:300]}")
            page = json.loads(text)
            for item in page["items"]:
                entry, leaf = item["entry"], base64.b64decode(item["leaf"])
                if hashlib.sha256(b"\0" + leaf).hexdigest() != item["leaf_hash"] or json.loads(leaf) != entry:
                    self.complain("leaf", f"entry {item['index']} is not what its hash says")
                entries.append({"index": item["index"], "leaf_hash": item["leaf_hash"], "action": entry["action"], "session": entry.get("session_id"),
                                "version": entry.get("version"), "event": item.get("personal", {}).get("event"),
                                "time": datetime.datetime.fromisoformat(entry["time"].replace("Z", "+00:00")).timestamp()})
            if not page.get("next_cursor"):
                return entries[::-1]
            cursor = "&cursor=" + page["next_cursor"]

    def read_sessions(self, names):
        """What every node says of every session."""
        final = {node.name: {} for node in self.nodes}

        def ask(node):
            http = Http([node], self.keys["application"])
            for name in names:
                status, text, _ = http.ask(node.name, "GET", f"/v1/sessions/{name}")
                if status == 200:
                    session = json.loads(text)
                    final[node.name][name] = [session["version"], session["state"], session["attributes"]]

        parallel(ask, self.nodes)
        return final

    def prove(self, log):
        """A bundle of the whole log holds, and is the log that was read back."""
        vkeys, bundle = self.folder / "keys" / "log.vkey", self.folder / "bundle"
        environment = {**os.environ, "COUNTERFOIL__LOG__URL": self.log.url(), "COUNTERFOIL__DATA_DIR": str(self.folder / "bundler"),
                       "COUNTERFOIL__KEYS__DIR": str(self.folder / "keys"), "COUNTERFOIL__ANCHOR__FILE": str(self.folder / "node1" / "checkpoint")}
        made = subprocess.run([*self.network.inside("node1"), str(self.binary), "audit", "bundle", str(bundle)], env=environment, capture_output=True, text=True)
        if made.returncode:
            self.complain("bundle", f"cannot be made: {made.stderr[-500:]}")
            return
        done = subprocess.run([str(self.binary), "verify", str(bundle), "--key-file", str(vkeys)], capture_output=True, text=True)
        if done.returncode:
            self.complain("bundle", f"not proved (status {done.returncode}): {(done.stdout + done.stderr)[-800:]}")
        hashes = {}
        for path in sorted((bundle / "tile" / "0").rglob("*")):
            if path.is_file():
                tile, width = tile_number(path.relative_to(bundle / "tile" / "0")), path.stat().st_size // 32
                data = path.read_bytes()
                hashes.update({tile * 256 + place: data[32 * place:32 * place + 32].hex() for place in range(width)})
        for entry in log:
            if hashes.get(entry["index"]) != entry["leaf_hash"]:
                self.complain("bundle", f"entry {entry['index']} of the bundle is not the one that was read back")
                break
        say(f"a bundle of {len(hashes)} entries is {'proved' if not done.returncode else 'NOT PROVED'}")

    def receipts(self, operations):
        """The receipt of each acknowledged change proves it: the path to the root here, every different checkpoint by `counterfoil verify`."""
        wanted = {op["index"]: op["leaf_hash"] for op in operations if op["op"] != "logout" and op["index"] is not None and op["status"] in (200, 201)}
        wanted.update((index, leaf_hash) for op in operations if op["op"] == "logout" for index, leaf_hash in op["receipts"])
        checkpoints, lock, count = {}, threading.Lock(), collections.Counter()

        def ask(node):
            http = Http([node], self.keys["application"])
            for index, leaf_hash in list(wanted.items())[node.number - 1::NODES]:
                status, text, _ = http.ask(node.name, "GET", f"/v1/receipts/{index}")
                root = proved_root(text.decode(), index, bytes.fromhex(leaf_hash)) if status == 200 else None
                with lock:
                    if root is None:
                        self.complain("receipts", f"{node.name} has no receipt that proves entry {index}: {status} {text[:200]}")
                    else:
                        count["proved"] += 1
                        checkpoints.setdefault(text.decode().split("\n\n", 1)[1], (index, leaf_hash, text))

        parallel(ask, self.nodes)
        for number, (index, leaf_hash, text) in enumerate(list(checkpoints.values())[:200]):
            path = self.folder / f"receipt-{number}"
            path.write_bytes(text)
            done = subprocess.run([str(self.binary), "verify", str(path), "--key-file", str(self.folder / "keys" / "log.vkey"), "--leaf-hash", leaf_hash],
                                  capture_output=True, text=True)
            if done.returncode:
                self.complain("receipts", f"of entry {index} does not verify: {done.stdout}{done.stderr}")
        say(f"{count['proved']} of {len(wanted)} receipts prove their change, under {len(checkpoints)} checkpoints")
        return count["proved"]


def parallel(work, nodes):
    threads = [threading.Thread(target=work, args=(node,)) for node in nodes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def tile_number(path):
    """`x001/234` or `000.p/17`, as C2SP tlog-tiles writes numbers."""
    parts = [part for part in path.parts]
    if len(parts) > 1 and parts[-2].endswith(".p"):
        parts = parts[:-2] + [parts[-2][:-2]]
    return int("".join(part.lstrip("x") for part in parts))


def proved_root(text, index, leaf_hash):
    """The root of the checkpoint in a receipt, if the leaf is in it (RFC 9162 section 2.1.3.2); else nothing."""
    proof, checkpoint = text.split("\n\n", 1)
    lines, note = proof.split("\n"), checkpoint.split("\n")
    if lines[1] != f"index {index}":
        return None
    size, root = int(note[1]), base64.b64decode(note[2])
    here, last, value = index, size - 1, leaf_hash
    for line in lines[2:]:
        step = base64.b64decode(line)
        if last == 0:
            return None
        if here & 1 or here == last:
            value = hashlib.sha256(b"\1" + step + value).digest()
            while here and not here & 1:
                here, last = here >> 1, last >> 1
        else:
            value = hashlib.sha256(b"\1" + value + step).digest()
        here, last = here >> 1, last >> 1
    return root if last == 0 and value == root else None


def longest_gap(spans, begin, end):
    """The longest time between two successes that began within these bounds."""
    moments = [begin] + sorted(finish for start, finish in spans if begin <= finish <= end) + [end]
    return max(later - earlier for earlier, later in zip(moments, moments[1:]))


def seconds(value):
    return "never" if value is None else f"{value:.2f} s" if value < 10 else f"{value:.1f} s"


def percentile(values, share):
    values = sorted(values)
    return values[min(len(values) - 1, int(len(values) * share))] if values else None


def say(text):
    print(f"[{time.monotonic() - STARTED:6.1f} s] {text}", flush=True)


def choose(options, rng):
    """Faults, in random order; those that change what comes after are last."""
    if options.only:
        names = options.only.split(",")
        unknown = [name for name in names if name not in faults.ALL]
        if unknown:
            sys.exit(f"there is no fault {unknown[0]}; there are: {', '.join(faults.ALL)}")
        chosen = [faults.ALL[name] for name in names]
    else:
        chosen = [fault for fault in faults.ALL.values() if (fault.short if options.short else not fault.alone)]
    kept = []
    for fault in chosen:
        beside = [why for need, lacking, why in (
            ("standby", options.no_standby, "no standby was wanted"),
            ("redis", options.transport != "redis" and options.view != "redis", "no Redis takes part"),
            ("sentinels", options.view != "sentinel", "no sentinels take part"),
            ("redis-cluster", options.view != "redis-cluster", "no Redis cluster takes part"),
            ("unicast", options.transport not in LINKS, "no node calls another"),
            ("wire", options.transport not in WIRES, "nodes do not speak to each other by themselves")) if need in fault.needs and lacking]
        missing = ["Debian's faketime is not installed"] if "faketime" in fault.needs and servers.faketime() is None else []
        if not beside and not missing:
            kept.append(fault)
        # What this cluster cannot suffer is left out of it, and that is no gap, unless it was asked for by name.
        elif options.only or not beside:
            print(f"SKIPPED: {fault.name}: {(beside + missing)[0]}", flush=True)
    if not options.only:
        rng.shuffle(kept)
    return kept


def tell(bench, options, judged, found, operations, log, fair, proved):
    delays = [delay for _, _, _, delay in fair.seen if delay is not None]
    statuses = collections.Counter(f"{op['op']} {op['status']}{' ' + op['code'] if op['code'] else ''}" for op in operations)
    detections = {what: {"median_s": percentile(times, 0.5), "longest_s": max(times), "count": len(times)} for what, times in bench.detections.items()}
    report = {
        "transport": options.transport, "view": options.view, "seed": options.seed, "seconds": time.monotonic() - STARTED, "operations": len(operations),
        "answers": dict(sorted(statuses.items())), "entries": len(log), "receipts_proved": proved, "faults": bench.reports,
        "readable_elsewhere": {"samples": len(delays), "p50_ms": ms(percentile(delays, 0.5)), "p99_ms": ms(percentile(delays, 0.99)), "longest_ms": ms(max(delays, default=None))},
        "membership": detections, "judged": dict(judged.counts), "violations": found,
    }
    print(f"\n{len(operations)} operations, {len(log)} entries, {proved} receipts proved; transport {options.transport}, view {options.view}, seed {options.seed}")
    print("\nanswers")
    for what, count in sorted(statuses.items()):
        print(f"  {count:7}  {what}")
    print("\nfault                        hurt        healthy silence  longest without a write  reads after heal  writes after heal")
    for fault in bench.reports:
        healthy = [gap for name, gap in fault["unavailable_s"].items() if name not in fault["hurt"]]
        hurt = [gap for name, gap in fault["unavailable_s"].items() if name in fault["hurt"]]
        worst = lambda times: None if any(time is None for time in times) else max(times)
        without = f"{seconds(max(healthy))} / {seconds(max(hurt))}" if healthy and hurt else seconds(max(hurt + healthy))
        name = fault["hurt"][0] if len(fault["hurt"]) == 1 else "everybody" if len(fault["hurt"]) == NODES else "+".join(fault["hurt"])
        silence = "-" if fault["healthy_silence_s"] is None else f"{1000 * fault['healthy_silence_s']:.0f} ms"
        print(f"  {fault['fault']:26} {name:11} {silence:>15}  {without:>23}  {seconds(worst(fault['reads_after_s'].values())):>16}"
              f"  {seconds(worst(fault['writes_after_s'].values())):>17}")
    readable = report["readable_elsewhere"]
    print(f"\na write is readable elsewhere without an index after: p50 {readable['p50_ms']} ms, p99 {readable['p99_ms']} ms, longest {readable['longest_ms']} ms"
          f" ({readable['samples']} samples, fair weather)")
    for what, times in detections.items():
        print(f"{what}: median {1000 * times['median_s']:.0f} ms, longest {1000 * times['longest_s']:.0f} ms ({times['count']})")
    print("\njudged: " + ", ".join(f"{rule} {count}" for rule, count in sorted(judged.counts.items())))
    if options.json:
        pathlib.Path(options.json).write_text(json.dumps(report, indent=1, default=str) + "\n")
    if found:
        by_rule = collections.Counter(violation["rule"] for violation in found)
        print(f"\n{len(found)} VIOLATIONS: " + ", ".join(f"{rule} {count}" for rule, count in by_rule.most_common()))
        shown = collections.Counter()
        for violation in found:
            shown[violation["rule"]] += 1
            if shown[violation["rule"]] <= 5:
                op = violation["operation"]
                print(f"  {violation['rule']}: {violation['what']}")
                if op:
                    print(f"      {op['op']} at {op['node']}, {op['start'] - STARTED:.2f}-{op['end'] - STARTED:.2f} s, {weather_of(bench, op)}: "
                          + json.dumps({name: value for name, value in op.items() if value not in (None, False) and name not in ("op", "node", "start", "end")}))
    else:
        print("\nno violation")


def ms(value):
    return None if value is None else round(1000 * value, 1)


def weather_of(bench, op):
    for report in reversed(bench.reports):
        if report["begin"] <= op["end"] and op["start"] <= report["end"] + 5:
            phase = "during" if op["start"] < report["healed"] else "after"
            return f"{phase} {report['fault']} of {'+'.join(report['hurt'])} ({report['begin'] - STARTED:.1f}-{report['healed'] - STARTED:.1f} s)"
    return "fair weather"


def inside(options):
    """The run itself, in the namespace of the bridges."""
    folder = pathlib.Path(tempfile.mkdtemp(prefix="counterfoil-cluster-"))
    folder.chmod(0o711)
    bench = Bench(options, folder, options.inside)
    workload = None
    try:
        bench.start()
        say("fair weather: the probe alone")
        fair = bench.probe_fair(4 if options.short else 10)
        bench.probe = Probe(bench.nodes, bench.keys["application"], period=0.1, poll=0.01)
        bench.probe.prepare()
        workload = Workload(bench.nodes, bench.keys["application"], options.seed, clients=options.clients, pace=options.pace_ms / 1000)
        workload.start()
        bench.probe.start()
        say("fair weather, with clients")
        time.sleep(3 if options.short else 8)
        began, order = time.monotonic(), list(bench.chosen)
        while order:
            for fault in order:
                bench.endure(fault)
                time.sleep(1 if options.short else bench.rng.uniform(2, 6))
                if options.minutes and time.monotonic() - began > 60 * options.minutes and bench.reports[len(bench.chosen) - 1:]:
                    break
            if not options.minutes or time.monotonic() - began > 60 * options.minutes:
                break
            bench.rng.shuffle(order)
        time.sleep(2)
        workload.stop()
        bench.probe.stop()
        bench.weather_report()
        if bench.redis_cluster:
            held = bench.redis_cluster.held()
            say(f"keys of each master of the Redis cluster: {', '.join(str(count) for count in held.values())}")
            if len(held) < 3 or not all(held.values()):
                bench.complain("view", f"the sessions are not spread over three masters: {held}")
        operations = workload.history()
        if bench.tap:
            rng = random.Random(options.seed)
            made = [op for op in operations if op["op"] == "create" and op["status"] == 201]
            sample = rng.sample(made, min(300, len(made)))
            searched = bench.search_wire({
                "session id": [op["session"] for op in sample], "subject": sorted({op["subject"] for op in sample}),
                "attribute": [f'"{op["value"]}"' for op in sample], "API key": list(bench.keys.values()),
                "token": [workload.pool.known[op["session"]]["token"] for op in sample]})
            say(f"{searched:,} bytes of the wire searched for what is on no wire")
        # Those that follow the log only by asking it have done so within the bound.
        time.sleep(Bounds.staleness)
        proved = bench.receipts(operations)
        log = bench.read_log()
        final = bench.read_sessions({entry["session"] for entry in log if entry["session"] and entry["version"]})
        bench.prove(bench_log := bench.read_log())
        if bench_log[:len(log)] != log:
            bench.complain("rewritten", "the log is not what it was when read first")
        (folder / "history.json").write_text(json.dumps({"operations": operations, "log": log, "down": bench.down, "weather": bench.weather, "final": final}))
        judged = History(operations, log, down=bench.down, weather=bench.weather, final=final, expected_nodes=[node.name for node in bench.nodes])
        found = bench.complaints + judged.judge()
        tell(bench, options, judged, found, operations, log, fair, proved)
        return 1 if found else 0
    except servers.CannotStart as failure:
        print(f"cannot go on: {failure}", file=sys.stderr)
        options.keep = True
        return 1
    finally:
        if workload:
            workload.stopping.set()
        bench.stop()
        if options.keep:
            print(f"kept: {folder}")
        else:
            subprocess.run(["rm", "-rf", str(folder)])


def main():
    options = arguments()
    if options.inside:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
        try:
            return inside(options)
        except KeyboardInterrupt:
            return 130
    why = network.why_not()
    if why:
        print(f"SKIPPED: the cluster under faults: {why}")
        return 0
    options.seed = options.seed if options.seed is not None else random.randrange(1_000_000)
    prefix = f"cf{os.getpid()}"
    network.call("ip", "netns", "add", f"{prefix}-net")
    command = [sys.executable, __file__, *[word for word in sys.argv[1:] if word != "--inside"], "--inside", prefix, "--seed", str(options.seed)]
    print(f"seed {options.seed}, transport {options.transport}, namespaces {prefix}-*", flush=True)
    run = subprocess.Popen(["nsenter", f"--net=/run/netns/{prefix}-net", *command], preexec_fn=servers.die_with_parent)
    # Ctrl-C reaches both: this one waits until the other has cleaned up.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: run.terminate())
    try:
        return run.wait()
    finally:
        network.remove(prefix)


STARTED = time.monotonic()

if __name__ == "__main__":
    sys.exit(main())
