//! What is found of a record: its terms with their weights, from the fields that its event names. Pure.

use std::collections::BTreeMap;

use orgstream_events::{Fingerprint, SearchRole, SearchedField};
use serde_json::{Map, Value};

use super::tokens::{Form, compounds};

/// The most different terms of one record.
pub const MAX_TERMS: usize = 10_000;
/// The most text of one record that is searched, in bytes.
pub const MAX_TEXT: usize = 256 << 10;
/// The most texts in one array.
const MAX_ITEMS: usize = 1_000;
/// The longest title that is kept, in characters.
const MAX_TITLE: usize = 256;
/// The longest value of a facet, in characters.
pub const MAX_FACET: usize = 256;
/// How much one occurrence counts.
const TITLE: u32 = 4;
const KEYWORD: u32 = 3;
const BODY: u32 = 1;

/// A record as it is found.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Document {
    /// Its name: the beginning of the field that is the title.
    pub title: Option<String>,
    /// The number of words, beyond those that were cut.
    pub length: i32,
    /// The terms, each with the weight of its occurrences.
    pub terms: BTreeMap<String, i16>,
    /// The values by which hits are filtered and counted, by field.
    pub facets: Map<String, Value>,
    /// Whether it has more text, or more different terms, than are searched.
    pub is_truncated: bool,
}

impl Document {
    /// Returns what is found of a record. None where nothing is searched.
    pub fn of(searched: &[SearchedField], data: &Value) -> Option<Self> {
        if searched.is_empty() {
            return None;
        }
        let mut document = Self::default();
        let mut weights: BTreeMap<String, u32> = BTreeMap::new();
        let mut left = MAX_TEXT;
        // The most telling first: what is cut is the end of the text.
        let mut fields: Vec<&SearchedField> = searched.iter().collect();
        fields.sort_by_key(|searched| match searched.role {
            SearchRole::Title => 0,
            SearchRole::Keyword => 1,
            SearchRole::Facet => 2,
            SearchRole::Body => 3,
        });
        let mut length: u32 = 0;
        for SearchedField { field, role } in fields {
            let Some(value) = data.get(field) else { continue };
            if *role == SearchRole::Facet {
                document.facet(field, value, &mut weights);
                continue;
            }
            for text in texts(value) {
                if *role == SearchRole::Title && document.title.is_none() {
                    document.title = Some(text.chars().filter(|c| !c.is_control()).take(MAX_TITLE).collect());
                }
                let searched = beginning(text, left);
                document.is_truncated |= searched.len() < text.len();
                left -= searched.len();
                for compound in compounds(searched) {
                    let is_whole = compound.parts.len() > 1 && (*role == SearchRole::Keyword || !compound.is_unspaced);
                    let parts = compound.parts.into_iter().filter(|_| *role != SearchRole::Keyword || !is_whole);
                    for token in parts.chain(is_whole.then_some(compound.whole)) {
                        if weights.len() >= MAX_TERMS && !weights.contains_key(&token.term) {
                            document.is_truncated = true;
                            continue;
                        }
                        length += u32::from(token.form == Form::Part || *role == SearchRole::Keyword);
                        let weight = match role {
                            SearchRole::Title => TITLE,
                            SearchRole::Keyword => KEYWORD,
                            SearchRole::Body | SearchRole::Facet => BODY,
                        };
                        let entry = weights.entry(token.term).or_default();
                        *entry = entry.saturating_add(weight);
                    }
                }
            }
        }
        document.length = i32::try_from(length).unwrap_or(i32::MAX);
        let weight = |weight: u32| i16::try_from(weight).unwrap_or(i16::MAX);
        document.terms = weights.into_iter().map(|(term, of)| (term, weight(of))).collect();
        Some(document)
    }

    fn facet(&mut self, field: &str, value: &Value, weights: &mut BTreeMap<String, u32>) {
        let Some(text) = facet_value(value) else { return };
        weights.insert(facet_term(field, &text), 1);
        self.facets.insert(field.to_owned(), Value::String(text));
    }
}

/// The texts of a field: one, or those of an array.
pub fn texts(value: &Value) -> impl Iterator<Item = &str> {
    let (one, many) = match value {
        Value::Array(items) => (None, items.as_slice()),
        one => (Some(one), &[][..]),
    };
    one.into_iter().chain(many.iter().take(MAX_ITEMS)).filter_map(Value::as_str)
}

/// The value of a facet as a text, if it is short.
fn facet_value(value: &Value) -> Option<String> {
    let text = match value {
        Value::String(text) => text.clone(),
        Value::Number(number) => number.to_string(),
        Value::Bool(bool) => bool.to_string(),
        Value::Null | Value::Array(_) | Value::Object(_) => return None,
    };
    (text.chars().nth(MAX_FACET).is_none() && !text.contains('\0')).then_some(text)
}

/// The term of a facet's value. No word has its first character.
pub fn facet_term(field: &str, value: &str) -> String {
    let hash = Fingerprint::of(&[field.as_bytes(), &[0], value.as_bytes()]).to_string();
    std::iter::once('=').chain(hash.chars().take(32)).collect()
}

/// Returns the beginning of a text, of so many bytes at most.
pub(super) fn beginning(text: &str, bytes: usize) -> &str {
    let end = text.floor_char_boundary(bytes.min(text.len()));
    text.get(..end).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn searched() -> Vec<SearchedField> {
        let field = |field: &str, role| SearchedField { field: field.to_owned(), role };
        vec![
            field("text", SearchRole::Body),
            field("code", SearchRole::Keyword),
            field("name", SearchRole::Title),
            field("state", SearchRole::Facet),
        ]
    }

    #[test]
    fn a_title_counts_more_than_a_body() {
        let data = json!({"name": "Red car", "text": "a car", "code": "AB-12", "state": "open", "other": "unseen"});
        let found = Document::of(&searched(), &data).unwrap();
        assert_eq!(found.title.as_deref(), Some("Red car"));
        assert_eq!((found.terms["car"], found.terms["red"], found.terms["a"]), (5, 4, 1));
        // A keyword is found as a whole.
        assert_eq!((found.terms.get("ab-12"), found.terms.get("ab")), (Some(&3), None));
        assert!(found.terms.contains_key(&facet_term("state", "open")) && !found.terms.contains_key("unseen"));
        assert_eq!((found.length, found.is_truncated), (5, false));
        assert_eq!(Document::of(&[], &data), None);
    }

    #[test]
    fn what_is_too_long_is_cut() {
        let words: String = (0..100_000).map(|number| format!("{number:x} ")).collect();
        let found = Document::of(&searched(), &json!({"name": "kept", "text": words})).unwrap();
        assert!(found.is_truncated && found.terms.len() == MAX_TERMS && found.terms.contains_key("kept"));
        let same = "word ".repeat(100_000);
        let found = Document::of(&searched(), &json!({"text": same})).unwrap();
        assert!(found.is_truncated && found.terms["word"] == i16::MAX);
        let most = "é".repeat(MAX_TEXT);
        assert!(Document::of(&searched(), &json!({"text": most})).unwrap().is_truncated);
    }

    #[test]
    fn a_field_may_be_anything() {
        for odd in [json!(null), json!(7), json!({"a": "b"}), json!([1, null, "word", ["deep"]])] {
            let found = Document::of(&searched(), &json!({"name": odd, "text": odd, "state": odd})).unwrap();
            assert!(found.terms.len() <= 2, "{found:?}");
        }
    }
}
