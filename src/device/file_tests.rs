use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::process::{Command, id};
use std::sync::atomic::AtomicU32;

use proptest::prelude::*;

use super::*;

const MIB: u64 = 1 << 20;

/// A directory of its own for each test, gone with it.
struct Directory(PathBuf);

impl Directory {
    fn new() -> Directory {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let unique = format!("sinter-file-device-{}-{}", id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(unique);
        fs::create_dir(&path).unwrap();
        Directory(path)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).ok();
    }
}

fn bytes_of(device: &FileDevice, offset: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0xee; len];
    device.read_at(DeviceOffset(offset), &mut bytes).unwrap();
    bytes
}

#[test]
fn a_new_file_is_sparse_and_private_and_reads_back() {
    let directory = Directory::new();
    let path = directory.path("pool");
    let device = FileDevice::create(&path, ByteCount(1 << 33)).unwrap();
    assert_eq!((device.len(), device.name()), (ByteCount(1 << 33), path.to_str().unwrap()));
    assert!(!device.is_block_device());
    let metadata = fs::metadata(&path).unwrap();
    assert_eq!((metadata.len(), metadata.mode() & 0o777), (1 << 33, 0o600));
    assert!(metadata.blocks() * 512 < MIB, "it takes {} sectors", metadata.blocks());

    assert_eq!(bytes_of(&device, 5 * MIB, 3), [0; 3]);
    device.write_at(DeviceOffset((1 << 33) - 6), &[b"abc", b"", b"def"]).unwrap();
    device.sync(Syncer::Log).unwrap();
    drop(device);
    let device = FileDevice::open(&path).unwrap();
    assert_eq!(device.len(), ByteCount(1 << 33));
    device.drop_cache().unwrap();
    assert_eq!(bytes_of(&device, (1 << 33) - 8, 8), b"\0\0abcdef");
}

#[test]
fn what_is_open_already_is_busy_until_it_is_closed() {
    let directory = Directory::new();
    let path = directory.path("pool");
    let device = FileDevice::create(&path, ByteCount(MIB)).unwrap();
    let error = FileDevice::open(&path).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Busy);
    assert!(error.to_string().contains("in use") && error.to_string().contains("pool"), "{error}");
    drop(device);
    let device = FileDevice::open(&path).unwrap();
    assert_eq!(FileDevice::open(&path).unwrap_err().kind(), ErrorKind::Busy);
    drop(device);
    FileDevice::open(&path).unwrap();
}

#[test]
fn refusals_say_what_is_wrong() {
    let directory = Directory::new();
    let kind_of = |path: &Path| FileDevice::open(path).unwrap_err().kind();
    assert_eq!(kind_of(&directory.path("none")), ErrorKind::NotFound);
    assert_eq!(kind_of(&directory.0), ErrorKind::Invalid);
    assert_eq!(kind_of(Path::new("/dev/null")), ErrorKind::Invalid);

    let path = directory.path("pool");
    fs::write(&path, b"foreign").unwrap();
    let create = |path: &Path, len| FileDevice::create(path, ByteCount(len)).unwrap_err().kind();
    assert_eq!(create(&path, MIB), ErrorKind::Exists);
    assert_eq!(fs::read(&path).unwrap(), b"foreign");
    assert_eq!(kind_of(&path.join("below")), ErrorKind::NotFound);
    assert_eq!(create(&directory.path("none/pool"), MIB), ErrorKind::NotFound);
    assert_eq!(create(&directory.path("huge"), u64::MAX), ErrorKind::Invalid);
    assert!(!directory.path("huge").exists(), "what could not be made whole does not stay");
}

#[test]
fn past_the_end_is_an_error_and_grows_nothing() {
    let directory = Directory::new();
    let path = directory.path("pool");
    let device = FileDevice::create(&path, ByteCount(8192)).unwrap();
    let mut bytes = [0; 2];
    let error = device.read_at(DeviceOffset(8191), &mut bytes).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    assert!(!device.try_read_at(DeviceOffset(8191), &mut bytes).unwrap());
    assert!(device.write_at(DeviceOffset(8191), &[b"a", b"b"]).is_err());
    assert!(device.allocate(DeviceOffset(8191), ByteCount(2)).is_err());
    assert!(device.discard(DeviceOffset(u64::MAX), ByteCount(2)).is_err());
    assert_eq!(fs::metadata(&path).unwrap().len(), 8192);
    // A file that somebody cut short under an open device.
    OpenOptions::new().write(true).open(&path).unwrap().set_len(4096).unwrap();
    let error = device.read_at(DeviceOffset(4000), &mut [0; 200]).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
}

#[test]
fn more_slices_than_one_call_takes() {
    let directory = Directory::new();
    let device = FileDevice::create(&directory.path("pool"), ByteCount(16 * MIB)).unwrap();
    let parts: Vec<Vec<u8>> = (0..3_000usize).map(|n| vec![n.to_le_bytes()[0]; n % 37]).collect();
    let slices: Vec<&[u8]> = parts.iter().map(Vec::as_slice).collect();
    device.write_at(DeviceOffset(1_001), &slices).unwrap();
    let whole = parts.concat();
    assert_eq!(bytes_of(&device, 1_001, whole.len()), whole);
    assert_eq!(bytes_of(&device, 1_001 + whole.len() as u64, 1), [0]);
    device.write_at(DeviceOffset(0), &[]).unwrap();
    device.write_at(DeviceOffset(0), &[b"", b""]).unwrap();
    assert_eq!(bytes_of(&device, 0, 4), [0; 4]);
}

#[test]
fn tried_reads_never_lie() {
    let directory = Directory::new();
    let device = FileDevice::create(&directory.path("pool"), ByteCount(4 * MIB)).unwrap();
    let written: Vec<u8> = (0..MIB).map(|n| n.to_le_bytes()[0] ^ n.to_le_bytes()[1]).collect();
    device.write_at(DeviceOffset(MIB), &[&written]).unwrap();
    let mut bytes = vec![0; written.len()];
    let cached = device.try_read_at(DeviceOffset(MIB), &mut bytes).unwrap();
    // Not every file system that a temporary directory stands on can say it.
    assert!(cached || device.cannot_try_read.load(Ordering::Relaxed));
    assert!(!cached || bytes == written);
    device.sync(Syncer::Log).unwrap();
    device.drop_cache().unwrap();
    bytes.fill(0);
    if device.try_read_at(DeviceOffset(MIB), &mut bytes).unwrap() {
        assert_eq!(bytes, written);
    }
}

#[test]
fn space_is_taken_and_given_back() {
    let directory = Directory::new();
    let path = directory.path("pool");
    let device = FileDevice::create(&path, ByteCount(16 * MIB)).unwrap();
    let taken = || fs::metadata(&path).unwrap().blocks() * 512;
    device.allocate(DeviceOffset(4 * MIB), ByteCount(4 * MIB)).unwrap();
    let allocated = taken();
    device.write_at(DeviceOffset(4 * MIB), &[&[7; 4 << 20]]).unwrap();
    device.sync(Syncer::Log).unwrap();
    assert!(taken() >= 4 * MIB);
    // A file system without fallocate leaves it undone, but never done by half.
    assert!(!(MIB..4 * MIB).contains(&allocated), "{allocated} bytes");
    device.discard(DeviceOffset(5 * MIB), ByteCount(2 * MIB)).unwrap();
    device.sync(Syncer::Log).unwrap();
    if !device.cannot_discard.load(Ordering::Relaxed) {
        assert!(taken() < 3 * MIB, "{} bytes are still taken", taken());
        assert_eq!(bytes_of(&device, 5 * MIB, 4), [0; 4]);
    }
    assert_eq!(bytes_of(&device, 5 * MIB - 2, 2), [7; 2]);
    assert_eq!(bytes_of(&device, 7 * MIB, 2), [7; 2]);
    assert_eq!(fs::metadata(&path).unwrap().len(), 16 * MIB);
    device.allocate(DeviceOffset(0), ByteCount(0)).unwrap();
    device.discard(DeviceOffset(0), ByteCount(0)).unwrap();
}

/// A loop device over a file, where the host lets the test make one.
struct LoopDevice(PathBuf);

impl LoopDevice {
    fn over(file: &Path) -> Option<LoopDevice> {
        let made = Command::new("losetup").args(["--find", "--show"]).arg(file).output().ok()?;
        let path = String::from_utf8(made.stdout).ok()?.trim().to_owned();
        made.status.success().then(|| LoopDevice(path.into()))
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        Command::new("losetup").arg("--detach").arg(&self.0).status().ok();
    }
}

#[test]
fn a_block_device_is_one_too() {
    let directory = Directory::new();
    let path = directory.path("disk");
    File::create(&path).unwrap().set_len(16 * MIB).unwrap();
    let Some(disk) = LoopDevice::over(&path) else {
        println!("no loop device to be had: block devices are not tested here");
        return;
    };
    let device = FileDevice::open(&disk.0).unwrap();
    assert_eq!((device.len(), device.is_block_device()), (ByteCount(16 * MIB), true));
    let error = FileDevice::open(&disk.0).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Busy, "{error}");

    device.allocate(DeviceOffset(0), ByteCount(4 * MIB)).unwrap();
    device.write_at(DeviceOffset(MIB - 3), &[b"abc", &[9; 8192]]).unwrap();
    device.sync(Syncer::Log).unwrap();
    device.discard(DeviceOffset(MIB), ByteCount(4096)).unwrap();
    device.sync(Syncer::Log).unwrap();
    device.drop_cache().unwrap();
    assert_eq!(bytes_of(&device, MIB - 3, 3), b"abc");
    assert_eq!(bytes_of(&device, MIB + 4096, 4096), [9; 4096]);
    drop(device);
    FileDevice::open(&disk.0).unwrap();
}

proptest! {
    #[test]
    fn short_and_interrupted_calls_are_carried_on(
        parts in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..40), 0..20),
        portions in proptest::collection::vec(0usize..30, 1..20),
    ) {
        let whole = parts.concat();
        let slices: Vec<&[u8]> = parts.iter().map(Vec::as_slice).collect();
        // 0 stands for a signal.
        let mut portions_left = portions.iter().copied().chain([1]).cycle();
        let mut portion = |most: usize| match portions_left.next() {
            Some(0) => Err(io::Error::from(io::ErrorKind::Interrupted)),
            bytes => Ok(bytes.unwrap().min(most)),
        };
        let mut written = vec![0; whole.len()];
        write_whole(&slices, |parts, done| {
            let flat: Vec<u8> = parts.iter().flat_map(|part| part.iter().copied()).collect();
            let bytes = portion(flat.len())?;
            let at = usize::try_from(done).unwrap();
            written[at..at + bytes].copy_from_slice(&flat[..bytes]);
            Ok(bytes)
        }).unwrap();
        prop_assert_eq!(&written, &whole);

        let mut read = vec![0; whole.len()];
        read_whole(&mut read, |rest, done| {
            let bytes = portion(rest.len())?;
            let at = usize::try_from(done).unwrap();
            rest[..bytes].copy_from_slice(&whole[at..at + bytes]);
            Ok(bytes)
        }).unwrap();
        prop_assert_eq!(&read, &whole);
    }
}

#[test]
fn calls_that_get_nowhere_end() {
    let error = write_whole(&[b"abc"], |_, _| Ok(0)).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::WriteZero);
    let error = read_whole(&mut [0; 3], |_, done| Ok(usize::from(done == 0))).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    let error = write_whole(&[b"abc"], |_, _| Err(Errno::IO.into())).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(Errno::IO.raw_os_error()));
}
