"""Network namespaces joined by bridges, and what can go wrong with the wires between them.

`back` (10.99.0.0/24) carries what servers say to each other; `front` (10.99.1.0/24) what clients say to nodes, so that clients reach a node
that is cut from all others. The bridges are in a namespace of their own, where the suite itself runs: nothing of this shows on the host.

Packets are dropped on receipt, in `raw PREROUTING`: a packet dropped on its way out would give its sender an error, which no network does.
"""

import os
import shutil
import subprocess

BACK, FRONT = "10.99.0.", "10.99.1."


def call(*command, check=True):
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if check and done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


def why_not():
    """Why there can be no namespaces here, or nothing."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    for tool in ("ip", "iptables", "ethtool", "nsenter"):
        if not shutil.which(tool):
            return f"{tool} is missing (Debian: iproute2, iptables, ethtool, util-linux)"
    probe = f"cf{os.getpid()}-probe"
    try:
        call("ip", "netns", "add", probe)
        call("nsenter", f"--net=/run/netns/{probe}", "iptables", "-t", "raw", "-A", "PREROUTING", "-m", "statistic", "--mode", "random",
             "--probability", "0.05", "-j", "DROP")
        call("nsenter", f"--net=/run/netns/{probe}", "ip", "link", "add", "name", "probe", "type", "bridge")
    except RuntimeError as failure:
        return f"no network namespaces with bridges and packet filters here: {failure}"
    finally:
        call("ip", "netns", "del", probe, check=False)
    return None


class Network:
    """The namespaces of one run. Made in `PREFIX-net`, which the suite has entered."""

    def __init__(self, prefix, names):
        """`names`: the file that stands for /etc/hosts."""
        self.prefix, self.names = prefix, names
        self.hosts = {}

    def inside(self, host):
        return ["nsenter", f"--net=/run/netns/{self.prefix}-{host}"]

    def within(self, host, *command, check=True):
        return call(*self.inside(host), *command, check=check)

    def bridges(self):
        call("ip", "link", "set", "lo", "up")
        for bridge in ("back", "front"):
            call("ip", "link", "add", "name", bridge, "type", "bridge", "mcast_snooping", "0")
            call("ip", "link", "set", bridge, "up")
        call("ip", "addr", "add", FRONT + "254/24", "dev", "front")

    def add(self, host, number, front):
        """A namespace `host` with address `number` on the back network and, if asked, on the front."""
        self.hosts[host] = number
        call("ip", "netns", "add", f"{self.prefix}-{host}")
        self.within(host, "ip", "link", "set", "lo", "up")
        for net, base in [("back", BACK)] + ([("front", FRONT)] if front else []):
            port = f"{net[0]}-{host}"
            call("ip", "link", "add", "name", port, "type", "veth", "peer", "name", net, "netns", f"{self.prefix}-{host}")
            for where, device in (((), port), (self.inside(host), net)):
                # What the kernel would send as one packet of 64 KiB must be lost by the packet.
                call(*where, "ethtool", "-K", device, "tso", "off", "gso", "off", "gro", "off")
            call("ip", "link", "set", port, "master", net, "up")
            self.within(host, "ip", "addr", "add", f"{base}{number}/24", "dev", net)
            self.within(host, "ip", "link", "set", net, "up")
        self.within(host, "ip", "route", "add", "default", "dev", "back")
        self.write_names()

    def write_names(self):
        # In place: the file is mounted elsewhere.
        with open(self.names, "w") as names:
            names.writelines(f"{self.address(host)} {host}\n" for host in self.hosts)

    def renumber(self, host, number):
        """The host's name stands for another address of the back network, and the old one is nobody's."""
        self.within(host, "ip", "addr", "del", f"{self.address(host)}/24", "dev", "back")
        self.within(host, "ip", "addr", "add", f"{BACK}{number}/24", "dev", "back")
        self.within(host, "ip", "route", "replace", "default", "dev", "back")
        self.hosts[host] = number
        self.write_names()

    def address(self, host):
        return BACK + str(self.hosts[host])

    # Faults, each undone by `mend`.

    def lose(self, host, probability, source=None):
        """Loses this share of what arrives at a host on the back network."""
        self.within(host, "iptables", "-t", "raw", "-A", "PREROUTING", "-i", "back", *(["-s", source] if source else []), "-m", "statistic",
                    "--mode", "random", "--probability", str(probability), "-j", "DROP")

    def deafen(self, host, source):
        """`host` no longer hears the address."""
        self.within(host, "iptables", "-t", "raw", "-A", "PREROUTING", "-i", "back", "-s", source, "-j", "DROP")

    def cut(self, one, other):
        self.deafen(one, self.address(other))
        self.deafen(other, self.address(one))

    def port(self, host, up):
        """Plugs the cable of the back network in, or pulls it at the bridge's end."""
        call("ip", "link", "set", f"b-{host}", "up" if up else "down")

    def mend(self):
        for host in self.hosts:
            self.within(host, "iptables", "-t", "raw", "-F", "PREROUTING")
            self.port(host, True)

    def move(self, number, source, target):
        """Moves a further address of the back network from one host to another, and has everybody forget where it was."""
        if source:
            self.within(source, "ip", "addr", "del", f"{BACK}{number}/24", "dev", "back", check=False)
        self.within(target, "ip", "addr", "add", f"{BACK}{number}/24", "dev", "back")
        for host in self.hosts:
            self.within(host, "ip", "neigh", "flush", "dev", "back")


def remove(prefix):
    """Deletes every namespace of a run. The links die with them."""
    for line in call("ip", "netns", "list", check=False).splitlines():
        name = line.split()[0] if line.split() else ""
        if name.startswith(prefix + "-"):
            call("ip", "netns", "del", name, check=False)
