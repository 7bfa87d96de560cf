//! The documents against the declarations: the generated pages, the map, the recipes, links, and how long a page may be.
//!
//! `DOCS_WRITE=1` writes the generated pages anew.

use std::{
    collections::{BTreeMap, BTreeSet},
    env, fs,
    path::{Path, PathBuf},
};

use orgstream::{
    api::http::kit::{openapi::spec, permission_table::permissions_page, route_table::routes_page},
    app::error_codes,
    cli::reference::{cli_page, settings_page},
    telemetry::metrics,
};
use serde_json::Value;

/// The folders with sources of the product, each a line of the map.
const CRATES: [&str; 10] =
    ["events", "domain", "stream", "transparency", "verifier", "projections", "workers", "servers", "bench", "."];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// All files below a folder, in their order; none when there is no such folder.
fn files(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths.into_iter().flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect()
}

pub(crate) fn with_extension(folder: &str, extension: &str) -> Vec<PathBuf> {
    files(&root().join(folder))
        .into_iter()
        .filter(|path| path.extension().is_some_and(|end| end == extension))
        .collect()
}

pub(crate) fn name(path: &Path) -> String {
    path.strip_prefix(root()).unwrap().to_string_lossy().into_owned()
}

/// Every document, but for licences.
fn documents() -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> =
        ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md", "tests/acceptance.md"]
            .map(|name| root().join(name))
            .into();
    found.extend(with_extension("docs", "md"));
    found
}

/// Where a page is, and what makes it.
type Page = (&'static str, fn() -> String);

/// The generated pages, in an order in which later ones may be made of earlier ones.
const PAGES: [Page; 11] = [
    ("docs/reference/settings.md", settings_page),
    ("docs/reference/cli.md", cli_page),
    ("docs/reference/routes.md", routes_page),
    ("docs/reference/permissions.md", permissions_page),
    ("docs/reference/errors.md", error_codes::page),
    ("docs/reference/metrics.md", metrics::page),
    ("docs/reference/source.md", source_page),
    ("tests/acceptance.md", acceptance_page),
    ("docs/how-to/README.md", || index("docs/how-to", "How to", "One task a page.")),
    ("docs/reference/README.md", || index("docs/reference", "Reference", "Made from the declarations in the code.")),
    ("docs/decisions/README.md", || {
        index("docs/decisions", "Decisions", "One decision a page: what, why, the figures, what was tried.")
    }),
];

#[test]
fn generated_pages_are_what_is_declared() {
    let mut old = Vec::new();
    for (path, page) in PAGES {
        let page = page();
        if env::var_os("DOCS_WRITE").is_some() {
            fs::create_dir_all(root().join(path).parent().unwrap()).unwrap();
            fs::write(root().join(path), &page).unwrap();
        }
        if fs::read_to_string(root().join(path)).unwrap_or_default() != page {
            old.push(path);
        }
    }
    assert!(old.is_empty(), "old pages; DOCS_WRITE=1 writes them anew: {old:?}");
}

#[test]
fn every_variable_that_is_read_is_on_the_page_of_settings() {
    let page = settings_page();
    let mut missing = BTreeSet::new();
    for folder in ["src", "servers/src", "verifier/src"] {
        for path in with_extension(folder, "rs") {
            let text = fs::read_to_string(path).unwrap();
            let text = text.split("#[cfg(test)]").next().unwrap();
            for part in text.split("\"ORGSTREAM_").skip(1) {
                let end = part
                    .find(|c: char| !c.is_ascii_uppercase() && !c.is_ascii_digit() && c != '_')
                    .unwrap_or(part.len());
                let variable = format!("ORGSTREAM_{}", &part[..end]);
                if !page.contains(&format!("`{variable}`")) {
                    missing.insert(variable);
                }
            }
        }
    }
    // A private server tells its watchdog by it; no setting.
    missing.remove("ORGSTREAM_TEST_PARENT_OF");
    assert!(missing.is_empty(), "read, and not declared: {missing:?}");
}

/// The sources with their first sentence.
fn source_page() -> String {
    let mut page = "# Source files\n\nEvery source file of the product with its own first sentence. [ARCHITECTURE.md](../../ARCHITECTURE.md) \
                    has the larger picture. Written by `DOCS_WRITE=1` from the files.\n"
        .to_owned();
    for folder in CRATES {
        let sources = if folder == "." { "src".to_owned() } else { format!("{folder}/src") };
        page.push_str(&format!("\n## {sources}/\n\n| file | purpose |\n|---|---|\n"));
        for path in with_extension(&sources, "rs") {
            let text = fs::read_to_string(&path).unwrap();
            let head: Vec<&str> = text
                .lines()
                .map_while(|line| line.strip_prefix("//!"))
                .map(str::trim)
                .take_while(|line| !line.is_empty())
                .collect();
            let head = head.join(" ");
            let sentence = head.split_inclusive(". ").next().unwrap_or_default().trim().replace('|', "\\|");
            let is_test = path.components().any(|part| part.as_os_str() == "tests" || part.as_os_str() == "tests.rs");
            if !is_test {
                assert!(!sentence.is_empty(), "{} does not open with what it is", name(&path));
                let short = name(&path).strip_prefix(&format!("{sources}/")).unwrap().to_owned();
                page.push_str(&format!("| `{short}` | {sentence} |\n"));
            }
        }
    }
    page
}

#[test]
fn every_crate_and_every_folder_is_on_the_map() {
    let map = read("ARCHITECTURE.md");
    let mut folders = BTreeSet::new();
    for entry in CRATES {
        let sources = if entry == "." { "src".to_owned() } else { format!("{entry}/src") };
        if entry != "." {
            assert!(map.contains(&format!("`{entry}/`")), "{entry}/ is not on the map");
        }
        for path in with_extension(&sources, "rs") {
            let folder = path.parent().unwrap();
            if folder != root().join(&sources) && folder.file_name().is_some_and(|name| name != "tests") {
                folders.insert(name(folder));
            }
        }
    }
    let missing: Vec<&String> = folders.iter().filter(|folder| !map.contains(&format!("`{folder}/`"))).collect();
    assert!(missing.is_empty(), "not on the map: {missing:?}");
    for document in ["ARCHITECTURE.md", "CONTRIBUTING.md"] {
        assert_eq!(lost_paths(document), Vec::<String>::new(), "{document} names what does not exist");
    }
}

/// The paths between backticks that lead nowhere: what has a slash and begins with a folder of the checkout.
fn lost_paths(document: &str) -> Vec<String> {
    let text = read(document);
    let named = text.split('`').skip(1).step_by(2).filter(|word| {
        let folder = word.split('/').next().unwrap_or_default();
        word.contains('/')
            && !word.contains(['<', '{', ' ', '*', '$', '…'])
            && !folder.is_empty()
            && (root().join(folder).is_dir() || Path::new(word).extension().is_some_and(|end| end == "rs"))
    });
    named.filter(|word| !root().join(word).exists()).map(str::to_owned).collect()
}

#[test]
fn every_link_leads_somewhere() {
    let mut broken = Vec::new();
    for path in documents() {
        let text = fs::read_to_string(&path).unwrap();
        for part in text.split("](").skip(1) {
            let target = part.split(')').next().unwrap();
            if target.contains("://") || target.contains(' ') || target.is_empty() {
                continue;
            }
            let (file, anchor) = target.split_once('#').unwrap_or((target, ""));
            let file = if file.is_empty() { path.clone() } else { path.parent().unwrap().join(file) };
            let anchors =
                |text: &str| text.lines().filter(|line| line.starts_with('#')).map(slug).collect::<BTreeSet<_>>();
            let found = match fs::read_to_string(&file) {
                Ok(text) => anchor.is_empty() || anchors(&text).contains(anchor),
                Err(_) => file.is_dir() && anchor.is_empty(),
            };
            if !found {
                broken.push(format!("{}: {target}", name(&path)));
            }
        }
    }
    assert!(broken.is_empty(), "{broken:#?}");
}

/// The anchor of a heading, as Git hosts make it.
fn slug(heading: &str) -> String {
    let text = heading.trim_start_matches('#').trim().to_lowercase();
    let kept = text.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
    kept.map(|c| if c == ' ' { '-' } else { c }).collect()
}

#[test]
fn pages_are_as_short_as_they_promise() {
    let mut long = Vec::new();
    for path in documents() {
        let most = match name(&path).as_str() {
            "README.md" => 200,
            "ARCHITECTURE.md" => 250,
            // An index has a line for each page.
            name if name.ends_with("/README.md") => continue,
            name if name.starts_with("docs/decisions/") || name.starts_with("docs/how-to/") => 60,
            _ => continue,
        };
        let lines = fs::read_to_string(&path).unwrap().lines().count();
        if lines > most {
            long.push(format!("{}: {lines} lines, at most {most}", name(&path)));
        }
    }
    assert!(long.is_empty(), "{long:#?}");
}

/// A list of the pages of a folder by their titles.
fn index(folder: &str, title: &str, about: &str) -> String {
    let mut page = format!("# {title}\n\n{about} Written by `DOCS_WRITE=1` from the titles of the pages.\n\n");
    for path in with_extension(folder, "md") {
        let file = path.file_name().unwrap().to_string_lossy().into_owned();
        if file != "README.md" {
            let text = fs::read_to_string(&path).unwrap();
            let heading = text.lines().next().and_then(|line| line.strip_prefix("# "));
            let heading = heading.unwrap_or_else(|| panic!("{file} begins with its title"));
            // A decision is named by its number.
            let number = file.get(..4).filter(|number| number.parse::<u32>().is_ok());
            assert!(number.is_none_or(|number| heading.starts_with(&format!("{number}: "))), "{file}: {heading}");
            page.push_str(&format!("* [{heading}]({file})\n"));
        }
    }
    page
}

#[test]
fn documents_speak_of_the_field_in_plain_words() {
    let banned = ["whoever", "somebody", "anybody", "nobody", "everybody"];
    let mut found = Vec::new();
    for path in documents() {
        let file = name(&path);
        // These quote the code, or what was changed.
        if file.starts_with("docs/reference/source") || file.starts_with("tests/") || file == "CHANGELOG.md" {
            continue;
        }
        for (at, line) in fs::read_to_string(&path).unwrap().lines().enumerate() {
            let line = line.to_lowercase();
            // A code that programs match on.
            let line = line.replace("operator_is_nobody", "");
            if let Some(word) = banned.iter().find(|word| line.contains(*word)) {
                found.push(format!("{file}:{}: {word}", at + 1));
            }
        }
    }
    assert!(found.is_empty(), "{found:#?}");
}

/// Every field of a schema with its description, below `path`.
fn fields(path: &str, schema: &Value, found: &mut Vec<(String, Option<String>)>) {
    for (name, field) in schema["properties"].as_object().into_iter().flatten() {
        let here = format!("{path}.{name}");
        let description = field["description"].as_str().map(str::to_owned);
        fields(&here, field, found);
        found.push((here, description));
    }
    for word in ["oneOf", "anyOf", "allOf"] {
        for choice in schema[word].as_array().into_iter().flatten() {
            fields(path, choice, found);
        }
    }
    for word in ["items", "additionalProperties"] {
        if schema[word].is_object() {
            fields(&format!("{path}[]"), &schema[word], found);
        }
    }
}

#[test]
fn every_field_of_the_api_has_a_description_for_a_stranger() {
    let questions = ["Which", "Who", "Whose", "Whom", "Why", "What", "Where", "When", "How", "Whether"];
    let document = &spec().document;
    let mut found = Vec::new();
    for (name, schema) in document["components"]["schemas"].as_object().unwrap() {
        fields(name, schema, &mut found);
    }
    assert!(found.len() > 300, "{}", found.len());
    let poor = |(_, description): &&(String, Option<String>)| {
        let text = description.as_deref().unwrap_or_default();
        let first = text.split(|c: char| !c.is_alphanumeric()).next().unwrap_or_default();
        text.chars().count() < 12 || questions.contains(&first)
    };
    let poor: Vec<_> = found.iter().filter(poor).collect();
    assert!(poor.is_empty(), "a noun, its format, unit and limit: {poor:#?}");
}

/// The acceptance numbers in a line: `S1.2` of a comment, `s1_2_` of a test's name.
fn numbers(text: &str, separator: char) -> Vec<(u32, u32)> {
    let mut found = Vec::new();
    for word in text.split(|c: char| !c.is_ascii_alphanumeric() && c != separator) {
        let mut left = word;
        while let Some(rest) = left.strip_prefix(['S', 's']) {
            let Some((first, rest)) = rest.split_once(separator) else { break };
            let end = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
            let (Ok(first), Ok(second)) = (first.parse(), rest[..end].parse()) else { break };
            found.push((first, second));
            left = rest[end..].trim_start_matches(separator);
        }
    }
    found
}

/// Every acceptance number with its tests.
fn acceptance() -> BTreeMap<(u32, u32), BTreeSet<String>> {
    let mut found: BTreeMap<(u32, u32), BTreeSet<String>> = BTreeMap::new();
    let folders = [
        "tests/it",
        "src",
        "bench/src",
        "domain/src",
        "events/src",
        "events/tests",
        "projections/src",
        "stream/src",
        "workers/src",
    ];
    for path in folders.iter().flat_map(|folder| with_extension(folder, "rs")) {
        let text = fs::read_to_string(&path).unwrap();
        let (mut above, mut current) = (Vec::new(), None::<String>);
        let mut is_test = false;
        for line in text.lines() {
            let code = line.trim_start();
            if let Some(comment) = code.strip_prefix("// ") {
                above.extend(numbers(comment, '.'));
                continue;
            }
            is_test |= code.starts_with("#[test]") || code.starts_with("#[tokio::test");
            if code.starts_with("#[") {
                continue;
            }
            let function =
                code.split_once("fn ").map(|(_, rest)| rest.split('(').next().unwrap_or_default().to_owned());
            if let Some(function) = function.filter(|_| is_test) {
                is_test = false;
                above.extend(numbers(&function, '_'));
                current = Some(format!("`{}` in `{}`", function, name(&path)));
            }
            if !above.is_empty()
                && let Some(test) = &current
            {
                for number in above.drain(..) {
                    found.entry(number).or_default().insert(test.clone());
                }
            }
        }
    }
    found
}

fn acceptance_page() -> String {
    let mut page = "# Acceptance\n\nThe acceptance numbers and the tests that prove them. A test says its numbers in its name \
                    (`s1_2_...`) or in a comment above it or in it (`// S1.2`). Written by `DOCS_WRITE=1` from those.\n\n\
                    | number | tests |\n|---|---|\n"
        .to_owned();
    for ((section, number), tests) in acceptance() {
        let tests: Vec<String> = tests.into_iter().collect();
        page.push_str(&format!("| S{section}.{number} | {} |\n", tests.join("<br>")));
    }
    page
}

#[test]
fn acceptance_numbers_stand_in_tests_and_not_in_the_product() {
    for folder in ["src", "domain/src", "events/src", "stream/src", "projections/src", "workers/src"] {
        for path in with_extension(folder, "rs") {
            let text = fs::read_to_string(&path).unwrap();
            let comments = text.lines().filter_map(|line| line.trim_start().strip_prefix("//"));
            let left: Vec<&str> = comments.filter(|comment| !numbers(comment, '.').is_empty()).collect();
            assert!(left.is_empty(), "{}: numbers stand in names of tests, not in the product: {left:?}", name(&path));
        }
    }
}
