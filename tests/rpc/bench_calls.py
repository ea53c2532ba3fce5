"""Calls beside their peers, in one run and in turns: a raw Python socket spinning (the floor), rpyc, grpcio, pyzmq; 64-byte echoes.

    python tests/rpc/bench_calls.py [--turns 3] [--calls 4000]      # makes a virtual environment for the peers under build/

Prints, of the best turn of each: microseconds per call one after another, calls per second with 16 outstanding, and the ratios that issue
and README speak of; how soon a call is served by a rank that computes; what awaiting adds.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[2]
PEERS = ["rpyc==6.0.2", "grpcio", "pyzmq"]
_HEAD = "import json, os, socket, sys, threading, time\nN, PORT = int(sys.argv[1]), int(sys.argv[2])\nX = b'x' * 64\n"

RAW = """
def spin(s, buffer):
    got = 0
    while got < 64:
        try: got += s.recv_into(buffer)
        except BlockingIOError: pass
listener = socket.create_server(("127.0.0.1", 0))
child = os.fork() == 0
N, timed = N + 2000, N
s = listener.accept()[0] if child else socket.create_connection(listener.getsockname())
s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
s.setblocking(False)
buffer = bytearray(64)
if child:
    for _ in range(N): spin(s, buffer); s.send(buffer)
    os._exit(0)
begun = time.perf_counter()
for i in range(N):
    if i == 2000: begun = time.perf_counter()
    s.send(X); spin(s, buffer)
print(json.dumps({"us": (time.perf_counter() - begun) / timed * 1e6}))
"""

RPYC = """
import rpyc
class Echo(rpyc.Service):
    def exposed_echo(self, x): return x
if os.fork() == 0:
    from rpyc.utils.server import OneShotServer
    OneShotServer(Echo, hostname="127.0.0.1", port=PORT).start()
    os._exit(0)
for _ in range(200):
    try: c = rpyc.connect("127.0.0.1", PORT); break
    except OSError: time.sleep(0.05)
c._channel.stream.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
echo = c.root.echo
for _ in range(100): echo(X)
begun = time.perf_counter()
for _ in range(N): assert echo(X) == X
us = (time.perf_counter() - begun) / N * 1e6
aecho = rpyc.async_(echo)
begun = time.perf_counter()
waiting = [aecho(X) for _ in range(16)]
for i in range(N): waiting[i % 16].wait(); assert waiting[i % 16].value == X; waiting[i % 16] = aecho(X)
print(json.dumps({"us": us, "per_s": N / (time.perf_counter() - begun)}))
for w in waiting: w.wait()
c.close()
"""

GRPC = """
import grpc
from concurrent import futures
def serve():
    server = grpc.server(futures.ThreadPoolExecutor(4))
    handler = grpc.unary_unary_rpc_method_handler(lambda request, context: request)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("E", {"e": handler}),))
    server.add_insecure_port(f"127.0.0.1:{PORT}"); server.start(); server.wait_for_termination(60)
if len(sys.argv) > 3: serve(); sys.exit()
import subprocess
child = subprocess.Popen([sys.executable, sys.argv[0], "0", str(PORT), "serve"])
channel = grpc.insecure_channel(f"127.0.0.1:{PORT}")
grpc.channel_ready_future(channel).result(30)
echo = channel.unary_unary("/E/e")
for _ in range(100): echo(X)
begun = time.perf_counter()
for _ in range(N): assert echo(X) == X
us = (time.perf_counter() - begun) / N * 1e6
begun = time.perf_counter()
waiting = [echo.future(X) for _ in range(16)]
for i in range(N): assert waiting[i % 16].result() == X; waiting[i % 16] = echo.future(X)
print(json.dumps({"us": us, "per_s": N / (time.perf_counter() - begun)}))
child.kill()
"""

ZMQ = """
import zmq
def serve():
    s = zmq.Context().socket(zmq.ROUTER); s.bind(f"tcp://127.0.0.1:{PORT}")
    while True: s.send_multipart(s.recv_multipart())
if len(sys.argv) > 3: serve()
import subprocess
child = subprocess.Popen([sys.executable, sys.argv[0], "0", str(PORT), "serve"])
s = zmq.Context().socket(zmq.DEALER); s.connect(f"tcp://127.0.0.1:{PORT}")
for _ in range(100): s.send(X); s.recv()
begun = time.perf_counter()
for _ in range(N): s.send(X); assert s.recv() == X
us = (time.perf_counter() - begun) / N * 1e6
begun = time.perf_counter()
for _ in range(16): s.send(X)
for _ in range(N): assert s.recv() == X; s.send(X)
print(json.dumps({"us": us, "per_s": N / (time.perf_counter() - begun)}))
child.kill()
"""

OURS = """
import asyncio
import numpy as np
from pympx import MPI, rpc
comm = MPI.COMM_WORLD
def echo(x): return x
def median(values): return sorted(values)[len(values) // 2]
def computes(kind, seconds):
    global stop
    begun = time.perf_counter()
    stop = False
    if kind == "python":
        while time.perf_counter() - begun < seconds: sum(i * i for i in range(1000))
    else:
        a = np.random.default_rng(0).random((700, 700))
        while time.perf_counter() - begun < seconds: a @ a
async def pingpong(n):
    peer = 1 - comm.rank
    times = []
    for _ in range(4):
        begun = time.perf_counter()
        for _ in range(n // 4):
            if comm.rank == 0: await comm.isend(X, peer); await comm.irecv(source=peer)
            else: await comm.irecv(source=peer); await comm.isend(X, peer)
        times.append((time.perf_counter() - begun) / (n // 4) / 2 * 1e6)
    return min(times)
comm.Barrier()
found = {}
if comm.rank == 0:
    for _ in range(500): rpc.call(1, echo, X).result()
    begun = time.perf_counter()
    for _ in range(N): assert rpc.call(1, echo, X).result() == X
    found["us"] = (time.perf_counter() - begun) / N * 1e6
    begun = time.perf_counter()
    waiting = [rpc.call(1, echo, X) for _ in range(16)]
    for i in range(N): assert waiting[i % 16].result() == X; waiting[i % 16] = rpc.call(1, echo, X)
    found["per_s"] = N / (time.perf_counter() - begun)
    for w in waiting: w.result()
    begun = time.perf_counter()
    calls = [rpc.call(1, echo, X) for _ in range(10_000)]
    for call in calls: call.result()
    found["us_10000_in_flight"] = (time.perf_counter() - begun) / 1e4 * 1e6
comm.Barrier()
for kind in ("python", "numpy"):
    if comm.rank == 1: computes(kind, 1.5)
    else:
        time.sleep(0.3)
        times, pings = [], []
        begun = time.perf_counter()
        while time.perf_counter() - begun < 0.9:
            t = time.perf_counter(); rpc.call(1, echo, X).result(); times.append(time.perf_counter() - t)
            time.sleep(0.002)
            pings.append(rpc.ping(1))
            time.sleep(0.002)
        found[kind] = {"call_ms": [median(times) * 1e3, max(times) * 1e3], "ping_us": [median(pings) * 1e6, max(pings) * 1e6]}
    comm.Barrier()
times = []
for _ in range(4):
    begun = time.perf_counter()
    for _ in range(N // 4):
        if comm.rank == 0: comm.send(X, 1); comm.recv(source=1)
        else: comm.recv(source=0); comm.send(X, 0)
    times.append((time.perf_counter() - begun) / (N // 4) / 2 * 1e6)
found["recv_us"] = min(times)  # the best of four batches, as below
found["await_us"] = asyncio.run(pingpong(N))
if comm.rank == 0: print(json.dumps(found))
"""


def peers_python() -> str:
    """Return the interpreter of a virtual environment with the peers, made if need be."""
    folder = ROOT / "build" / "rpc-peers"
    python = folder / "bin" / "python"
    if not (folder / "ready").exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *PEERS], check=True)
        (folder / "ready").touch()
    return str(python)


def run(command: list[str], name: str, text: str, calls: int, **environment: str) -> dict[str, object]:
    """Run a program; return what it prints as JSON."""
    path = ROOT / "build" / f"bench_{name}.py"
    path.write_text(_HEAD + textwrap.dedent(text))
    for _ in range(3):  # grpcio's hangs now and then
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        words = ["timeout", "20", *command, str(path), str(calls), str(port)]
        done = subprocess.run(words, env={**os.environ, **environment}, capture_output=True, text=True, check=False)
        if done.returncode != 124:
            break
    if done.returncode:
        raise SystemExit(f"{name} failed:\n{done.stdout}{done.stderr}")
    result: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return result


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=3, help="measure everything so often, take the best (default 3)")
    parser.add_argument("--calls", type=int, default=4000, help="calls per measurement (default 4000)")
    options = parser.parse_args()
    others = [peers_python()]
    mpiexec = [str(Path(sys.executable).with_name("mpiexec")), "-n", "2", sys.executable, "-P"]
    programs = {
        "raw": ([sys.executable], RAW, {}), "rpyc": (others, RPYC, {}), "grpcio": (others, GRPC, {}), "pyzmq": (others, ZMQ, {}),
        "tcp": (mpiexec, OURS, {"PYMPX_TRANSPORT": "tcp"}), "shm": (mpiexec, OURS, {"PYMPX_TRANSPORT": "shm"}),
    }  # fmt: skip
    found: dict[str, list[dict[str, object]]] = {name: [] for name in programs}
    with tqdm(total=options.turns * len(programs), disable=not sys.stderr.isatty()) as bar:
        for _ in range(options.turns):
            for name, (command, text, environment) in programs.items():
                found[name].append(run(command, name, text, options.calls, **environment))
                bar.update()
    print(f"{'':8}{'us':>8}{'calls/s, 16 at once':>22}   all turns, us")
    best: dict[str, dict[str, float]] = {}
    for name, turns in found.items():
        us = [float(str(turn["us"])) for turn in turns]
        rate = max(float(str(turn.get("per_s", 0))) for turn in turns)
        best[name] = {"us": min(us), "per_s": rate}
        print(f"{name:8}{min(us):8.2f}{rate:22.0f}   {' '.join(f'{u:.2f}' for u in us)}")
    times, rates = {n: b["us"] for n, b in best.items()}, {n: b["per_s"] for n, b in best.items()}
    print(f"\ntcp / raw {times['tcp'] / times['raw']:.2f}; rpyc / tcp {times['rpyc'] / times['tcp']:.1f}; "
          f"grpcio / tcp {times['grpcio'] / times['tcp']:.1f}; tcp / shm {times['tcp'] / times['shm']:.1f}; "
          f"calls/s with 16: tcp / rpyc {rates['tcp'] / rates['rpyc']:.1f}, tcp / pyzmq {rates['tcp'] / rates['pyzmq']:.1f}")
    for name in ("tcp", "shm"):
        for turn in found[name]:
            print(name, json.dumps({key: turn[key] for key in turn if key not in ("us", "per_s")}))


if __name__ == "__main__":
    main()
