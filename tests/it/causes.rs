//! Errors in the sources: each keeps the one that caused it, and says nothing that its source says too.

use crate::sources::{Source, sources};

/// The folders with sources whose errors reach a log, an answer or the command line.
const FOLDERS: &[&str] = &["projections/src", "servers/src", "src", "stream/src", "verifier/src", "workers/src"];

/// The places in `text`, each with its line, where an error is made of the text of another one.
fn texts_of_errors(text: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    for (at, call) in text.match_indices("map_err(") {
        let rest = &text[at + call.len()..];
        let mut depth = 1;
        let end = rest.find(|c| {
            depth += i32::from(c == '(') - i32::from(c == ')');
            depth == 0
        });
        let body = &rest[..end.unwrap_or(rest.len())];
        let named = body.strip_prefix('|').and_then(|closure| closure.split(['|', ':']).next());
        let is_text = match named.map(str::trim) {
            Some(name) => body
                .match_indices(&format!("{name}.to_string()"))
                .any(|(at, _)| !body[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == '.')),
            None => body.contains("to_string"),
        };
        if is_text {
            found.push((text[..at].lines().count(), body.to_owned()));
        }
    }
    found
}

/// The variants in `text` that name their source in their own text.
fn repeated_sources(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    for variant in text.split("#[error(").skip(1) {
        let variant = variant.split("\n}").next().unwrap();
        let (said, fields) = variant.split_once(")]").unwrap_or((variant, ""));
        let field = |mark: &str| {
            let rest = fields.split_once(mark)?.1.trim_start();
            Some(rest.split(':').next().unwrap_or_default().trim_start_matches("pub ").to_owned())
        };
        let in_tuple = fields.contains("(#[source]") || fields.contains("(#[from]");
        let source = if in_tuple { Some("0".to_owned()) } else { field("#[source]").or_else(|| field("#[from]")) };
        let source = source.or_else(|| fields.contains(" source: ").then(|| "source".to_owned()));
        if source.is_some_and(|source| said.contains(&format!("{{{source}}}"))) {
            found.push(said.to_owned());
        }
    }
    found
}

#[test]
fn no_error_is_made_of_the_text_of_another() {
    let found: Vec<String> = sources(FOLDERS)
        .iter()
        .flat_map(|source| {
            let said = texts_of_errors(source.product()).into_iter();
            said.map(|(line, body)| format!("{}:{line}: {body}", source.path))
        })
        .collect();
    let way_out = "keep the error as #[source] (`cause` makes one of any type); where a text is due, use `Chain`";
    assert!(found.is_empty(), "{way_out}: {found:#?}");
}

#[test]
fn no_error_repeats_its_source() {
    let found: Vec<String> = sources(FOLDERS)
        .iter()
        .flat_map(|source| {
            let said = repeated_sources(source.product()).into_iter();
            said.map(|said| format!("{}: {said}", source.path))
        })
        .collect();
    assert!(found.is_empty(), "`Chain` prints the sources: {found:#?}");
}

#[test]
fn log_lines_have_the_whole_chain() {
    let bare = |text: &str| text.contains("%error") || text.contains("{error:#}");
    let found: Vec<String> =
        sources(FOLDERS).into_iter().filter(|source| bare(source.product())).map(|Source { path, .. }| path).collect();
    assert!(found.is_empty(), "write `error = %Chain(&error)`: {found:#?}");
}

#[test]
fn what_is_looked_for_is_found() {
    let made =
        "read().map_err(|error: Wide| Error::Bad(error.to_string()))?;\nparse().map_err(|e| f(g(e.to_string())));";
    assert_eq!(texts_of_errors(made).iter().map(|(line, _)| *line).collect::<Vec<_>>(), [1, 2]);
    assert_eq!(texts_of_errors("read().map_err(ToString::to_string)").len(), 1);
    assert_eq!(texts_of_errors("read().map_err(|error| Chain(&error).to_string()); error.to_string()"), []);
    let errors = "#[error(\"it failed: {0}\")]\n A(#[source] B),\n #[error(\"{what} of {0}\")]\n C(String),\n \
                  #[error(\"no: {reason}\")]\n D { reason: String },\n #[error(\"bad: {cause}\")]\n E {\n #[source]\n \
                  cause: F },\n #[error(\"io: {source}\")]\n G { source: H },\n}";
    assert_eq!(repeated_sources(errors), ["\"it failed: {0}\"", "\"bad: {cause}\"", "\"io: {source}\""]);
}
