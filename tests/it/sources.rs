//! The sources of the product, for tests about what stands in them.

use std::{fs, path::Path};

/// The product's crates, by the folder of their sources.
pub(crate) const PRODUCT: &[&str] = &[
    "src",
    "domain/src",
    "events/src",
    "projections/src",
    "servers/src",
    "stream/src",
    "transparency/src",
    "verifier/src",
    "workers/src",
];

/// One source file.
pub(crate) struct Source {
    /// The path in the checkout.
    pub(crate) path: String,
    /// The content.
    pub(crate) text: String,
}

impl Source {
    /// The content besides tests.
    pub(crate) fn product(&self) -> &str {
        if self.path.ends_with("/tests.rs") || self.path.contains("/tests/") {
            return "";
        }
        self.text.split("#[cfg(test)]\nmod tests {").next().unwrap()
    }
}

/// The Rust sources in these files and folders of the checkout, in the order of their paths.
pub(crate) fn sources(places: &[&str]) -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut left: Vec<_> = places.iter().map(|place| root.join(place)).collect();
    let mut found = Vec::new();
    while let Some(path) = left.pop() {
        if path.is_dir() {
            left.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(&path).unwrap();
            found.push(Source { path: path.strip_prefix(root).unwrap().display().to_string(), text });
        }
    }
    assert!(found.len() >= places.len(), "no sources in {places:?}");
    found.sort_by(|a, b| a.path.cmp(&b.path));
    found
}
