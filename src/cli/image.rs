//! Images on the user's side: a file, a device or a stream, and where they are zero.

use std::fs::File;
use std::fs::Metadata;
use std::fs::OpenOptions;
use std::io;
use std::io::Read;
use std::io::Seek;
use std::io::SeekFrom;
use std::io::Write;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::path::PathBuf;

use signal_hook::consts::SIGHUP;
use signal_hook::consts::SIGINT;
use signal_hook::consts::SIGTERM;
use signal_hook::iterator::Signals;

use crate::cli::output;
use crate::daemon::failure::ExitStatus;
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
    /// A regular file, made of holes at first, that gets its name at the end.
    Sparse(Draft),
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

    /// Opens a device or a pipe; `-` is standard output. Anything else becomes a regular file of this size when
    /// `finish` is called, and is left as it is until then.
    ///
    /// # Errors
    /// What the operating system said.
    pub fn create(path: &Path, size: ByteCount) -> Outcome<Sink> {
        if path == Path::new("-") {
            return Ok(Sink { kind: SinkKind::Stdout, name: "standard output".to_owned() });
        }
        let name = path.display().to_string();
        let failed = |error| open_error(&name, error);
        let found = match path.metadata() {
            Ok(found) => Some(found),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(failed(error).into()),
        };
        let kind = match found {
            Some(found) if !found.is_file() => {
                SinkKind::Dense(OpenOptions::new().write(true).open(path).map_err(failed)?)
            }
            found => SinkKind::Sparse(Draft::create(path, found.as_ref(), size).map_err(failed)?),
        };
        Ok(Sink { kind, name })
    }

    /// Writes data, behind all that was written before.
    ///
    /// # Errors
    /// What the operating system said.
    pub fn write(&mut self, offset: u64, data: &[u8]) -> Result<()> {
        let written = match &mut self.kind {
            SinkKind::Sparse(draft) => draft.file.write_all_at(data, offset),
            SinkKind::Dense(file) => file.write_all(data),
            SinkKind::Stdout => return output::piece(data),
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

    /// Makes durable what was written, where that means something, and gives a regular file its name.
    ///
    /// # Errors
    /// What the operating system said.
    pub fn finish(mut self) -> Outcome {
        let finished = match &mut self.kind {
            SinkKind::Sparse(draft) => draft.finish(),
            // A pipe cannot be synced; a device that can says so.
            SinkKind::Dense(file) => match file.sync_all() {
                Err(error) if error.kind() != io::ErrorKind::InvalidInput => Err(error),
                _ => Ok(()),
            },
            SinkKind::Stdout => Ok(()),
        };
        finished.map_err(|error| self.error(error).into())
    }

    fn error(&self, error: io::Error) -> Error {
        let kind = match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => ErrorKind::NoSpace,
            _ => ErrorKind::Device,
        };
        Error::caused(kind, format!("writing {}", self.name), error)
    }
}

/// A file under another name beside the one that it gets once it is whole. It goes away where that does not come to
/// be, also when the user interrupts the command.
struct Draft {
    file: File,
    path: PathBuf,
    target: PathBuf,
}

impl Draft {
    /// Makes the file, with the owner and the mode of the one that it is to replace, if there is one.
    fn create(path: &Path, replaced: Option<&Metadata>, size: ByteCount) -> io::Result<Draft> {
        let target = if replaced.is_some() { path.canonicalize()? } else { std::path::absolute(path)? };
        let name = format!(".sinter-export-{}.part", std::process::id());
        let path = target.parent().unwrap_or(Path::new("/")).join(name);
        remove_when_interrupted(&path)?;
        let file = OpenOptions::new().write(true).create(true).truncate(true).open(&path)?;
        let draft = Draft { file, path, target };
        if let Some(replaced) = replaced {
            // Only the superuser may give a file away; for anyone else it is theirs.
            let _ = std::os::unix::fs::fchown(&draft.file, Some(replaced.uid()), Some(replaced.gid()));
            draft.file.set_permissions(replaced.permissions())?;
        }
        draft.file.set_len(size.0)?;
        Ok(draft)
    }

    fn finish(&mut self) -> io::Result<()> {
        self.file.sync_all()?;
        std::fs::rename(&self.path, &self.target)?;
        match self.target.parent() {
            Some(directory) => File::open(directory)?.sync_all(),
            None => Ok(()),
        }
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        // Once it has got its name there is nothing under this one.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// From now on the process takes the file away when it is asked to end.
fn remove_when_interrupted(path: &Path) -> io::Result<()> {
    let mut signals = Signals::new([SIGHUP, SIGINT, SIGTERM])?;
    let path = path.to_owned();
    let wait = move || {
        if signals.forever().next().is_some() {
            let _ = std::fs::remove_file(&path);
            std::process::exit(i32::from(ExitStatus::Interrupted as u8));
        }
    };
    std::thread::Builder::new().name("signals".to_owned()).spawn(wait).map(drop)
}

fn open_error(name: &str, error: io::Error) -> Error {
    let kind = match error.kind() {
        io::ErrorKind::NotFound => ErrorKind::NotFound,
        io::ErrorKind::StorageFull => ErrorKind::NoSpace,
        io::ErrorKind::PermissionDenied
        | io::ErrorKind::IsADirectory
        | io::ErrorKind::NotADirectory
        | io::ErrorKind::InvalidFilename => ErrorKind::Invalid,
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
