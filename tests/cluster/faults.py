"""What goes wrong, by name. Each begins when its function is called, and heals when what that answers is called.

A fault is given the bench (suite.py): its `network`, `log`, `redis`, `nodes`, and `rng`. It says which nodes it hurts, so that the others are held
to what is promised of healthy nodes, and when it takes a node down, so that no answer is expected of it.
"""

import dataclasses
import time

from network import BACK
from servers import LOG_ADDRESS, faketime, wait_for

ALL = {}


@dataclasses.dataclass
class Fault:
    name: str
    hold: float
    begin: object
    needs: frozenset
    short: bool
    # Left out unless asked for by name: what comes after it cannot be judged as before.
    alone: bool


def fault(name, hold, *, needs=(), short=False, alone=False):
    def register(begin):
        ALL[name] = Fault(name, hold, begin, frozenset(needs), short, alone)
        return begin
    return register


def of_peers(bench, node):
    """The hosts through which other nodes tell this one something: themselves, and the Redis that carries their words."""
    return [other.host for other in bench.nodes if other is not node] + (["redis"] if bench.transport == "redis" else [])


def log_hosts(bench):
    return [server.host for server in (bench.log.primary, bench.log.standby) if server]


def losing(probability):
    def begin(bench):
        hosts = [node.host for node in bench.nodes]
        for host in hosts:
            bench.network.lose(host, probability)
        for host in log_hosts(bench) + (["redis"] if bench.redis else []):
            for node in hosts:
                bench.network.lose(host, probability, bench.network.address(node))
        bench.hurt(*bench.nodes)
        return bench.network.mend
    return begin


fault("loss-5", 12)(losing(0.05))
fault("loss-20", 12, short=True)(losing(0.2))


def cutting(peers, log):
    def begin(bench):
        node = bench.victim()
        if peers and log:
            bench.network.port(node.host, False)
            bench.watch_loss(node, "silent death seen by others")
        else:
            for host in of_peers(bench, node) if peers else log_hosts(bench):
                bench.network.cut(node.host, host)
        return lambda: (bench.network.mend(), bench.watch_return(node))
    return begin


for seconds in (5, 15):
    fault(f"cut-from-peers-{seconds}", seconds)(cutting(True, False))
    fault(f"cut-from-log-{seconds}", seconds)(cutting(False, True))
    fault(f"cut-from-both-{seconds}", seconds, short=seconds == 5)(cutting(True, True))


@fault("deaf", 8)
def deaf(bench):
    """One node is heard by everybody and hears nobody, neither peers nor log."""
    node = bench.victim()
    for host in of_peers(bench, node) + log_hosts(bench):
        bench.network.deafen(node.host, bench.network.address(host))
    bench.network.deafen(node.host, BACK + str(LOG_ADDRESS))
    return bench.network.mend


@fault("mute", 8)
def mute(bench):
    """One node hears everybody, and nobody hears it."""
    node = bench.victim()
    for host in of_peers(bench, node) + log_hosts(bench):
        bench.network.deafen(host, bench.network.address(node.host))
    return bench.network.mend


@fault("flapping", 0)
def flapping(bench):
    """The link of one node goes down and up, twice a second, for ten seconds."""
    node = bench.victim()
    for _ in range(10):
        bench.network.port(node.host, False)
        time.sleep(0.5)
        bench.network.port(node.host, True)
        time.sleep(0.5)
    return bench.network.mend


@fault("frozen", 10)
def frozen(bench):
    """SIGSTOP: the node's connections stay, and its clocks go on without it."""
    node = bench.victim()
    bench.goes_down(node)
    node.freeze()
    bench.watch_loss(node, "frozen node seen by others")

    def heal():
        node.thaw()
        bench.is_back(node)
        bench.watch_return(node)
    return heal


@fault("killed", 3, short=True)
def killed(bench):
    """kill -9, and a restart under the same name."""
    node = bench.victim()
    bench.goes_down(node)
    node.kill()
    bench.watch_loss(node, "kill -9 seen by others")

    def heal():
        began = time.monotonic()
        node.start()
        bench.is_back(node)
        bench.watch_return(node)
        return began
    return heal


@fault("rolling-restart", 0)
def rolling(bench):
    """Every node in turn: an orderly end, and a start."""
    for node in bench.nodes:
        bench.hurt(node)
        bench.goes_down(node)
        if not node.terminate():
            bench.complain("stopping", f"{node.name} does not end in order within 40 s of SIGTERM, or not with status 0: {node.process.returncode}")
        node.start()
        bench.is_back(node)
    return lambda: None


@fault("late-join", 4)
def late_join(bench):
    """A node goes, while others write; then one with nothing on its disk joins, after the writer of much of it was killed too."""
    node, writer = bench.rng.sample(bench.nodes, 2)
    bench.hurt(node, writer)
    bench.goes_down(node)
    node.terminate()
    node.wipe()

    def heal():
        bench.goes_down(writer)
        writer.kill()
        began = time.monotonic()
        node.start()
        bench.is_back(node)
        writer.start()
        bench.is_back(writer)
        return began
    return heal


@fault("postgres-killed", 3)
def postgres_killed(bench):
    bench.hurt(*bench.nodes)
    bench.log.primary.kill()
    return bench.log.primary.start


@fault("postgres-paused", 6)
def postgres_paused(bench):
    bench.hurt(*bench.nodes)
    bench.log.primary.pause()
    return bench.log.primary.resume


def failing_over(before):
    def begin(bench):
        bench.hurt(*bench.nodes)
        before(bench)
        old = bench.log.fail_over()

        def heal():
            began = time.monotonic()
            bench.network.mend()
            bench.log.rejoin(old)
            return began
        return heal
    return begin


def primary_dies(bench):
    bench.log.primary.kill()


def primary_is_cut(bench):
    bench.network.port(bench.log.primary.host, False)
    time.sleep(2)


def standby_lags(bench):
    """The standby is cut from the primary while clients write; then the primary dies. What was acknowledged meanwhile would be lost."""
    bench.network.cut(bench.log.primary.host, bench.log.standby.host)
    time.sleep(12)
    bench.log.primary.kill()
    bench.network.mend()


fault("postgres-fails-over", 4, needs=("standby",))(failing_over(primary_dies))
fault("postgres-cut-and-fails-over", 4, needs=("standby",))(failing_over(primary_is_cut))
fault("standby-cut-then-fails-over", 4, needs=("standby",))(failing_over(standby_lags))


@fault("redis-killed", 4, needs=("redis",))
def redis_killed(bench):
    bench.hurt(*bench.nodes)
    bench.redis.kill()
    return bench.redis.start


@fault("redis-flushed", 2, needs=("redis",))
def redis_flushed(bench):
    bench.hurt(*bench.nodes)
    bench.redis.ask("flushall")
    return lambda: None


@fault("redis-fails-over", 4, needs=("sentinels",))
def redis_fails_over(bench):
    """The view's master dies with what it had not told its replica, and sentinels promote that."""
    bench.hurt(*bench.nodes)
    old = bench.sentinels.fail_over()
    return lambda: bench.sentinels.rejoin(old)


@fault("redis-master-killed", 4, needs=("redis-cluster",), short=True)
def redis_master_killed(bench):
    """One master of three dies with what it had not told its replica, and the other masters have that take over its slots."""
    bench.hurt(*bench.nodes)
    old = bench.redis_cluster.fail_over(bench.rng)
    return lambda: bench.redis_cluster.rejoin(old)


@fault("redis-slots-move", 0, needs=("redis-cluster",))
def redis_slots_move(bench):
    """Slots of one master go to another, one by one, while sessions in them are read and changed."""
    bench.hurt(*bench.nodes)
    bench.redis_cluster.move_slots(bench.rng, 400)
    return lambda: None


PEERS = "CLUSTER__UNICAST__PEERS"


@fault("moved", 0, needs=("unicast",))
def moved(bench):
    """A node comes back at another address and calls nobody: the others find it by its name, or not at all."""
    node = bench.victim()
    bench.goes_down(node)
    node.terminate()
    number = bench.network.hosts[node.host]
    bench.network.renumber(node.host, number + 30 if number < 30 else number - 30)
    node.start(but={PEERS: "[]"})
    bench.is_back(node)
    bench.watch_return(node)
    return lambda: None


@fault("seed-dead", 2, needs=("unicast",))
def seed_dead(bench):
    """Two nodes know of each other only through a third, which dies. One of them starts again, and the other has to look for it."""
    bench.hurt(*bench.nodes)
    seed, stays, leaves = bench.rng.sample(bench.nodes, 3)
    only = {PEERS: f'["{seed.host}:7447"]'}
    for node in (stays, leaves):
        bench.goes_down(node)
        node.terminate()
        node.start(but=only)
        bench.is_back(node)
    if not wait_for(bench.complete, 20):
        bench.complain("membership", f"20 s after {seed.name} was made the only seed: {[node.cluster() for node in bench.nodes]}")
    bench.goes_down(seed)
    bench.goes_down(leaves)
    seed.kill()
    leaves.terminate()
    leaves.start(but=only)
    bench.is_back(leaves)
    bench.watch_return(leaves)

    def heal():
        began = time.monotonic()
        seed.start()
        bench.is_back(seed)
        return began
    return heal


@fault("strangers", 0, needs=("wire",), short=True)
def strangers(bench):
    """Somebody on the network sends the nodes what was captured, what is altered, and what is noise, and knocks with certificates that must not do."""
    for way in bench.attack(8):
        bench.complain("strangers", way)
    for node in bench.nodes:
        seen = (node.cluster() or {}).get("members", [])
        if {member["node"] for member in seen if member["presence"] == "up"} - {other.name for other in bench.nodes}:
            bench.complain("strangers", f"{node.name} takes somebody for a member: {seen}")
    return lambda: None


def clock_off(by):
    def begin(bench):
        node = bench.victim()
        restart(bench, node, by)
        return lambda: restart(bench, node, None)
    return begin


def restart(bench, node, clock):
    bench.goes_down(node)
    node.terminate()
    node.start(clock=clock)
    bench.is_back(node)


fault("clock-behind", 6, needs=("faketime",))(clock_off("-1h"))
# The log's time never goes back: everybody's is an hour ahead from then on, and sessions that were idle for that long have expired.
fault("clock-ahead", 6, needs=("faketime",), alone=True)(clock_off("+1h"))
