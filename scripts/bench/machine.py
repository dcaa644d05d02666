"""The machine under the bench: scheduling, page cache, and what a process has used.

Two things decide whether figures repeat here. With autogroups on, the kernel shares the cores
between sessions whatever `nice` says, so this session's group is raised. And a request at depth one
costs 8 us when both ends share a core and over 100 us when the other core must be woken, so such
jobs pin both ends.

A third falls on whoever writes to new places: a virtual machine's free memory may have been given
back to its host, and the first touch of each page then costs several times the copy into it (350
MiB/s instead of 3,000 into a new file). A machine in use has no such memory, so it is touched before
each job that writes.
"""

import os
import subprocess
import time

TICKS = os.sysconf("SC_CLK_TCK")
AUTOGROUP_NICE = -12
TOUCHED_BYTES = 3 << 30


def raise_autogroup(pid="self"):
    """Whether the scheduling group of `pid`'s session could be raised (needs root)."""
    try:
        with open(f"/proc/{pid}/autogroup", "w") as file:
            file.write(str(AUTOGROUP_NICE))
        return True
    except OSError:
        return False


def describe():
    """A line about cores, memory and kernel, for the head of the report."""
    model = "unknown processor"
    with open("/proc/cpuinfo") as file:
        for line in file:
            if line.startswith("model name"):
                model = line.split(":", 1)[1].strip()
                break
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    kernel = os.uname().release
    return f"{os.cpu_count()} cores ({model}), {memory:.0f} GiB of memory, Linux {kernel}"


def touch_memory():
    """Lets the host back the memory that a job may take for its page cache."""
    path = f"/dev/shm/sinter-bench-{os.getpid()}"
    free_bytes = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    stretch = bytes(1 << 20)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        os.unlink(path)
        for _ in range(min(TOUCHED_BYTES, free_bytes // 2) // len(stretch)):
            os.write(descriptor, stretch)
    finally:
        os.close(descriptor)


def process_tree(pids):
    """`pids` and all their descendants that are alive."""
    parents = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            fields = stat_fields(int(name))
            if fields:
                parents.setdefault(int(fields[1]), []).append(int(name))
    found, open_ends = [], list(pids)
    while open_ends:
        pid = open_ends.pop()
        found.append(pid)
        open_ends.extend(parents.get(pid, []))
    return found


def stat_fields(pid):
    """The fields of /proc/PID/stat from the third on (state is the first of them)."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()
    except OSError:
        return None


def cpu_seconds(pids):
    """User and system time of these processes, their living descendants and the reaped ones."""
    ticks = 0
    for pid in process_tree(pids):
        fields = stat_fields(pid)
        if fields:
            ticks += sum(int(value) for value in fields[11:15])
    return ticks / TICKS


def busy_seconds():
    """Time that all cores together were not idle since the machine started."""
    with open("/proc/stat") as file:
        values = [int(value) for value in file.readline().split()[1:]]
    idle = values[3] + values[4]
    return (sum(values[:8]) - idle) / TICKS


def resident_peak_mib(pids):
    """Largest resident size that each of these processes ever had, summed."""
    total = 0
    for pid in process_tree(pids):
        try:
            with open(f"/proc/{pid}/status") as file:
                total += sum(int(line.split()[1]) for line in file if line.startswith("VmHWM"))
        except OSError:
            pass
    return total / 1024


def settle(pids, limit=10.0):
    """Waits until the processes have come to rest: what they still do after the last answer is
    part of the price of the job, and must not fall on the next one."""
    deadline = time.monotonic() + limit
    before = cpu_seconds(pids)
    while time.monotonic() < deadline:
        time.sleep(0.25)
        now = cpu_seconds(pids)
        if now - before <= 0.02:
            return
        before = now


def pin(pids, cores):
    """Pins every thread of these processes."""
    for pid in process_tree(pids):
        try:
            threads = os.listdir(f"/proc/{pid}/task")
        except OSError:
            continue
        for thread in threads:
            try:
                os.sched_setaffinity(int(thread), cores)
            except OSError:
                pass


def write_back():
    """Writes all dirty pages: else the first flush of a job pays for the job before."""
    os.sync()


def drop_caches(folders):
    """Empties the page cache, or at least of what these folders hold; says which."""
    os.sync()
    try:
        with open("/proc/sys/vm/drop_caches", "w") as file:
            file.write("3")
        return "drop_caches"
    except OSError:
        pass
    for folder in folders:
        for base, _, names in os.walk(folder):
            for name in names:
                path = os.path.join(base, name)
                if os.path.isfile(path):
                    with open(path, "rb") as file:
                        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return "posix_fadvise"


def has_command(name):
    """Whether a command is there, also where only root's path looks."""
    path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    return any(os.access(os.path.join(folder, name), os.X_OK) for folder in path.split(":"))


def run(*command, **options):
    """Runs a short command and fails with what it said."""
    environment = dict(os.environ, PATH=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
    done = subprocess.run(command, capture_output=True, text=True, env=environment, **options)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout
