//! Images on the user's side: a file, a device or a stream, and where they are zero.

use std::fs::File;
use std::fs::OpenOptions;
use std::io;
use std::io::Read;
use std::io::Seek;
use std::io::SeekFrom;
use std::io::Write;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use crate::cli::output;
use crate::daemon::failure::Outcome;
use crate::error::Error;
use crate::error::ErrorKind;
use crate::error::Result;
use crate::units::BLOCK_BYTES;
use crate::units::ByteCount;

/// Zeros shorter than this are moved with the data around them: one request costs more than they do.
const ZEROS_MIN: usize = 64 << 10;

/// Most zeros that are written at once, in bytes.
const ZEROS_WRITTEN: usize = 1 << 20;

/// A part of a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stretch {
    /// Something else than zeros, or too little of them.
    Data,
    /// At least `ZEROS_MIN` of zeros, or a whole chunk of them.
    Zeros,
}

/// Parts a chunk into data and zeros, in order and without gaps.
#[must_use]
pub fn stretches(chunk: &[u8]) -> Vec<(Range<usize>, Stretch)> {
    let mut parts: Vec<(Range<usize>, Stretch)> = Vec::new();
    for (index, block) in chunk.chunks(BLOCK_BYTES).enumerate() {
        let start = index * BLOCK_BYTES;
        let kind = if block.iter().all(|byte| *byte == 0) { Stretch::Zeros } else { Stretch::Data };
        match parts.last_mut() {
            Some((range, last)) if *last == kind => range.end = start + block.len(),
            _ => parts.push((start..start + block.len(), kind)),
        }
    }
    let mut merged: Vec<(Range<usize>, Stretch)> = Vec::new();
    for (range, kind) in parts {
        let whole = range.len() == chunk.len();
        let kind =
            if kind == Stretch::Zeros && range.len() < ZEROS_MIN && !whole { Stretch::Data } else { kind };
        match merged.last_mut() {
            Some((last, last_kind)) if *last_kind == kind => last.end = range.end,
            _ => merged.push((range, kind)),
        }
    }
    merged
}

/// An image to be read.
pub struct Image {
    source: Box<dyn Read>,
    name: String,
    len: Option<ByteCount>,
}

impl Image {
    /// Opens a file, a device, or standard input for `-`.
    ///
    /// # Errors
    /// `NotFound`; `Invalid` for what cannot be read as an image.
    pub fn open(path: &Path) -> Outcome<Image> {
        if path == Path::new("-") {
            return Ok(Image { source: Box::new(io::stdin()), name: "standard input".to_owned(), len: None });
        }
        let name = path.display().to_string();
        let failed = |error| open_error(&name, error);
        let mut file = File::open(path).map_err(failed)?;
        let kind = file.metadata().map_err(failed)?.file_type();
        if kind.is_dir() {
            return Err(Error::new(ErrorKind::Invalid, format!("{name} is a directory")).into());
        }
        let mut len = None;
        if kind.is_file() || kind.is_block_device() {
            len = Some(ByteCount(file.seek(SeekFrom::End(0)).map_err(failed)?));
            file.rewind().map_err(failed)?;
        }
        Ok(Image { source: Box::new(file), name, len })
    }

    /// Its length, where it is known.
    #[must_use]
    pub fn len(&self) -> Option<ByteCount> {
        self.len
    }

    /// That it could not be read.
    pub fn error(&self, error: io::Error) -> Error {
        Error::caused(ErrorKind::Device, format!("reading {}", self.name), error)
    }
}

impl Read for Image {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.source.read(buffer)
    }
}

/// Where an image is written to, from its beginning to its end.
pub struct Sink {
    kind: SinkKind,
    name: String,
}

enum SinkKind {
    /// A regular file, made of holes at first.
    Sparse(File),
    /// A device or a pipe: every byte is written.
    Dense(File),
    /// Standard output.
    Stdout,
}

impl Sink {
    /// Whether there is something at `path` that would be lost.
    #[must_use]
    pub fn would_overwrite(path: &Path) -> bool {
        path != Path::new("-")
            && path.metadata().is_ok_and(|found| match found.file_type() {
                kind if kind.is_file() => found.len() > 0,
                kind => kind.is_block_device(),
            })
    }

    /// Makes or empties the file; `-` is standard output.
    ///
    /// # Errors
    /// What the operating system said.
    pub fn create(path: &Path, size: ByteCount) -> Outcome<Sink> {
        if path == Path::new("-") {
            return Ok(Sink { kind: SinkKind::Stdout, name: "standard output".to_owned() });
        }
        let name = path.display().to_string();
        let failed = |error| open_error(&name, error);
        let file = OpenOptions::new().write(true).create(true).truncate(false).open(path).map_err(failed)?;
        let kind = if file.metadata().map_err(failed)?.is_file() {
            // Emptied first: what is not written afterwards reads as zeros.
            file.set_len(0).and_then(|()| file.set_len(size.0)).map_err(failed)?;
            SinkKind::Sparse(file)
        } else {
            SinkKind::Dense(file)
        };
        Ok(Sink { kind, name })
    }

    /// Writes data, behind all that was written before.
    ///
    /// # Errors
    /// What the operating system said.
    pub fn write(&mut self, offset: u64, data: &[u8]) -> Result<()> {
        let written = match &mut self.kind {
            SinkKind::Sparse(file) => file.write_all_at(data, offset),
            SinkKind::Dense(file) => file.write_all(data),
            SinkKind::Stdout => return output::data(data).map_err(|failure| failure.error),
        };
        written.map_err(|error| self.error(error))
    }

    /// Writes zeros, behind all that was written before; nothing where holes are kept.
    ///
    /// # Errors
    /// What the operating system said.
    pub fn zeros(&mut self, offset: u64, len: ByteCount) -> Result<()> {
        if matches!(self.kind, SinkKind::Sparse(_)) {
            return Ok(());
        }
        let zeros = vec![0; ZEROS_WRITTEN.min(usize::try_from(len.0).unwrap_or(ZEROS_WRITTEN))];
        let (mut at, end) = (offset, offset + len.0);
        while at < end {
            let count = usize::try_from(end - at).map_or(zeros.len(), |rest| rest.min(zeros.len()));
            self.write(at, &zeros[..count])?;
            at += count as u64;
        }
        Ok(())
    }

    /// Makes durable what was written, where that means something.
    ///
    /// # Errors
    /// What the operating system said.
    pub fn finish(self) -> Outcome {
        match &self.kind {
            SinkKind::Sparse(file) => file.sync_all().map_err(|error| self.error(error).into()),
            // A pipe cannot be synced; a device that can says so.
            SinkKind::Dense(file) => match file.sync_all() {
                Err(error) if error.kind() != io::ErrorKind::InvalidInput => Err(self.error(error).into()),
                _ => Ok(()),
            },
            SinkKind::Stdout => Ok(()),
        }
    }

    fn error(&self, error: io::Error) -> Error {
        let kind = match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => ErrorKind::NoSpace,
            _ => ErrorKind::Device,
        };
        Error::caused(kind, format!("writing {}", self.name), error)
    }
}

fn open_error(name: &str, error: io::Error) -> Error {
    let kind = match error.kind() {
        io::ErrorKind::NotFound => ErrorKind::NotFound,
        io::ErrorKind::StorageFull => ErrorKind::NoSpace,
        io::ErrorKind::PermissionDenied | io::ErrorKind::IsADirectory => ErrorKind::Invalid,
        _ => ErrorKind::Device,
    };
    Error::caused(kind, format!("opening {name}"), error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stretches_cover_a_chunk_and_spare_short_zeros() {
        let mut chunk = vec![0u8; 256 << 10];
        assert_eq!(stretches(&chunk), [(0..256 << 10, Stretch::Zeros)]);
        chunk[0] = 1;
        chunk[8192] = 1;
        assert_eq!(stretches(&chunk), [(0..12_288, Stretch::Data), (12_288..256 << 10, Stretch::Zeros)]);
        chunk[(64 << 10) + 12_287] = 1;
        chunk[(64 << 10) + 12_288] = 1;
        assert_eq!(
            stretches(&chunk),
            [(0..(64 << 10) + 16_384, Stretch::Data), ((64 << 10) + 16_384..256 << 10, Stretch::Zeros)]
        );
        assert_eq!(stretches(&[0; 100]), [(0..100, Stretch::Zeros)]);
        assert_eq!(stretches(&[]), []);
    }
}
