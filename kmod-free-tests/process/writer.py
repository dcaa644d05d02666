"""A client over libnbd that knows what it was promised.

    writer.py write JOURNAL URI SEED BLOCKS [REQUESTS]
    writer.py verify JOURNAL URI

`write` keeps several requests under way until the connection is lost, or until REQUESTS of them were
answered, and then prints how many were acknowledged and how many were not. It never has two requests under
way for one block, so that the order of what it wrote is its own. `verify` reads every block that was ever
written. A block must hold what the last acknowledged request put there; where a later request was under way
when the connection went, that one may have come to pass or not, but all of its blocks together. What is
found is noted in the journal: from then on it must stay.

The journal has one line for each fact, written before the next request goes out:

    w SERIAL FIRST COUNT       this many blocks from FIRST on are about to be written
    z SERIAL FIRST COUNT       they are about to be trimmed or zeroed
    a SERIAL                   that request was acknowledged
    g SERIAL                   that request was under way when the connection went, and did not come to pass
"""

import random
import struct
import sys
import zlib

import nbd

BLOCK = 4096
DEPTH = 32
# A request of this many blocks is one operation of the array, whatever its geometry: all or nothing.
BLOCKS_MAX = 8
# Magic, serial, number of the block (or SHARED), then the checksum of everything else.
HEAD = struct.Struct("<8sQQI")
MAGIC = b"journal\0"
SHARED = (1 << 64) - 1
READ_BYTES = 1 << 20


def block_bytes(serial, number):
    """The content of a block: half of it does not compress; what is SHARED is equal in all blocks of a request."""
    rest = random.Random(serial * 2654435761 + number).randbytes(BLOCK // 2)
    rest += bytes(str(serial), "ascii") * BLOCK
    rest = rest[: BLOCK - HEAD.size]
    head = HEAD.pack(MAGIC, serial, number, 0)
    return HEAD.pack(MAGIC, serial, number, zlib.crc32(rest, zlib.crc32(head))) + rest


def serial_in(block, number):
    """The serial number that a block holds; 0 for zeros; None for what nobody ever wrote there."""
    if block.count(0) == BLOCK:
        return 0
    magic, serial, written_to, checksum = HEAD.unpack_from(block)
    head = HEAD.pack(magic, serial, written_to, 0)
    if magic != MAGIC or zlib.crc32(block[HEAD.size :], zlib.crc32(head)) != checksum:
        return None
    return serial if written_to in (SHARED, number) else None


class Journal:
    """What was asked for and what was acknowledged, in a file."""

    def __init__(self, path):
        self.requests = {}  # serial: (kind, first, count), for those that may still matter
        self.held = {}  # block: serial of the request that it is known to show
        self.open = {}  # serials without an answer
        self.last = 0
        self.acknowledged = 0
        try:
            with open(path, encoding="ascii") as lines:
                for line in lines:
                    kind, *numbers = line.split()
                    self.apply(kind, *map(int, numbers))
        except FileNotFoundError:
            pass
        self.file = open(path, "a", encoding="ascii")

    def apply(self, kind, serial, first=0, count=0):
        if kind in "wz":
            self.requests[serial] = (kind, first, count)
            self.open[serial] = True
            self.last = serial
            return
        del self.open[serial]
        if kind == "a":
            self.acknowledged += 1
            _, first, count = self.requests[serial]
            for block in range(first, first + count):
                self.held[block] = serial

    def note(self, kind, *numbers):
        self.file.write(" ".join([kind, *map(str, numbers)]) + "\n")
        self.file.flush()
        self.apply(kind, *numbers)

    def shows(self, serial):
        """What a block shows whose last request was this one."""
        if serial == 0 or self.requests[serial][0] == "z":
            return 0
        return serial


def connect(uri):
    handle = nbd.NBD()
    handle.connect_uri(uri)
    return handle


class Writer:
    def __init__(self, journal, handle, seed, blocks):
        self.journal, self.handle, self.blocks = journal, handle, blocks
        self.random = random.Random(seed * 1000003 + journal.last)
        self.under_way = {}  # cookie: (serial, or None for a flush; the buffer, which must stay)
        self.busy = set()

    def place(self):
        """A few blocks with no request under way; half of them in a small part that is written again and again."""
        while True:
            count = self.random.choice((1, 1, 1, 2, BLOCKS_MAX))
            reach = self.blocks if self.random.random() < 0.5 else self.blocks // 16
            first = self.random.randrange(reach - count)
            if self.busy.isdisjoint(range(first, first + count)):
                return first, count

    def start(self):
        if self.random.random() < 0.02:
            self.under_way[self.handle.aio_flush()] = (None, None)
            return
        first, count = self.place()
        serial = self.journal.last + 1
        fua = nbd.CMD_FLAG_FUA if self.random.random() < 0.05 else 0
        offset, length = first * BLOCK, count * BLOCK
        self.busy.update(range(first, first + count))
        how = self.random.random()
        if how < 0.1:
            self.journal.note("z", serial, first, count)
            call = self.handle.aio_trim if how < 0.05 else self.handle.aio_zero
            cookie, buffer = call(length, offset, flags=fua), None
        else:
            self.journal.note("w", serial, first, count)
            shared = self.random.random() < 0.3
            numbers = range(first, first + count)
            data = b"".join(block_bytes(serial, SHARED if shared else number) for number in numbers)
            buffer = nbd.Buffer.from_bytearray(bytearray(data))
            cookie = self.handle.aio_pwrite(buffer, offset, flags=fua)
        self.under_way[cookie] = (serial, buffer)

    def take_answers(self):
        """Notes what was answered; an error that is not the loss of the connection ends the program."""
        answered = 0
        for cookie in list(self.under_way):
            try:
                if not self.handle.aio_command_completed(cookie):
                    continue
            except nbd.Error as error:
                if error.errno in ("ENOTCONN", "ESHUTDOWN"):
                    continue
                raise
            serial, _ = self.under_way.pop(cookie)
            answered += 1
            if serial is not None:
                _, first, count = self.journal.requests[serial]
                self.journal.note("a", serial)
                self.busy.difference_update(range(first, first + count))
        return answered

    def run(self, requests):
        answered = 0
        while True:
            try:
                while len(self.under_way) < DEPTH and answered + len(self.under_way) < requests:
                    self.start()
                if not self.under_way:
                    break
                self.handle.poll(1000)
            except nbd.Error:
                if not (self.handle.aio_is_dead() or self.handle.aio_is_closed()):
                    raise
            answered += self.take_answers()
            if self.handle.aio_is_dead() or self.handle.aio_is_closed():
                break


def write(journal, uri, seed, blocks, requests=1 << 60):
    before = journal.acknowledged
    handle = connect(uri)
    print("connected", flush=True)
    Writer(journal, handle, seed, blocks).run(requests)
    print(journal.acknowledged - before, len(journal.open))


def read_all(handle, journal):
    """The serial numbers found in all blocks that were ever asked for."""
    found = {}
    asked_for = sorted({
        number for _, first, count in journal.requests.values() for number in range(first, first + count)
    })
    stretches = sorted({number * BLOCK // READ_BYTES for number in asked_for})
    data = {}
    for stretch in stretches:
        offset = stretch * READ_BYTES
        data[stretch] = handle.pread(min(READ_BYTES, handle.get_size() - offset), offset)
    for number in asked_for:
        stretch, within = divmod(number * BLOCK, READ_BYTES)
        found[number] = serial_in(data[stretch][within : within + BLOCK], number)
    return found


def verify(journal, uri):
    faults = []
    found = read_all(connect(uri), journal)
    for serial in sorted(journal.open):
        _, first, count = journal.requests[serial]
        numbers = range(first, first + count)
        new = [found[number] == journal.shows(serial) for number in numbers]
        old = [found[number] == journal.shows(journal.held.get(number, 0)) for number in numbers]
        if all(new):
            journal.note("a", serial)
        else:
            if not all(old):
                faults.append(f"request {serial}, blocks {first} and {count - 1} more, came to pass in part")
            journal.note("g", serial)
    for number, serial in found.items():
        expected = journal.shows(journal.held.get(number, 0))
        if serial != expected:
            what = "what nobody wrote there" if serial is None else serial
            faults.append(f"block {number} holds {what}, and {expected} was acknowledged")
    for fault in faults[:20]:
        print(fault)
    if faults:
        raise SystemExit(f"{len(faults)} faults in {len(found)} blocks")
    print(len(found))


if __name__ == "__main__":
    verb, path, uri, *numbers = sys.argv[1:]
    {"write": write, "verify": verify}[verb](Journal(path), uri, *map(int, numbers))
