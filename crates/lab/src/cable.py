"""The cable of `cable.rs`: two TAP devices, and the packets between them with a rate and a delay.

Arguments: the names of both devices, the speed in Mbit/s, `half` or `full`, the delay of each direction in ms, and the
bits of the link modes that both support. Prints `ready` when the devices exist. Ends when stdin does."""

import ctypes
import fcntl
import heapq
import os
import select
import socket
import struct
import sys
import time

TUNSETIFF, IFF_TAP, IFF_NO_PI = 0x400454CA, 0x0002, 0x1000
SIOCETHTOOL, ETHTOOL_SSET = 0x8946, 0x2
# The queue before the cable, in seconds.
QUEUE = 0.1


def device(name):
    tap = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(tap, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TAP | IFF_NO_PI))
    return tap


def set_link(name, mbps, is_half, modes):
    # struct ethtool_cmd: cmd, supported, advertising, speed, duplex; the rest is zero.
    settings = ctypes.create_string_buffer(44)
    struct.pack_into("IIIHB", settings, 0, ETHTOOL_SSET, modes, modes, mbps, 0 if is_half else 1)
    request = struct.pack("16sP16x", name.encode(), ctypes.addressof(settings))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, SIOCETHTOOL, request)


def main():
    names, mbps, is_half = sys.argv[1:3], int(sys.argv[3]), sys.argv[4] == "half"
    delay, modes = float(sys.argv[5]) / 1000, int(sys.argv[6])
    taps = [device(name) for name in names]
    for name in names:
        set_link(name, mbps, is_half, modes)
    print("ready", flush=True)
    # When the medium is free again, for each direction; in half duplex both share it.
    free = [0.0, 0.0]
    flying, number = [], 0
    while True:
        now = time.monotonic()
        while flying and flying[0][0] <= now:
            _, _, to, packet = heapq.heappop(flying)
            try:
                os.write(taps[to], packet)
            except OSError:
                pass
        wait = max(0.0, flying[0][0] - now) if flying else None
        readable, _, _ = select.select([*taps, sys.stdin], [], [], wait)
        if sys.stdin in readable:
            return
        for tap in readable:
            medium, to = (0, 1) if tap == taps[0] else (1, 0)
            if is_half:
                medium = 0
            for _ in range(64):
                try:
                    packet = os.read(tap, 65536)
                except OSError:
                    break
                now = time.monotonic()
                begin = max(now, free[medium])
                if begin - now > QUEUE:
                    continue
                # Preamble, checksum and gap are on the wire, too.
                free[medium] = begin + (len(packet) + 24) * 8 / (mbps * 1e6)
                number += 1
                heapq.heappush(flying, (free[medium] + delay, number, to, packet))


main()
