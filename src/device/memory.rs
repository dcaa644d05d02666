//! A device in memory, for tests and benches: sparse, never fails, and gone with the process.

use std::io;
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use super::image::Image;
use super::{Device, Syncer, slices_len, within};
use crate::sync::yield_point;
use crate::units::{ByteCount, DeviceOffset};

/// A device in memory; all zeros when it is made.
#[derive(Debug)]
pub struct MemoryDevice {
    name: String,
    len: ByteCount,
    // The standard library's lock: held for one copy, never at a point where a thread may yield.
    image: RwLock<Image>,
}

impl MemoryDevice {
    /// A device of `len` bytes that reads as zeros.
    #[must_use]
    pub fn new(name: impl Into<String>, len: ByteCount) -> MemoryDevice {
        MemoryDevice { name: name.into(), len, image: RwLock::default() }
    }

    fn image(&self) -> RwLockReadGuard<'_, Image> {
        self.image.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn image_mut(&self) -> RwLockWriteGuard<'_, Image> {
        self.image.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Device for MemoryDevice {
    fn name(&self) -> &str {
        &self.name
    }

    fn len(&self) -> ByteCount {
        self.len
    }

    fn read_at(&self, offset: DeviceOffset, buffer: &mut [u8]) -> io::Result<()> {
        yield_point();
        if !within(self.len, offset, ByteCount(buffer.len() as u64)) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.image().read(offset.0, buffer);
        Ok(())
    }

    fn try_read_at(&self, offset: DeviceOffset, buffer: &mut [u8]) -> io::Result<bool> {
        self.read_at(offset, buffer).map(|()| true)
    }

    fn write_at(&self, offset: DeviceOffset, slices: &[&[u8]]) -> io::Result<()> {
        yield_point();
        if !within(self.len, offset, slices_len(slices)) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let mut image = self.image_mut();
        let mut position = offset.0;
        for slice in slices {
            image.write(position, slice);
            position += slice.len() as u64;
        }
        Ok(())
    }

    fn sync(&self, _: Syncer) -> io::Result<()> {
        yield_point();
        Ok(())
    }

    fn allocate(&self, offset: DeviceOffset, len: ByteCount) -> io::Result<()> {
        yield_point();
        if within(self.len, offset, len) { Ok(()) } else { Err(io::ErrorKind::InvalidInput.into()) }
    }

    fn discard(&self, offset: DeviceOffset, len: ByteCount) -> io::Result<()> {
        yield_point();
        if !within(self.len, offset, len) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        self.image_mut().zero(offset.0, len.0);
        Ok(())
    }

    fn drop_cache(&self) -> io::Result<()> {
        yield_point();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_back_what_was_written() {
        let device = MemoryDevice::new("memory", ByteCount(1 << 40));
        assert_eq!((device.name(), device.len()), ("memory", ByteCount(1 << 40)));
        let offset = DeviceOffset((1 << 40) - 10);
        device.write_at(offset, &[b"abc", b"", b"defgh"]).unwrap();
        let mut bytes = [0xff; 10];
        assert!(device.try_read_at(offset, &mut bytes).unwrap());
        assert_eq!(&bytes, b"abcdefgh\0\0");
        device.discard(offset, ByteCount(4)).unwrap();
        device.sync(Syncer::Log).unwrap();
        device.drop_cache().unwrap();
        device.read_at(offset, &mut bytes).unwrap();
        assert_eq!(&bytes, b"\0\0\0\0efgh\0\0");
    }

    #[test]
    fn past_the_end_is_an_error() {
        let device = MemoryDevice::new("memory", ByteCount(8192));
        let mut bytes = [0; 2];
        for offset in [8191, 8192, u64::MAX] {
            let offset = DeviceOffset(offset);
            assert_eq!(device.read_at(offset, &mut bytes).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
            assert!(device.write_at(offset, &[b"a", b"b"]).is_err());
            assert!(device.discard(offset, ByteCount(2)).is_err());
            assert!(device.allocate(offset, ByteCount(2)).is_err());
        }
        device.allocate(DeviceOffset(8190), ByteCount(2)).unwrap();
    }
}
