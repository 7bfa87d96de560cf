//! Keys in a folder: the secret half for its owner alone, the public half to be handed out.

use std::{fs, path::Path};

use anyhow::{Context, bail};
use orgstream_transparency::{KeyName, Role, SignerKey};

use crate::servers::write_private;

/// A pair of files, `<name>.key` and `<name>.vkey`.
#[derive(Debug, Clone, Copy)]
pub struct KeyFiles<'a> {
    dir: &'a Path,
    name: &'static str,
}

impl<'a> KeyFiles<'a> {
    /// The key that signs audit logs.
    pub fn of_log(dir: &'a Path) -> Self {
        Self { dir, name: "log" }
    }

    /// The key of a witness.
    pub fn of_witness(dir: &'a Path) -> Self {
        Self { dir, name: "witness" }
    }

    /// Whether there is a key.
    pub fn exist(&self) -> bool {
        self.dir.join(format!("{}.key", self.name)).exists()
    }

    /// Reads the key.
    pub fn load<R: Role>(&self) -> anyhow::Result<SignerKey<R>> {
        let path = self.dir.join(format!("{}.key", self.name));
        let text = fs::read_to_string(&path).with_context(|| format!("there is no key at {}", path.display()))?;
        text.trim_end().parse().with_context(|| format!("{} is not the key of a {}", path.display(), self.name))
    }

    /// Makes a key, and refuses to replace one.
    pub fn make<R: Role>(&self, name: KeyName) -> anyhow::Result<SignerKey<R>> {
        if self.exist() {
            bail!("there is a key in {} already: whoever pinned it would not know another", self.dir.display());
        }
        fs::create_dir_all(self.dir).with_context(|| format!("{} cannot be made", self.dir.display()))?;
        let key = SignerKey::from_seed(name, &rand::random());
        let file = |end: &str| self.dir.join(format!("{}.{end}", self.name));
        // The public half first: a secret that nobody can check would be the harder one to explain.
        fs::write(file("vkey"), format!("{}\n", key.verifier())).context("the public key cannot be written")?;
        write_private(&file("key"), format!("{}\n", key.to_secret_text()).as_bytes())?;
        Ok(key)
    }
}
