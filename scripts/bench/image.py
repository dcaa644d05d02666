"""Real data: an ext4 image of this machine's own /usr, made once and kept."""

import os

from . import machine

# What goes in at most: enough for an honest figure, and not so much that each run takes minutes.
BYTES_MAX = 6 * 2**30
PARTS = ["bin", "lib", "share", "sbin", "libexec", "include", "local"]


def tree_bytes(path):
    """Allocated bytes below a folder; what cannot be read counts nothing."""
    total = 0
    for base, _, names in os.walk(path):
        for name in names:
            try:
                total += os.lstat(os.path.join(base, name)).st_blocks * 512
            except OSError:
                pass
    return total


def usr_image(folder, say):
    """The path of the image; made from /usr where it is not there yet."""
    path = os.path.join(folder, "usr.ext4")
    if os.path.exists(path):
        return path
    os.makedirs(folder, exist_ok=True)
    source = "/usr"
    if tree_bytes(source) > BYTES_MAX:
        # The largest part that is not too large.
        sizes = sorted((tree_bytes(f"/usr/{part}"), f"/usr/{part}") for part in PARTS if os.path.isdir(f"/usr/{part}"))
        source = [part for size, part in sizes if size <= BYTES_MAX][-1]
    size = int(tree_bytes(source) * 1.35) + 256 * 2**20
    size -= size % 2**20
    say(f"making {path} from {source}: {size / 2**30:.1f} GiB")
    unfinished = path + ".part"
    with open(unfinished, "wb") as file:
        file.truncate(size)
    try:
        machine.run("mke2fs", "-q", "-t", "ext4", "-F", "-d", source, "-E", "root_owner=0:0", unfinished)
    except RuntimeError:
        os.unlink(unfinished)
        raise
    os.rename(unfinished, path)
    return path
