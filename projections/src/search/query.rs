//! What is asked, from a text to conditions on terms. Any text is valid. Pure.
//!
//! Words are all required; `"a phrase"` is found as it stands, `-word` must not be there, and `word*` is the beginning of a word, as
//! is the last one unless a space follows.

use std::collections::{HashMap, HashSet};

use super::tokens::{Compound, Form, Token, compounds};

/// The most conditions of a query. What is beyond them is left out, and the answer says so.
pub const MAX_CLAUSES: usize = 16;

/// A query.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SearchQuery {
    /// The conditions, all of which hold.
    pub clauses: Vec<Clause>,
    /// The terms that a record must not have, all of one set together.
    pub without: Vec<Vec<String>>,
    /// The parts that stand one after the other.
    pub phrases: Vec<Vec<String>>,
    /// Whether the query has more than that.
    pub is_cut: bool,
}

/// A condition: a record has a term of one of these ranges.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Clause {
    /// The ranges.
    pub ranges: Vec<TermRange>,
    /// Whether words that are written like it may stand for it.
    pub may_be_misspelt: bool,
}

/// A term, or all that begin with it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct TermRange {
    /// The term.
    pub term: String,
    /// Whether it is a beginning.
    pub is_prefix: bool,
}

impl TermRange {
    /// Whether the range has this term.
    pub fn has(&self, term: &str) -> bool {
        if self.is_prefix { term.starts_with(&self.term) } else { term == self.term }
    }
}

/// A piece of the text.
enum Piece<'a> {
    Word { text: &'a str, is_prefix: bool },
    Phrase(&'a str),
}

impl SearchQuery {
    /// Reads a query.
    pub fn read(text: &str) -> Self {
        let mut query = Self::default();
        let mut rest = text;
        loop {
            rest = rest.trim_start();
            if rest.is_empty() {
                return query;
            }
            let (is_negated, after) = match rest.strip_prefix('-') {
                Some(after) if !after.starts_with(char::is_whitespace) => (true, after),
                _ => (false, rest),
            };
            let (piece, after) = piece(after);
            rest = after;
            match (piece, is_negated) {
                (Piece::Word { text, .. } | Piece::Phrase(text), true) => query.exclude(text),
                (Piece::Word { text, is_prefix }, false) => query.require(text, is_prefix),
                (Piece::Phrase(text), false) => query.phrase(text),
            }
        }
    }

    /// Whether a term of a text is one of those that were asked for.
    pub fn matches(&self, term: &str) -> bool {
        self.clauses.iter().flat_map(|clause| &clause.ranges).any(|range| range.has(term))
    }

    /// Whether every phrase stands in one of these texts.
    pub fn has_phrases(&self, texts: &[&str]) -> bool {
        let mut missing: Vec<&Vec<String>> = self.phrases.iter().collect();
        for text in texts {
            if missing.is_empty() {
                return true;
            }
            let mut places: HashMap<String, Vec<u32>> = HashMap::new();
            let mut all: HashSet<(u32, String)> = HashSet::new();
            for Token { term, position, .. } in compounds(text).flat_map(|compound| compound.parts) {
                if self.phrases.iter().any(|phrase| phrase.contains(&term)) {
                    places.entry(term.clone()).or_default().push(position);
                    all.insert((position, term));
                }
            }
            missing.retain(|phrase| {
                let starts = phrase.first().and_then(|first| places.get(first)).map_or(&[][..], Vec::as_slice);
                let follows = |start: u32| {
                    (start..).zip(phrase.iter()).all(|(position, term)| all.contains(&(position, term.clone())))
                };
                !starts.iter().any(|start| follows(*start))
            });
        }
        missing.is_empty()
    }

    fn require(&mut self, text: &str, is_prefix: bool) {
        let asked: Vec<Compound> = compounds(text).collect();
        let last = asked.len().saturating_sub(1);
        for (place, compound) in asked.into_iter().enumerate() {
            self.clauses_of(&compound, is_prefix && place == last, true);
        }
    }

    fn phrase(&mut self, text: &str) {
        let mut parts = Vec::new();
        for compound in compounds(text) {
            self.clauses_of(&compound, false, false);
            parts.extend(asked(&compound).map(|part| part.term.clone()));
        }
        if parts.len() > 1 && !self.is_cut {
            self.phrases.push(parts);
        }
    }

    /// Adds a condition for each part. All of the compound fulfils each of them, for fields that are found as a whole.
    fn clauses_of(&mut self, compound: &Compound, is_prefix: bool, may_be_misspelt: bool) {
        let parts: Vec<&Token> = asked(compound).collect();
        let last = parts.len().saturating_sub(1);
        let is_single = compound.parts.len() == 1;
        for (place, part) in parts.iter().enumerate() {
            let is_last = place == last;
            let range = |token: &Token, is_prefix: bool| TermRange {
                term: token.term.clone(),
                is_prefix: is_prefix && token.is_literal(),
            };
            // One character of a script without spaces begins pairs.
            let begins = (is_prefix && is_last) || (compound.is_unspaced && is_single);
            let mut ranges = vec![range(part, begins)];
            if !is_single {
                ranges.push(range(&compound.whole, is_prefix));
            }
            let clause = Clause { ranges, may_be_misspelt: may_be_misspelt && !compound.is_unspaced };
            if self.clauses.contains(&clause) {
                continue;
            }
            if self.clauses.len() == MAX_CLAUSES {
                self.is_cut = true;
                return;
            }
            self.clauses.push(clause);
        }
    }

    fn exclude(&mut self, text: &str) {
        let mut terms = Vec::new();
        for compound in compounds(text) {
            if compound.parts.len() > 1 && !compound.is_unspaced {
                terms.push(compound.whole.term);
            } else {
                terms.extend(asked(&compound).map(|part| part.term.clone()));
            }
        }
        terms.dedup();
        if terms.is_empty() || self.without.contains(&terms) {
            return;
        }
        if self.without.len() == MAX_CLAUSES || terms.len() > MAX_CLAUSES {
            self.is_cut = true;
            return;
        }
        self.without.push(terms);
    }
}

/// The parts that are asked for: the last character of a pair needs no condition of its own.
fn asked(compound: &Compound) -> impl Iterator<Item = &Token> {
    compound.parts.iter().filter(|part| part.form == Form::Part)
}

/// Splits the first piece off a text that does not begin with a space.
fn piece(text: &str) -> (Piece<'_>, &str) {
    if let Some(inside) = text.strip_prefix('"') {
        let (phrase, after) = inside.split_once('"').unwrap_or((inside, ""));
        return (Piece::Phrase(phrase), after);
    }
    let end = text.find(|c: char| c.is_whitespace() || c == '"').unwrap_or(text.len());
    let (word, after) = text.split_at_checked(end).unwrap_or((text, ""));
    (Piece::Word { text: word, is_prefix: after.is_empty() || word.ends_with('*') }, after)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Each clause by its ranges, with a star behind a beginning.
    fn clauses(text: &str) -> Vec<String> {
        let written = |range: &TermRange| format!("{}{}", range.term, if range.is_prefix { "*" } else { "" });
        let query = SearchQuery::read(text);
        query.clauses.iter().map(|clause| clause.ranges.iter().map(written).collect::<Vec<_>>().join("|")).collect()
    }

    #[test]
    fn words_are_required_and_the_last_one_begins() {
        assert_eq!(clauses("Red car"), ["red", "car*"]);
        assert_eq!(clauses("red car "), ["red", "car"]);
        assert_eq!(clauses("re* car "), ["re*", "car"]);
        assert_eq!(clauses("red red "), ["red"]);
        assert_eq!(clauses("DS-7604"), ["ds|ds-7604*", "7604*|ds-7604*"]);
        assert_eq!(clauses("a.b x"), ["a|a.b", "b|a.b", "x*"]);
        assert_eq!(clauses("テスト "), ["テス|テスト", "スト|テスト"]);
        assert_eq!(clauses("テ "), ["テ*"]);
    }

    #[test]
    fn phrases_and_exclusions_are_read() {
        let query = SearchQuery::read("\"the red car\" -blue -\"old bus\" - x ");
        assert_eq!(query.phrases, [["the", "red", "car"]]);
        assert_eq!(query.without, [vec!["blue"], vec!["old", "bus"]]);
        assert_eq!(clauses("\"the red"), ["the", "red"]);
        assert!(query.has_phrases(&["", "See the Red-Car go"]));
        assert!(!query.has_phrases(&["the red", "car"]));
        assert!(!query.has_phrases(&["the car red"]));
        let unspaced = SearchQuery::read("\"日本語 test\"");
        assert!(unspaced.has_phrases(&["これは日本語 test です"]));
        assert!(!unspaced.has_phrases(&["本語 日本 test"]));
    }

    #[test]
    fn what_says_nothing_asks_for_nothing() {
        for text in ["", " ", "-", "--", "\"", "\"\"", "*", ":<>&|!()", "-\"", "- -", "\0"] {
            assert_eq!(SearchQuery::read(text).clauses, [], "{text:?}");
        }
    }

    #[test]
    fn a_long_query_is_cut() {
        let text: String = (0..40).map(|number| format!("w{}x{number} ", char::from(b'a' + number % 26))).collect();
        let query = SearchQuery::read(&text);
        assert!(query.is_cut && query.clauses.len() == MAX_CLAUSES);
    }

    proptest! {
        #[test]
        fn any_text_is_a_query(text in any::<String>()) {
            let query = SearchQuery::read(&text);
            prop_assert!(query.clauses.len() <= MAX_CLAUSES && query.without.len() <= MAX_CLAUSES);
        }

        #[test]
        fn a_text_is_found_by_itself(words in prop::collection::vec("[a-zé日本語テ0-9_-]{1,8}", 1..6)) {
            let text = words.join(" ");
            let query = SearchQuery::read(&format!("\"{text}\""));
            prop_assert!(query.has_phrases(&[&text]));
            let terms: Vec<String> =
                compounds(&text).flat_map(|compound| compound.parts).map(|part| part.term).collect();
            for clause in &query.clauses {
                prop_assert!(clause.ranges.iter().any(|range| terms.iter().any(|term| range.has(term))));
            }
        }
    }
}
