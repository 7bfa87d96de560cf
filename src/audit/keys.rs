//! Keys in a folder: the secret half for its owner alone, the public half to be distributed.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};
use orgstream_servers::write_private;
use orgstream_transparency::{HandOver, KeyName, Log, Role, SignedNote, SignerKey};

/// A pair of files, `<name>.key` and `<name>.vkey`.
#[derive(Debug, Clone, Copy)]
pub struct KeyFiles<'a> {
    dir: &'a Path,
    name: &'static str,
}

impl<'a> KeyFiles<'a> {
    /// Names the key that signs audit logs.
    pub fn of_log(dir: &'a Path) -> Self {
        Self { dir, name: "log" }
    }

    /// Names the key of a witness.
    pub fn of_witness(dir: &'a Path) -> Self {
        Self { dir, name: "witness" }
    }

    /// Whether there is a key.
    pub fn exist(&self) -> bool {
        self.dir.join(format!("{}.key", self.name)).exists()
    }

    /// Returns the file with the public half.
    pub fn public(&self) -> PathBuf {
        self.dir.join(format!("{}.vkey", self.name))
    }

    /// Loads the key.
    pub fn load<R: Role>(&self) -> anyhow::Result<SignerKey<R>> {
        let path = self.dir.join(format!("{}.key", self.name));
        let text = fs::read_to_string(&path).with_context(|| format!("there is no key at {}", path.display()))?;
        text.trim_end().parse().with_context(|| format!("{} is not the key of a {}", path.display(), self.name))
    }

    /// Returns the notes by which earlier keys of this folder handed over to the next.
    pub fn handovers(&self) -> anyhow::Result<Vec<SignedNote>> {
        let mut notes = Vec::new();
        for entry in fs::read_dir(self.dir).with_context(|| format!("{} cannot be read", self.dir.display()))? {
            let path = entry?.path();
            if path.extension().is_some_and(|end| end == "handover") {
                let read = SignedNote::parse(&fs::read(&path)?).ok().filter(|note| HandOver::read(note).is_ok());
                notes.push(read.with_context(|| format!("{} is no hand-over", path.display()))?);
            }
        }
        Ok(notes)
    }

    /// Replaces the present key by a new one, which the old one signs; the old one is kept beside it.
    pub fn hand_over(&self) -> anyhow::Result<SignerKey<Log>> {
        let old = self.load::<Log>()?;
        let new = SignerKey::from_seed(old.verifier().name().clone(), &rand::random());
        let id = old.verifier().id().map(|byte| format!("{byte:02x}")).concat();
        let file = |end: &str| self.dir.join(format!("{}{end}", self.name));
        // The note first: a key without a chain from the old one must not come into use.
        fs::write(file(&format!("-{id}.handover")), HandOver::sign(&old, &new).to_string())?;
        fs::rename(file(".key"), file(&format!("-{id}.key")))?;
        fs::write(file(".vkey"), format!("{}\n", new.verifier()))?;
        write_private(&file(".key"), format!("{}\n", new.to_secret_text()).as_bytes())?;
        Ok(new)
    }

    /// Creates a key, and refuses to replace one.
    pub fn make<R: Role>(&self, name: KeyName) -> anyhow::Result<SignerKey<R>> {
        if self.exist() {
            bail!("there is a key in {} already: a client that pinned it would not know another", self.dir.display());
        }
        fs::create_dir_all(self.dir).with_context(|| format!("{} cannot be made", self.dir.display()))?;
        let key = SignerKey::from_seed(name, &rand::random());
        let file = |end: &str| self.dir.join(format!("{}.{end}", self.name));
        // The public half first: a secret without it could not be verified.
        fs::write(file("vkey"), format!("{}\n", key.verifier())).context("the public key cannot be written")?;
        write_private(&file("key"), format!("{}\n", key.to_secret_text()).as_bytes())?;
        Ok(key)
    }
}
