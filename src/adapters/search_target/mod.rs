//! Search targets: the file of the settings that names them, and OpenSearch.

mod opensearch;

use std::{collections::BTreeMap, fs, io::Read as _, path::Path};

use anyhow::Context;
use orgstream_projections::{
    DatabaseOptions, Passwords,
    search::{
        PostgresTarget,
        target::{NamedTarget, SearchTargets, check_target_name},
    },
};
use serde::Deserialize;
use zeroize::Zeroizing;

pub use opensearch::{OpenSearch, OpenSearchOptions};

/// The largest file of targets, and the largest one with a secret.
const MAX_FILE: u64 = 1 << 20;
const MAX_SECRET: u64 = 8 << 10;
/// The connections of a process to a PostgreSQL target: for writing, and for everything else.
const WRITING: u32 = 4;
const READING: u32 = 8;

/// The content of the file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TargetFile {
    targets: BTreeMap<String, TargetOptions>,
}

/// One target. Secrets are in files of their own.
#[derive(Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
enum TargetOptions {
    Postgres { url: String, password_file: Option<String> },
    Opensearch(OpenSearchOptions),
}

/// Reads the targets that a file names.
pub fn load(path: &Path) -> anyhow::Result<SearchTargets> {
    let text = read(path, MAX_FILE)?;
    // Errors of the parser may repeat what they have read, and the addresses may have logins.
    let file: TargetFile = serde_json::from_str(&text).map_err(|error| {
        let (line, column) = (error.line(), error.column());
        anyhow::anyhow!("{}: line {line}, column {column}: this is no file of search targets", path.display())
    })?;
    let targets = file.targets.into_iter().map(|(name, options)| {
        check_target_name(&name).map_err(|rule| anyhow::anyhow!(rule))?;
        target(&name, options).with_context(|| format!("the search target {name}"))
    });
    Ok(SearchTargets::new(targets.collect::<anyhow::Result<Vec<_>>>()?))
}

fn target(name: &str, options: TargetOptions) -> anyhow::Result<NamedTarget> {
    match options {
        TargetOptions::Postgres { url, password_file } => {
            let password = password_file.map(|path| read(Path::new(&path), MAX_SECRET)).transpose()?;
            let address = crate::secret::Address::from(url.clone()).to_string();
            let options = DatabaseOptions {
                url,
                passwords: Passwords::new(password.map(|text| text.trim_end().to_owned()), []),
                rw_connections: WRITING,
                ro_connections: READING,
            };
            Ok(NamedTarget::new(name.to_owned(), "postgres", address, PostgresTarget::new(&options)?))
        }
        TargetOptions::Opensearch(options) => {
            let target = OpenSearch::new(options)?;
            let address = target.address();
            Ok(NamedTarget::new(name.to_owned(), "opensearch", address, target))
        }
    }
}

/// Reads a file that has at most so many bytes.
fn read(path: &Path, most: u64) -> anyhow::Result<Zeroizing<String>> {
    let file = fs::File::open(path).with_context(|| format!("{} cannot be read", path.display()))?;
    let mut text = Zeroizing::new(String::new());
    file.take(most + 1).read_to_string(&mut text).with_context(|| format!("{} cannot be read", path.display()))?;
    anyhow::ensure!(text.len() as u64 <= most, "{} has more than {most} bytes", path.display());
    Ok(text)
}

#[cfg(test)]
mod tests {
    use orgstream_events::Chain;

    use super::*;

    fn loaded(text: &str) -> Result<SearchTargets, String> {
        let path = std::env::temp_dir().join(format!("orgstream-targets-{}", std::process::id()));
        fs::write(&path, text).unwrap();
        let loaded = load(&path).map_err(|error| Chain(error.as_ref()).to_string());
        fs::remove_file(&path).unwrap();
        loaded
    }

    #[tokio::test]
    async fn a_file_names_targets_and_shows_no_secret() {
        let targets = loaded(
            r#"{"targets": {
                "large": {"type": "opensearch", "url": "https://hidden:hidden@search.example:9200"},
                "other": {"type": "postgres", "url": "postgres://hidden:hidden@db.example/search"}
            }}"#,
        )
        .unwrap();
        let shown: Vec<_> = targets.all().map(|one| (one.name(), one.kind(), one.address())).collect();
        assert_eq!(
            shown,
            [
                ("large", "opensearch", "https://search.example:9200"),
                ("other", "postgres", "postgres://db.example/search")
            ]
        );
        assert!(!format!("{targets:?}").contains("hidden"), "{targets:?}");
        for (text, said) in [
            ("", "line 1"),
            (r#"{"targets": {"a": {"type": "hidden"}}}"#, "no file of search targets"),
            (r#"{"targets": {"default": {"type": "opensearch", "url": "https://a"}}}"#, "default"),
            (r#"{"targets": {"a": {"type": "opensearch", "url": "ftp://hidden"}}}"#, "http"),
            (r#"{"targets": {"a": {"type": "opensearch", "url": "https://a", "prefix": "_A"}}}"#, "prefix"),
            (
                r#"{"targets": {"a": {"type": "opensearch", "url": "http://a.example", "authorization_file": "/x"}}}"#,
                "https",
            ),
        ] {
            let refused = loaded(text).unwrap_err();
            assert!(refused.contains(said) && !refused.contains("hidden"), "{refused}");
        }
    }
}
