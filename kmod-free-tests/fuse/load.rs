//! A random load on files of any file system, beside a model of what they should hold: writes, reads,
//! truncations, holes, renames and removals.

use std::collections::BTreeMap;
use std::fs;
use std::fs::File;
use std::fs::OpenOptions;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::path::PathBuf;

use rustix::fs::FallocateFlags;
use sinter::sync::RandomSource as _;

use crate::pool::SeededRandom;

/// Largest file.
const FILE_BYTES_MAX: usize = 1 << 20;
/// Largest single write.
const WRITE_BYTES_MAX: usize = 100_000;
/// Names that are drawn from.
const FILES: u64 = 12;

/// Files in a directory, and what each should hold.
pub(crate) struct FileLoad {
    folder: PathBuf,
    seed: u64,
    random: SeededRandom,
    files: BTreeMap<String, Vec<u8>>,
}

impl FileLoad {
    /// An empty directory.
    pub(crate) fn new(folder: &Path, seed: u64) -> FileLoad {
        fs::create_dir_all(folder).unwrap();
        let random = SeededRandom::new(seed);
        FileLoad { folder: folder.to_owned(), seed, random, files: BTreeMap::new() }
    }

    fn below(&self, limit: usize) -> usize {
        (self.random.number() % limit as u64) as usize
    }

    fn name(&self) -> String {
        format!("file-{}", self.random.number() % FILES)
    }

    fn open(&self, name: &str) -> File {
        let path = self.folder.join(name);
        OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path).unwrap()
    }

    /// Runs so many steps; each that reads compares.
    pub(crate) fn run(&mut self, steps: u64) {
        for step in 0..steps {
            let name = self.name();
            let file = self.open(&name);
            let len = self.files.entry(name.clone()).or_default().len();
            let at = self.below(FILE_BYTES_MAX - WRITE_BYTES_MAX);
            let size = self.below(WRITE_BYTES_MAX) + 1;
            match self.random.number() % 12 {
                0..5 => self.write(&file, &name, at, size),
                5 if len > 0 => {
                    let from = self.below(len);
                    let size = size.min(len - from);
                    let mode = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
                    rustix::fs::fallocate(&file, mode, from as u64, size as u64).unwrap();
                    self.files.get_mut(&name).unwrap()[from..from + size].fill(0);
                }
                6 => {
                    file.set_len(at as u64).unwrap();
                    self.files.get_mut(&name).unwrap().resize(at, 0);
                }
                7 => file.sync_all().unwrap(),
                8 => {
                    let to = self.name();
                    fs::rename(self.folder.join(&name), self.folder.join(&to)).unwrap();
                    let bytes = self.files.remove(&name).unwrap();
                    self.files.insert(to, bytes);
                }
                9 => {
                    fs::remove_file(self.folder.join(&name)).unwrap();
                    self.files.remove(&name);
                }
                _ => self.compare(&file, &name, step),
            }
        }
    }

    fn write(&mut self, file: &File, name: &str, at: usize, size: usize) {
        let mut data = vec![0; size];
        self.random.fill(&mut data[..size / 2]);
        file.write_all_at(&data, at as u64).unwrap();
        let bytes = self.files.get_mut(name).unwrap();
        if bytes.len() < at + size {
            bytes.resize(at + size, 0);
        }
        bytes[at..at + size].copy_from_slice(&data);
    }

    #[track_caller]
    fn compare(&self, file: &File, name: &str, step: u64) {
        let expected = &self.files[name];
        assert_eq!(
            file.metadata().unwrap().len(),
            expected.len() as u64,
            "seed {}, step {step}: {name}",
            self.seed
        );
        let mut found = vec![0; expected.len()];
        file.read_exact_at(&mut found, 0).unwrap();
        let differs = found.iter().zip(expected).position(|(a, b)| a != b);
        assert_eq!(differs, None, "seed {}, step {step}: {name} differs at this byte", self.seed);
    }

    /// Reads all files, wherever the directory is now, and compares.
    #[track_caller]
    pub(crate) fn verify(&self, folder: &Path) {
        let mut names: Vec<String> = fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        assert_eq!(names, self.files.keys().cloned().collect::<Vec<_>>(), "seed {}", self.seed);
        for name in self.files.keys() {
            self.compare(&File::open(folder.join(name)).unwrap(), name, u64::MAX);
        }
    }
}
