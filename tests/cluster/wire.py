"""What a stranger on the back network can do: listen (`capture`), and send (`attack`). Programs of their own, so that they measure nothing away.

    wire.py capture DEVICE PORT FILE                    what passes a device to or from a port, IPv4 payloads, until it is ended
    wire.py attack-multicast GROUP:PORT ADDRESS FILE S  for S seconds: what was captured, again and altered; noise; datagrams too large
    wire.py attack-unicast CERTIFICATES S HOST:PORT …   for S seconds: plain text, noise, TLS without, or with a wrong certificate

An attack prints a line for each way in that it found, and nothing else.
"""

import errno
import os
import random
import socket
import ssl
import struct
import sys
import time

MOST = 64 << 20  # Bytes of a capture that are kept: what a short attack can send again, and a search can go through.
ETH_P_ALL = 3


def payload(frame, port):
    """What UDP or TCP carries in an Ethernet frame, if the port is at either end."""
    if len(frame) < 34 or frame[12:14] != b"\x08\x00":
        return None
    header = (frame[14] & 15) * 4
    protocol, transport = frame[23], frame[14 + header:]
    if protocol not in (6, 17) or len(transport) < 20 or port not in struct.unpack_from("!HH", transport):
        return None
    return transport[8:] if protocol == 17 else transport[(transport[12] >> 4) * 4:]


def capture(device, port, path):
    tap = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
    tap.setsockopt(socket.SOL_SOCKET, 33, 8 << 20)  # SO_RCVBUFFORCE
    tap.bind((device, 0))
    left = MOST
    with open(path, "wb", buffering=1 << 16) as file:
        while left > 0:
            try:
                found = payload(tap.recv(65_536), int(port))
            except OSError as failure:
                # Said once when the cable is pulled; the tap listens again when it is back.
                if failure.errno != errno.ENETDOWN:
                    raise
                continue
            if found:
                left -= file.write(struct.pack("!I", len(found)) + found)
                file.flush()


def payloads(path):
    """What a capture holds, oldest first; a last one that was not written to its end is left out."""
    with open(path, "rb") as file:
        while len(size := file.read(4)) == 4:
            found = file.read(length := struct.unpack("!I", size)[0])
            if len(found) < length:
                return
            yield found


def altered(datagram, rng):
    place = rng.randrange(len(datagram))
    return datagram[:place] + bytes([datagram[place] ^ 1 << rng.randrange(8)]) + datagram[place + 1:]


def attack_multicast(group, address, path, seconds):
    host, port = group.split(":")
    out = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    out.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(address))
    captured, rng = list(payloads(path))[-5_000:], random.Random(1)
    end = time.monotonic() + float(seconds)
    while time.monotonic() < end:
        old = rng.choice(captured) if captured else b"\0"
        for datagram in (old, altered(old, rng), old[:rng.randrange(len(old) + 1)], old + old, os.urandom(rng.randrange(1_400)), os.urandom(9_000)):
            try:
                out.sendto(datagram, (host, int(port)))
            except OSError:
                pass  # Larger than a datagram may be.
        time.sleep(0.002)


def tls(certificates, name):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    if name:
        context.load_cert_chain(f"{certificates}/{name}.pem", f"{certificates}/{name}.key")
    return context


def let_in(address, certificates, name):
    """Whether a node goes on, beyond TLS, with whoever shows this certificate, or none. Its side of TLS 1.3 ends first, so that a refusal is an
    alert that comes when there is nothing left to say."""
    try:
        with socket.create_connection(address, timeout=1) as plain, tls(certificates, name).wrap_socket(plain) as secured:
            secured.recv(1)
            return True
    except TimeoutError:
        return True  # It waits for a hello.
    except OSError:
        return False


def shouted_at(address, words):
    """Whether a node says anything but TLS to whoever speaks no TLS."""
    try:
        with socket.create_connection(address, timeout=2) as plain:
            plain.sendall(words)
            answer = plain.recv(1)
            return bool(answer) and answer != b"\x15"  # A TLS alert is an answer that says nothing.
    except OSError:
        return False


def attack_unicast(certificates, seconds, *addresses):
    addresses = [(host, int(port)) for host, port in (address.split(":") for address in addresses)]
    ways = {f"TLS with {name}'s certificate" if name else "TLS without a certificate": lambda address, name=name: let_in(address, certificates, name)
            for name in (None, "stranger", "expired", "revoked")}
    for what, words in (("noise", os.urandom(65_536)), ("nothing", b""), ("HTTP", b"GET / HTTP/1.1\r\n\r\n"), ("a frame of 4 GiB", b"\xff" * 64)):
        ways[what] = lambda address, words=words: shouted_at(address, words)
    end, found = time.monotonic() + float(seconds), set()
    while time.monotonic() < end:
        for address in addresses:
            found |= {f"{address[0]} lets in {what}" for what, way in ways.items() if way(address)}
            # Were nobody let in at all, the above would say nothing.
            if not let_in(address, certificates, "node1"):
                found.add(f"{address[0]} does not let in a node")
    print("\n".join(sorted(found)), end="")


if __name__ == "__main__":
    {"capture": capture, "attack-multicast": attack_multicast, "attack-unicast": attack_unicast}[sys.argv[1]](*sys.argv[2:])
