//! QEMU's tools, libnbd's, and the `nbd` crate's client against volumes that are really stored.

use std::io::Read as _;
use std::io::Seek as _;
use std::io::SeekFrom;
use std::io::Write as _;
use std::net::TcpStream;
use std::path::PathBuf;

use rust_nbd::client::NbdClient;
use rust_nbd::client::NbdExt as _;

use crate::client::path;
use crate::client::run;
use crate::daemon::Daemon;
use crate::daemon::Scratch;

const MIB: usize = 1 << 20;

/// A daemon with one volume of 16 MiB, and an image as large: noise, zeros, a pattern, the noise again.
fn daemon_and_image(scratch: &Scratch) -> (Daemon, PathBuf, Vec<u8>) {
    let daemon = Daemon::start(scratch.path(), &["--volume", "disk:16MiB"]);
    let mut state = 88_172_645_463_325_252_u64;
    let mut noise = Vec::with_capacity(3 * MIB);
    while noise.len() < 3 * MIB {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        noise.extend_from_slice(&state.to_le_bytes());
    }
    let mut image = noise.clone();
    image.resize(7 * MIB, 0);
    image.resize(9 * MIB, 0x5a);
    image.extend_from_slice(&noise);
    image.resize(16 * MIB, 0);
    let file = scratch.join("image.raw");
    std::fs::write(&file, &image).unwrap();
    (daemon, file, image)
}

fn unix_uri(daemon: &Daemon) -> String {
    format!("nbd+unix:///disk?socket={}", path(&daemon.socket()))
}

#[test]
fn qemu_img_takes_an_image_in_and_out() {
    let scratch = Scratch::new();
    let (daemon, file, image) = daemon_and_image(&scratch);
    let back = scratch.join("back.raw");
    for uri in [daemon.uri("disk"), unix_uri(&daemon)] {
        run("qemu-img", &["convert", "-n", "-f", "raw", "-O", "raw", path(&file), &uri]);
        run("qemu-img", &["compare", "-f", "raw", "-F", "raw", path(&file), &uri]);
        run("qemu-img", &["convert", "-f", "raw", "-O", "raw", &uri, path(&back)]);
        assert!(std::fs::read(&back).unwrap() == image);
    }
    let map = run("qemu-img", &["map", "-f", "raw", "--output=json", &daemon.uri("disk")]);
    assert!(
        map.contains("\"start\": 3145728, \"length\": 4194304") && map.contains("\"zero\": true"),
        "{map}"
    );
}

#[test]
fn qemu_io_reads_the_patterns_that_it_wrote() {
    let scratch = Scratch::new();
    let (daemon, _, _) = daemon_and_image(&scratch);
    let commands = [
        "write -P 0x5a 100 70000",
        "read -P 0x5a 100 70000",
        "write -f -P 0x5b 1M 3M",
        "aio_write -P 0x11 4M 1M",
        "aio_write -P 0x22 5M 1M",
        "aio_flush",
        "discard 1M 1M",
        "write -z -u 2M 512k",
        "write -z 2560k 1000",
        "flush",
    ];
    let reads = [
        "read -P 0 0 100",
        "read -P 0x5a 100 70000",
        "read -P 0 1M 1M",
        "read -P 0 2M 512k",
        "read -P 0 2560k 1000",
        "read -P 0x5b 2622440 523288",
        "read -P 0x5b 3M 1M",
        "read -P 0x11 4M 1M",
        "read -P 0x22 5M 1M",
        "read -P 0 6M 10M",
    ];
    qemu_io(&daemon, &[&commands[..], &reads[..]].concat());
    // What was read may have come from memory; a new process knows what was stored.
    daemon.kill();
    let daemon = Daemon::start(scratch.path(), &[]);
    qemu_io(&daemon, &reads);
}

#[track_caller]
fn qemu_io(daemon: &Daemon, commands: &[&str]) {
    for uri in [daemon.uri("disk"), unix_uri(daemon)] {
        let arguments: Vec<&str> = commands.iter().flat_map(|command| ["-c", command]).collect();
        let said = run("qemu-io", &[&["-f", "raw", &uri][..], &arguments].concat());
        assert!(!said.contains("failed"), "{said}");
    }
}

#[test]
fn nbdcopy_takes_an_image_in_and_out() {
    let scratch = Scratch::new();
    let (daemon, file, image) = daemon_and_image(&scratch);
    let back = scratch.join("back.raw");
    for (uri, connections) in [(daemon.uri("disk"), "4"), (unix_uri(&daemon), "1")] {
        run("nbdcopy", &["--flush", "-C", connections, path(&file), &uri]);
        run("nbdcopy", &["-C", connections, &uri, path(&back)]);
        assert!(std::fs::read(&back).unwrap() == image);
    }
    let map = run("nbdinfo", &["--map", &daemon.uri("disk")]);
    let shapes: Vec<Vec<&str>> = map.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(shapes[0], ["0", "3145728", "0", "data"]);
    assert_eq!(shapes[1], ["3145728", "4194304", "3", "hole,zero"]);
}

/// It knows EXPORT_NAME alone, wants the zeros after it, and sends each field of a request by itself.
#[test]
fn the_nbd_crate_reads_what_it_wrote() {
    let scratch = Scratch::new();
    let (daemon, _, image) = daemon_and_image(&scratch);
    let address = daemon.nbd.strip_prefix("nbd://").unwrap();
    let connect = || {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_nodelay(true).unwrap();
        let export = rust_nbd::client::handshake(&stream, b"disk").unwrap();
        assert_eq!(export.size, image.len() as u64);
        assert!(export.send_flush && export.send_trim && !export.readonly);
        NbdClient::new(stream, &export)
    };
    let mut client = connect();
    for part in image.chunks(MIB) {
        client.write_all(part).unwrap();
    }
    client.seek(SeekFrom::Start(512)).unwrap();
    client.write_all(b"within a block").unwrap();
    client.flush().unwrap();
    client.seek(SeekFrom::Start(8 << 20)).unwrap();
    client.trim(4096).unwrap();

    let mut expected = image.clone();
    expected[512..526].copy_from_slice(b"within a block");
    expected[8 << 20..][..4096].fill(0);
    let mut back = vec![0; image.len()];
    connect().read_exact(&mut back).unwrap();
    assert!(back == expected);

    let stream = TcpStream::connect(address).unwrap();
    assert!(rust_nbd::client::handshake(&stream, b"no such volume").is_err());
}
