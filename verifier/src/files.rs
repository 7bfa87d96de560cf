//! The files of a bundle, each compared with the manifest while it is read.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io::{BufRead, BufReader, Read as _},
    path::{Component, Path, PathBuf},
};

use orgstream_events::Fingerprint;
use sha2::{Digest as _, Sha256};

use crate::{CSV, JSONL, ListedFile, MANIFEST, Manifest, OCSF, Report};

/// The longest file that is read into memory: 256 entries of 64 KiB, or 256 payloads of 1 MB.
const MAX_FILE: u64 = 300 << 20;
/// The longest line that is compared.
const MAX_LINE: u64 = 16 << 20;

/// A bundle's folder.
pub(crate) struct Files {
    dir: PathBuf,
    listed: BTreeMap<String, ListedFile>,
    read: BTreeSet<String>,
}

impl Files {
    pub(crate) fn new(dir: &Path, manifest: &Manifest) -> Self {
        let listed = manifest.files.iter().map(|file| (file.path.clone(), file.clone())).collect();
        Self { dir: dir.to_owned(), listed, read: BTreeSet::new() }
    }

    pub(crate) fn has(&self, path: &str) -> bool {
        self.listed.contains_key(path)
    }

    /// The listed files whose path begins with `folder`.
    pub(crate) fn below(&self, folder: &str) -> Vec<String> {
        self.listed.keys().filter(|path| path.starts_with(folder)).cloned().collect()
    }

    fn open(&self, path: &str) -> Result<(File, &ListedFile), String> {
        let listed = self.listed.get(path).ok_or_else(|| "is not in the manifest".to_owned())?;
        if !Path::new(path).components().all(|part| matches!(part, Component::Normal(_))) {
            return Err("leads out of the bundle".to_owned());
        }
        Ok((File::open(self.dir.join(path)).map_err(|error| format!("cannot be read: {error}"))?, listed))
    }

    /// Reads a whole file; deviations from the manifest are reported.
    pub(crate) fn read(&mut self, path: &str, report: &mut Report) -> Option<Vec<u8>> {
        self.read.insert(path.to_owned());
        let opened = self.open(path).and_then(|(file, listed)| {
            let mut bytes = Vec::new();
            file.take(MAX_FILE + 1).read_to_end(&mut bytes).map_err(|error| format!("cannot be read: {error}"))?;
            if bytes.len() as u64 > MAX_FILE {
                return Err(format!("is longer than {MAX_FILE} bytes"));
            }
            let same = listed.bytes == bytes.len() as u64 && listed.sha256 == Fingerprint::of(&[&bytes]);
            Ok((bytes, same))
        });
        match opened {
            Ok((bytes, same)) => {
                if !same {
                    report.invalid(path, DIFFERS);
                }
                Some(bytes)
            }
            Err(error) => {
                report.invalid(path, error);
                None
            }
        }
    }

    /// Opens a file that is compared line by line.
    pub(crate) fn lines(&mut self, path: &'static str, report: &mut Report) -> Option<Lines> {
        self.read.insert(path.to_owned());
        match self.open(path) {
            Ok((file, listed)) => {
                let expected = (listed.bytes, listed.sha256);
                let (reader, hash) = (BufReader::with_capacity(1 << 18, file), Sha256::new());
                Some(Lines { path, reader, hash, bytes: 0, expected, line: Vec::new(), failed: false })
            }
            Err(error) => {
                report.invalid(path, error);
                None
            }
        }
    }

    /// Checks the files that were not read yet, and those in the folder that are not listed.
    pub(crate) fn finish(&mut self, report: &mut Report) {
        let left: Vec<String> = self.listed.keys().filter(|path| !self.read.contains(*path)).cloned().collect();
        for path in left {
            self.read(&path, report);
        }
        let mut folders = vec![self.dir.clone()];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
                let path = entry.path();
                if path.is_dir() {
                    folders.push(path);
                    continue;
                }
                let name = path.strip_prefix(&self.dir).unwrap_or(&path).to_string_lossy().into_owned();
                if [JSONL, CSV, OCSF].contains(&&*name) && !self.listed.contains_key(&name) {
                    // Its readers would take it for a part of what was verified.
                    report.invalid(&name, "lies in the bundle, and the manifest does not name it");
                } else if name != MANIFEST && !self.listed.contains_key(&name) {
                    report.notes.push(format!("{name} is not part of the bundle and was not looked at"));
                }
            }
        }
    }
}

const DIFFERS: &str = "is not the file that the manifest names";

/// A file of lines.
pub(crate) struct Lines {
    path: &'static str,
    reader: BufReader<File>,
    hash: Sha256,
    bytes: u64,
    expected: (u64, Fingerprint),
    line: Vec<u8>,
    failed: bool,
}

impl Lines {
    fn next(&mut self) -> Option<&[u8]> {
        self.line.clear();
        let read = (&mut self.reader).take(MAX_LINE).read_until(b'\n', &mut self.line).ok()?;
        self.hash.update(&self.line);
        self.bytes += read as u64;
        self.line.strip_suffix(b"\n")
    }

    /// Compares the next line with `text`. A row of a table may have newlines, so it can be several.
    pub(crate) fn expect(&mut self, text: &str, idx: Option<u64>, report: &mut Report) {
        if self.failed {
            return;
        }
        let same = text.split('\n').all(|part| self.next() == Some(part.as_bytes()));
        if !same {
            // The rest may be shifted, and would be reported line by line.
            self.failed = true;
            let what = "the line does not say what the entry says";
            report.find(crate::Outcome::Invalid, Some(self.path), idx, what);
        }
    }

    /// Skips a line.
    pub(crate) fn skip(&mut self) {
        self.next();
    }

    /// Reports any remaining lines.
    pub(crate) fn finish(mut self, report: &mut Report) {
        let whole = self.failed || self.next().is_none() && self.line.is_empty();
        if !whole {
            report.invalid(self.path, "has lines that belong to no entry");
        }
        while !self.line.is_empty() {
            self.next();
        }
        if self.expected != (self.bytes, Fingerprint(self.hash.finalize().into())) {
            report.invalid(self.path, DIFFERS);
        }
    }
}
