"""The servers under measurement: how each is started on a fresh volume, found and ended.

Each serves one volume on a Unix socket. Only processes that were started here are ended, by id.
"""

import os
import shutil
import signal
import socket
import subprocess
import time

from . import machine

START_LIMIT = 60.0
STOP_LIMIT = 60.0


class Server:
    """One NBD server on one fresh volume of `size` bytes, in a folder of its own."""

    name = ""
    title = ""
    # Whether what is written can be read again.
    stores = True
    # Whether it shows its volume as a file, too.
    mounts = False
    export = ""

    def __init__(self, folder, size, options):
        self.folder = os.path.join(folder, self.name)
        self.size = size
        self.options = options
        # A socket's path has at most 107 bytes, whatever the work folder is called.
        self.socket = os.path.join(options.socket_dir, f"{self.name}.sock")
        self.log = os.path.join(folder, f"{self.name}.log")
        self.process = None

    @classmethod
    def missing(cls, options):
        """What this server needs and this machine lacks, or None."""
        return None

    @property
    def uri(self):
        return f"nbd+unix:///{self.export}?socket={self.socket}"

    def command(self):
        raise NotImplementedError

    def pids(self):
        return [self.process.pid]

    def start(self):
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)
        os.makedirs(self.folder)
        self.prepare()
        with open(self.log, "w") as log:
            self.process = subprocess.Popen(self.command(), stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        self.wait_ready()

    def prepare(self):
        """Makes the volume's file."""
        with open(self.volume_file(), "wb") as file:
            file.truncate(self.size)

    def volume_file(self):
        return os.path.join(self.folder, "volume")

    def wait_ready(self):
        deadline = time.monotonic() + START_LIMIT
        while time.monotonic() < deadline:
            if self.process.poll() not in (None, 0):
                break
            try:
                with socket.socket(socket.AF_UNIX) as probe:
                    probe.settimeout(2)
                    probe.connect(self.socket)
                    if probe.recv(8) == b"NBDMAGIC":
                        return
            except OSError:
                pass
            time.sleep(0.05)
        with open(self.log) as log:
            said = log.read().strip()
        self.stop()
        raise RuntimeError(f"{self.name} did not start: {said or 'it said nothing'}")

    def stop(self):
        if self.process is not None:
            end_process(self.process)
            self.process = None
        self.clean_up()
        if os.path.exists(self.socket):
            os.unlink(self.socket)

    def clean_up(self):
        """Undoes `prepare`."""
        shutil.rmtree(self.folder, ignore_errors=True)


def take_mount_away(folder):
    """Unmounts what is mounted on a folder, also where whoever served it has died."""
    with open("/proc/self/mountinfo") as file:
        if any(line.split()[4] == folder for line in file):
            machine.run("umount", "--lazy", folder)


def wait_for_file(path, process):
    deadline = time.monotonic() + START_LIMIT
    while not os.path.exists(path):
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"{path} does not appear")
        time.sleep(0.05)


def end_process(process):
    """Asks, waits, and only then insists."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(STOP_LIMIT)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


class Sinter(Server):
    name = "sinter"
    title = "Sinter"
    export = "bench"
    mounts = True

    @classmethod
    def missing(cls, options):
        return None if os.access(options.binary, os.X_OK) else f"no {options.binary}: cargo build --release"

    def mount_point(self):
        return os.path.join(self.folder, "mount")

    def mounted_file(self):
        return os.path.join(self.mount_point(), "volumes", self.export)

    def prepare(self):
        os.makedirs(self.mount_point())

    def clean_up(self):
        take_mount_away(self.mount_point())
        super().clean_up()

    def command(self):
        fuse = ["--fuse", self.mount_point()] if getattr(self.options, "with_fuse", False) else []
        return [
            options_path(self.options.binary), "serve",
            "--data-dir", self.folder,
            "--nbd-unix", self.socket,
            "--nbd", "127.0.0.1:0",
            "--api", "127.0.0.1:0",
            "--volume", f"{self.export}:{self.size}",
            *fuse,
            *self.options.sinter_arguments,
        ]

    def wait_ready(self):
        super().wait_ready()
        # The greeting may come before the volume is there.
        deadline = time.monotonic() + START_LIMIT
        while True:
            try:
                machine.run("nbdinfo", "--size", self.uri)
                return
            except RuntimeError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)

    def api_url(self):
        """Where REST is served, as `serve` printed it."""
        with open(self.log) as log:
            for word in log.read().split():
                if word.startswith("http://127.0.0.1:"):
                    scheme, _, host = word.split("/")[:3]
                    return f"{scheme}//{host.rstrip('.,;)')}"
        raise RuntimeError(f"no http:// address in what sinter printed ({self.log})")


def options_path(path):
    return os.path.abspath(path)


class NbdkitFile(Server):
    name = "nbdkit-file"
    title = "nbdkit file"

    @classmethod
    def missing(cls, options):
        return None if machine.has_command("nbdkit") else "nbdkit is not installed"

    def command(self):
        return ["nbdkit", "--foreground", "--exit-with-parent", "-U", self.socket, "file", self.volume_file()]


class NbdFuse(NbdkitFile):
    """libnbd's FUSE mount of what nbdkit serves: two programs, one for each protocol."""

    name = "nbdfuse"
    title = "nbdfuse on nbdkit file"
    mounts = True

    @classmethod
    def missing(cls, options):
        if not os.access("/dev/fuse", os.R_OK | os.W_OK):
            return "/dev/fuse cannot be opened"
        needed = [name for name in ("nbdfuse", "fusermount3") if not machine.has_command(name)]
        return super().missing(options) or (f"{needed[0]} is not installed" if needed else None)

    def __init__(self, folder, size, options):
        super().__init__(folder, size, options)
        self.mounter = None

    def mount_point(self):
        return os.path.join(self.folder, "mount")

    def mounted_file(self):
        return os.path.join(self.mount_point(), "volume")

    def pids(self):
        return [self.process.pid, self.mounter.pid]

    def wait_ready(self):
        super().wait_ready()
        os.makedirs(self.mount_point())
        with open(self.log, "a") as log:
            self.mounter = subprocess.Popen(["nbdfuse", self.mounted_file(), self.uri],
                                            stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        wait_for_file(self.mounted_file(), self.mounter)

    def clean_up(self):
        take_mount_away(self.mount_point())
        if self.mounter is not None:
            end_process(self.mounter)
            self.mounter = None
        super().clean_up()


class NbdkitNull(NbdkitFile):
    """Answers everything and stores nothing: the ceiling of protocol and client."""

    name = "nbdkit-null"
    title = "nbdkit null"
    stores = False

    def prepare(self):
        pass

    def command(self):
        return ["nbdkit", "--foreground", "--exit-with-parent", "-U", self.socket, "null", f"{self.size}"]


class QemuRaw(Server):
    name = "qemu-raw"
    title = "qemu-nbd raw"

    @classmethod
    def missing(cls, options):
        return None if machine.has_command("qemu-nbd") else "qemu-nbd is not installed (qemu-utils)"

    def command(self):
        return ["qemu-nbd", "--persistent", "--shared=0", "--format=raw", f"--socket={self.socket}", self.volume_file()]


class NbdServer(Server):
    name = "nbd-server"
    title = "nbd-server"
    export = "bench"

    @classmethod
    def missing(cls, options):
        return None if machine.has_command("nbd-server") else "nbd-server is not installed"

    def prepare(self):
        super().prepare()
        # With a Unix socket it does not listen on TCP.
        lines = ["[generic]", f"unixsock = {self.socket}", "allowlist = true",
                 f"[{self.export}]", f"exportname = {self.volume_file()}", "flush = true", "fua = true"]
        with open(os.path.join(self.folder, "config"), "w") as file:
            file.write("\n".join(lines) + "\n")

    def command(self):
        # Without -d it goes to the background (with it, it ends with its first client).
        return ["nbd-server", "-C", os.path.join(self.folder, "config"), "-p", self.pid_file()]

    def pid_file(self):
        return os.path.join(self.folder, "pid")

    def pids(self):
        with open(self.pid_file()) as file:
            return [int(file.read())]

    def wait_ready(self):
        super().wait_ready()
        machine.raise_autogroup(self.pids()[0])

    def clean_up(self):
        if os.path.exists(self.pid_file()):
            pid = self.pids()[0]
            fields = machine.stat_fields(pid)
            if fields:
                os.kill(pid, signal.SIGTERM)
                deadline = time.monotonic() + STOP_LIMIT
                while machine.stat_fields(pid) and time.monotonic() < deadline:
                    time.sleep(0.05)
        super().clean_up()


class BtrfsZstd(NbdkitFile):
    """A file on btrfs that compresses everything. The kernel's compressing threads are not counted."""

    name = "btrfs-zstd"
    title = "btrfs zstd:1"

    @classmethod
    def missing(cls, options):
        if os.geteuid() != 0:
            return "mounting btrfs needs root"
        return super().missing(options) or (
            None if machine.has_command("mkfs.btrfs") else "mkfs.btrfs is not installed (btrfs-progs)")

    def image(self):
        return os.path.join(self.folder, "image")

    def mount_point(self):
        return os.path.join(self.folder, "mount")

    def volume_file(self):
        return os.path.join(self.mount_point(), "volume")

    def prepare(self):
        with open(self.image(), "wb") as file:
            file.truncate(2 * self.size)
        machine.run("mkfs.btrfs", "-q", self.image())
        os.makedirs(self.mount_point())
        machine.run("mount", "-o", "loop,compress-force=zstd:1", self.image(), self.mount_point())
        super().prepare()

    def clean_up(self):
        if os.path.ismount(self.mount_point()):
            machine.run("umount", self.mount_point())
        super().clean_up()


class ZfsFuse(NbdkitFile):
    """A file on ZFS in user space, with deduplication and lzjb at 4 KiB records."""

    name = "zfs-fuse"
    title = "zfs-fuse dedup lzjb"

    @classmethod
    def missing(cls, options):
        if os.geteuid() != 0:
            return "zfs-fuse needs root"
        return super().missing(options) or (
            None if machine.has_command("zfs-fuse") else "zfs-fuse is not installed")

    def __init__(self, folder, size, options):
        super().__init__(folder, size, options)
        self.pool = f"sinterbench{os.getpid()}"
        self.daemon = None

    def mount_point(self):
        return os.path.join(self.folder, "mount")

    def volume_file(self):
        return os.path.join(self.mount_point(), "volume")

    def prepare(self):
        image = os.path.join(self.folder, "image")
        with open(image, "wb") as file:
            file.truncate(2 * self.size)
        os.makedirs("/var/run/zfs", exist_ok=True)
        with open(self.log + ".zfs", "w") as log:
            self.daemon = subprocess.Popen(["zfs-fuse", "--no-daemon", "--no-kstat-mount"],
                                           stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        deadline = time.monotonic() + START_LIMIT
        while True:
            try:
                machine.run("zpool", "create", "-o", "ashift=9", "-m", self.mount_point(), self.pool, image)
                break
            except RuntimeError:
                if time.monotonic() > deadline or self.daemon.poll() is not None:
                    raise
                time.sleep(0.2)
        for setting in ("recordsize=4k", "compression=lzjb", "dedup=on"):
            machine.run("zfs", "set", setting, self.pool)
        super().prepare()

    def pids(self):
        return [self.process.pid, self.daemon.pid]

    def clean_up(self):
        if self.daemon is not None:
            try:
                machine.run("zpool", "destroy", "-f", self.pool)
            except RuntimeError:
                pass
            end_process(self.daemon)
            self.daemon = None
        super().clean_up()


FAST = [Sinter, NbdkitFile, QemuRaw, NbdServer, NbdkitNull]
REDUCING = [BtrfsZstd, ZfsFuse]
BY_NAME = {server.name: server for server in [*FAST, NbdFuse, *REDUCING]}
