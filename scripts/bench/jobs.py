"""The rows of the speed table: what each asks of a server, and how it is measured.

Rows run in this order within a round: the fill first, then what reads it, then what overwrites it.
"""

import dataclasses
import json
import subprocess
import time

from . import machine

# randrepeat=0: else fio writes the same bytes in each run, and a server that deduplicates gets
# them for nothing. thread: a forked job would leave the session, and its raised scheduling group.
FIO = ["fio", "--output-format=json", "--thread", "--ioengine=nbd", "--randrepeat=0", "--allrandrepeat=0",
       "--refill_buffers", "--buffer_compress_percentage=50", "--norandommap"]

# On a mounted file instead of NBD. `--direct=1`: what the page cache would add is the same for all.
FUSE_FIO = [argument for argument in FIO if argument != "--ioengine=nbd"] + ["--direct=1", "--fallocate=none"]

REFERENCE = "nbdkit-file"
FUSE_REFERENCE = "nbdfuse"


@dataclasses.dataclass(frozen=True)
class Row:
    """One job. Bounds are ratios to the reference, the higher the better."""

    name: str
    title: str
    unit: str
    arguments: tuple
    at_least: float | None = None
    aim: float | None = None
    kind: str = "fio"
    # Reads what the fill has written.
    reads: bool = False
    cold: bool = False
    # Cores of client and server, where both are pinned.
    pins: tuple | None = None
    # Starts the servers anew: on a fresh volume.
    fresh: bool = False
    # Runs until the whole size is written, not for a time.
    whole: bool = False
    # Stands behind a flag only.
    extra: bool = False

    @property
    def reference(self):
        """Name of the server that this row is compared with."""
        return FUSE_REFERENCE if self.kind == "fuse" else REFERENCE

    def runs_on(self, server):
        """Whether the server offers what the row asks for."""
        if self.kind == "fuse":
            return server.mounts
        return server.name != FUSE_REFERENCE and (server.stores or not (self.reads and self.cold))


def fio(name, title, unit, rw, block, depth, at_least=None, aim=None, more=(), **others):
    arguments = (f"--rw={rw}", f"--bs={block}", f"--iodepth={depth}", *more)
    return Row(name, title, unit, arguments, at_least, aim, **others)


def fuse(name, title, unit, rw, block, depth, **others):
    return fio(name, title, unit, rw, block, depth, 4.0, 4.0, kind="fuse", **others)


def real(name, title, unit, block, depth, at_least=None, aim=None, more=(), **others):
    arguments = ("--block", block, "--depth", str(depth), *more)
    return Row(name, title, unit, arguments, at_least, aim, kind="real", fresh=True, **others)


TOGETHER = ({0}, {0})
APART = ({0}, {1})

ROWS = [
    fio("fill", "fill of a fresh volume, 1 MiB sequential, with the final FLUSH", "MiB/s", "write", "1m", 8, 1.3, 1.8,
        ("--end_fsync=1",), fresh=True, whole=True),
    fio("r1m", "1 MiB sequential read, warm", "MiB/s", "read", "1m", 8, 0.8, 1.1, reads=True),
    fio("r128k", "128 KiB sequential read, warm", "MiB/s", "read", "128k", 8, 0.8, 1.1, reads=True),
    fio("rr32", "4 KiB random read, depth 32, warm", "IOPS", "randread", "4k", 32, 1.2, 1.6, reads=True),
    fio("rr1", "4 KiB random read, depth 1, both ends on one core", "IOPS", "randread", "4k", 1, 1.0, 1.5, reads=True,
        pins=TOGETHER),
    fio("rr1-apart", "4 KiB random read, depth 1, ends on two cores", "IOPS", "randread", "4k", 1, reads=True, pins=APART,
        extra=True),
    fio("rr32-cold", "4 KiB random read, depth 32, cold", "IOPS", "randread", "4k", 32, 0.8, 1.0, reads=True, cold=True),
    fio("rw32", "4 KiB random write, depth 32", "IOPS", "randwrite", "4k", 32, 0.8, 1.2),
    fio("rw1", "4 KiB random write, depth 1, both ends on one core", "IOPS", "randwrite", "4k", 1, 1.0, 1.5, pins=TOGETHER),
    fio("rw1-apart", "4 KiB random write, depth 1, ends on two cores", "IOPS", "randwrite", "4k", 1, pins=APART, extra=True),
    fio("fs1", "4 KiB random write, FLUSH after each", "IOPS", "randwrite", "4k", 1, 1.0, 1.5, ("--fsync=1",)),
    fio("w128k", "128 KiB sequential write, unique", "MiB/s", "write", "128k", 8, 0.8, 1.0),
    fio("w1m", "1 MiB sequential write, unique", "MiB/s", "write", "1m", 8, 0.6, 1.0),
    fio("w1m-dup", "1 MiB sequential write, all duplicates", "MiB/s", "write", "1m", 8, 1.0, 1.3, ("--dedupe_percentage=100",)),
    fio("w1m-zero", "1 MiB sequential write, all zeros", "MiB/s", "write", "1m", 8, 1.0, 1.3,
        # A share to compress would fill the buffers again.
        ("--buffer_compress_percentage=0", "--refill_buffers=0", "--zero_buffers")),
    fuse("fuse-rr32", "FUSE: 4 KiB random read, depth 32, warm", "IOPS", "randread", "4k", 32, reads=True),
    fuse("fuse-r1m", "FUSE: 1 MiB sequential read, warm", "MiB/s", "read", "1m", 8, reads=True),
    fuse("fuse-rw32", "FUSE: 4 KiB random write, depth 32", "IOPS", "randwrite", "4k", 32),
    fuse("fuse-w1m", "FUSE: 1 MiB sequential write, unique", "MiB/s", "write", "1m", 8),
    real("real-rw32", "real data: 4 KiB random write, depth 32", "IOPS", "4096", 32, 0.8, 1.2, ("--order", "random")),
    real("real-rw1", "real data: 4 KiB random write, depth 1, both ends on one core", "IOPS", "4096", 1, 1.0, 1.5,
         ("--order", "random"), pins=TOGETHER),
    real("real-fs1", "real data: 4 KiB random write, FLUSH after each", "IOPS", "4096", 1, 1.0, 1.5,
         ("--order", "random", "--flush-each")),
    real("real-w128k", "real data: 128 KiB sequential write", "MiB/s", "131072", 8, 0.8, 1.0),
    real("real-w1m", "real data: 1 MiB sequential write", "MiB/s", "1048576", 8, 0.6, 1.0),
    real("real-fill", "real data: fill of a fresh volume, 1 MiB sequential, with the final FLUSH", "MiB/s", "1048576", 8,
         1.3, 1.8, ("--flush-at-end",), whole=True),
]
BY_NAME = {row.name: row for row in ROWS}

# Server CPU for each 4 KiB write at depth 32: bounds in microseconds, the lower the better.
CPU_ROWS = {"rw32": (20.0, 12.0), "real-rw32": (20.0, 12.0)}


class Bench:
    """Runs one row against one server and gives its figures."""

    def __init__(self, options):
        self.options = options
        self.file_engine = None

    def fill(self, server):
        """What a volume must hold before it can be read."""
        command = [*FIO, "--name=prefill", f"--uri={server.uri}", f"--size={self.options.size}", "--rw=write", "--bs=1m",
                   "--iodepth=8", "--end_fsync=1"]
        run_fio(command)

    def warm(self, server):
        """Brings the region into the page cache, where there is one."""
        command = [*FIO, "--name=warm", f"--uri={server.uri}", f"--size={self.options.size}", "--rw=read", "--bs=1m",
                   "--iodepth=8"]
        run_fio(command)

    def measure(self, row, server):
        """IOPS, MiB/s, latencies in microseconds and CPU of one run, as a plain dictionary."""
        machine.write_back()
        if row.cold:
            machine.drop_caches([server.folder])
        elif not row.reads:
            machine.touch_memory()
        pids = server.pids()
        everywhere = set(range(machine.os.cpu_count()))
        client_cores, server_cores = row.pins or (everywhere, everywhere)
        if row.pins:
            machine.pin(pids, server_cores)
        cpu, busy, begin = machine.cpu_seconds(pids), machine.busy_seconds(), time.monotonic()
        figures = self.run_real(row, server, client_cores) if row.kind == "real" else self.run_fio_row(row, server, client_cores)
        busy = (machine.busy_seconds() - busy) / (time.monotonic() - begin)
        machine.settle(pids)
        used = machine.cpu_seconds(pids) - cpu
        if row.pins:
            machine.pin(pids, everywhere)
        if not figures["ios"]:
            raise RuntimeError(f"{row.name} on {server.name}: nothing was done")
        figures["busy_cores"] = busy
        figures["server_cpu_us_per_io"] = used * 1e6 / figures["ios"]
        figures["server_cpu_seconds_per_gib"] = used * 2**30 / figures["bytes"]
        figures["server_resident_peak_mib"] = machine.resident_peak_mib(pids)
        figures["value"] = figures["iops"] if row.unit == "IOPS" else figures["mib_per_second"]
        return figures

    def run_fio_row(self, row, server, cores):
        length = [] if row.whole else ["--time_based", f"--runtime={self.options.seconds}"]
        pin = [f"--cpus_allowed={','.join(map(str, sorted(cores)))}"] if row.pins else []
        common = FIO + [f"--uri={server.uri}"]
        if row.kind == "fuse":
            self.file_engine = self.file_engine or file_engine(server.mounted_file())
            common = FUSE_FIO + [f"--filename={server.mounted_file()}", f"--ioengine={self.file_engine}"]
        command = [*common, f"--name={row.name}", f"--size={self.options.size}", *row.arguments, *length, *pin]
        job = run_fio(command)
        side = job["read"] if "read" in row.arguments[0] else job["write"]
        # The runtime holds the final flush, where one was asked for.
        seconds = side["runtime"] / 1000
        return {
            "ios": side["total_ios"],
            "bytes": side["io_bytes"],
            "seconds": seconds,
            "iops": side["total_ios"] / seconds if seconds else 0,
            "mib_per_second": side["io_bytes"] / 2**20 / seconds if seconds else 0,
            "latency_us": latency(side["lat_ns"], side["clat_ns"]),
            "sync_us": latency(job["sync"]["lat_ns"], job["sync"]["lat_ns"]),
        }

    def run_real(self, row, server, cores):
        command = [self.options.load_binary, "--socket", server.socket, "--export", server.export,
                   "--image", self.options.image, "--bytes-max", str(self.options.size), *row.arguments]
        if not row.whole:
            command += ["--seconds", str(self.options.seconds)]
        if row.pins:
            command = ["taskset", "--cpu-list", ",".join(map(str, sorted(cores))), *command]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            raise RuntimeError(f"{row.name} on {server.name}: {done.stderr.strip()}")
        figures = json.loads(done.stdout)
        figures["iops"] = figures["ios"] / figures["seconds"]
        figures["mib_per_second"] = figures["bytes"] / 2**20 / figures["seconds"]
        return figures


def file_engine(path):
    """io_uring where the machine allows it, else libaio."""
    probe = [*FUSE_FIO, "--name=probe", f"--filename={path}", "--ioengine=io_uring", "--rw=read", "--bs=4k", "--size=4k"]
    return "io_uring" if subprocess.run(probe, capture_output=True).returncode == 0 else "libaio"


def latency(totals, completions):
    """Mean and far percentiles in microseconds; fio puts the percentiles elsewhere for syncs."""
    percentiles = completions.get("percentile", {})
    figures = {"mean": totals.get("mean", 0) / 1000}
    for key, name in (("99.000000", "p99"), ("99.900000", "p99.9")):
        if key in percentiles:
            figures[name] = percentiles[key] / 1000
    return figures


def run_fio(command):
    done = subprocess.run(command, capture_output=True, text=True)
    begin = done.stdout.find("{\n")
    if done.returncode != 0 or begin < 0:
        raise RuntimeError(f"fio: {done.stderr.strip() or done.stdout.strip()}")
    job = json.loads(done.stdout[begin:])["jobs"][0]
    if job["error"]:
        raise RuntimeError(f"fio: error {job['error']}: {done.stderr.strip()}")
    return job
