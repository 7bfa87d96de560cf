//! Pieces of a record's own text around what was found: text and ranges, never markup. Pure.

use super::{query::SearchQuery, tokens::compounds};

/// The longest snippet, in characters.
pub const MAX_SNIPPET: usize = 200;
/// How many of them stand before the first match.
const BEFORE: usize = 60;
/// The most ranges in one snippet.
const MAX_RANGES: usize = 20;
/// The most text that is looked through, in bytes.
const MAX_TEXT: usize = 32 << 10;

/// A piece of a text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snippet {
    /// The piece, with spaces in the place of control characters.
    pub text: String,
    /// What was found in it, as beginnings and ends in characters.
    pub ranges: Vec<(usize, usize)>,
}

/// Returns the piece of a text around the first match; none if there is none.
pub fn snippet(text: &str, query: &SearchQuery) -> Option<Snippet> {
    let text = text.get(..text.floor_char_boundary(text.len().min(MAX_TEXT)))?;
    let mut found: Vec<(usize, usize)> = Vec::new();
    for compound in compounds(text) {
        let is_whole = compound.parts.len() > 1 && query.matches(&compound.whole.term);
        let parts = compound.parts.iter().filter(|part| !is_whole && query.matches(&part.term));
        for token in parts.chain(is_whole.then_some(&compound.whole)) {
            match found.last_mut() {
                // Pairs of characters overlap.
                Some((_, end)) if token.start <= *end => *end = (*end).max(token.end),
                _ => found.push((token.start, token.end)),
            }
        }
        // What is beyond the longest snippet is not shown.
        if found.first().is_some_and(|(start, _)| compound.whole.start > start + 4 * MAX_SNIPPET) {
            break;
        }
    }
    let (first, _) = *found.first()?;
    let before = text.get(..first)?.char_indices().rev().take(BEFORE).last().map_or(first, |(at, _)| at);
    let rest = text.get(before..)?;
    let piece: &str = rest.char_indices().nth(MAX_SNIPPET).map_or(Some(rest), |(at, _)| rest.get(..at))?;
    let end = before + piece.len();
    let chars = |upto: usize| text.get(before..upto).map_or(0, |text| text.chars().count());
    let ranges = found.iter().filter(|(start, _)| *start < end).take(MAX_RANGES);
    let ranges = ranges.map(|(start, stop)| (chars(*start), chars((*stop).min(end)))).collect();
    let text = piece.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    Some(Snippet { text, ranges })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn marked(text: &str, query: &str) -> Option<Vec<String>> {
        let Snippet { text, ranges } = snippet(text, &SearchQuery::read(query))?;
        let cut = |(start, end): &(usize, usize)| text.chars().skip(*start).take(end - start).collect();
        Some(ranges.iter().map(cut).collect())
    }

    #[test]
    fn what_was_found_is_in_the_ranges() {
        assert_eq!(marked("the Café is open", "cafe "), Some(vec!["Café".to_owned()]));
        assert_eq!(marked("日本語のテスト", "テスト "), Some(vec!["テスト".to_owned()]));
        assert_eq!(marked("a snake_case_name", "case "), Some(vec!["case".to_owned()]));
        assert_eq!(marked("nothing", "else "), None);
        let long = format!("{} needle {}", "hay ".repeat(200), "straw ".repeat(200));
        let found = snippet(&long, &SearchQuery::read("needle ")).unwrap();
        assert_eq!(found.text.chars().count(), MAX_SNIPPET);
        assert_eq!(marked(&long, "needle "), Some(vec!["needle".to_owned()]));
    }

    #[test]
    fn a_snippet_is_the_text_as_it_stands() {
        let found = snippet("<img onerror=x> word\u{7}", &SearchQuery::read("word ")).unwrap();
        assert_eq!(found.text, "<img onerror=x> word ");
    }

    proptest! {
        #[test]
        fn ranges_are_inside_and_in_order(text in any::<String>(), query in any::<String>()) {
            if let Some(Snippet { text, ranges }) = snippet(&text, &SearchQuery::read(&query)) {
                let mut last = 0;
                for (start, end) in ranges {
                    prop_assert!(last <= start && start < end && end <= text.chars().count());
                    last = end;
                }
            }
        }
    }
}
