//! Words of texts, made the same way for what is stored and for what is asked. Pure.
//!
//! Words are those of UAX #29. What stands together (`snake_case`, `a-b`, `x.y`, `me@there`) is a *compound*: it is a token as a
//! whole, and so is each of its parts. Scripts that are written without spaces have tokens of two neighbouring characters.
//! Tokens are folded: compatibility forms, letter case and the marks of European and Semitic scripts do not count.

use orgstream_events::Fingerprint;
use unicode_normalization::{UnicodeNormalization, char::is_combining_mark};
use unicode_segmentation::UnicodeSegmentation;

/// The longest token that is stored as it is, in characters. A longer one is stored as its hash, and found exactly.
pub const MAX_TOKEN: usize = 64;
/// What may stand inside of a compound, beside letters and digits.
const CONNECTORS: &str = "-_./\\@:+#&'\u{2019}";
/// The most connectors between two parts, as in `https://`.
const MAX_CONNECTORS: usize = 3;
/// The most changes of case or between letters and digits at which a word is split. One with more is a code.
const MAX_CHANGES: usize = 6;
/// The first character of hashed tokens, which no other token begins with.
const HASHED: char = '#';

/// What a token is of its compound.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// A part, which cannot be divided further.
    Part,
    /// The last character of a run in a script without spaces, so that it is found alone.
    Tail,
    /// All of it, if there is more than one part.
    Whole,
}

/// A token of a text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Token {
    /// The folded text, or its hash.
    pub term: String,
    /// What it is of its compound.
    pub form: Form,
    /// The place among the parts of the text, counted from 0; that of a whole is its first part's.
    pub position: u32,
    /// Where it is in the text, in bytes.
    pub start: usize,
    /// Its end in the text, in bytes.
    pub end: usize,
}

impl Token {
    /// Whether it stands for the characters that it was made of, so that its beginning can be asked for.
    pub fn is_literal(&self) -> bool {
        !self.term.starts_with(HASHED)
    }
}

/// The tokens of what stands together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Compound {
    /// All of it; the same as the part if there is one.
    pub whole: Token,
    /// The parts, in the order of the text.
    pub parts: Vec<Token>,
    /// Whether a part is of a script without spaces.
    pub is_unspaced: bool,
}

/// Returns the compounds of a text, in order.
pub fn compounds(text: &str) -> impl Iterator<Item = Compound> {
    let mut position = 0;
    chunks(text).into_iter().filter_map(move |(start, end)| compound(text, start, end, &mut position))
}

/// Returns the texts that stand together, as ranges.
fn chunks(text: &str) -> Vec<(usize, usize)> {
    let mut chunks: Vec<(usize, usize)> = Vec::new();
    for (start, word) in text.unicode_word_indices() {
        let end = start + word.len();
        match chunks.last_mut() {
            Some((_, last)) if text.get(*last..start).is_some_and(connects) => *last = end,
            _ => chunks.push((start, end)),
        }
    }
    chunks
}

fn connects(between: &str) -> bool {
    between.chars().all(|c| CONNECTORS.contains(c)) && between.chars().nth(MAX_CONNECTORS).is_none()
}

fn compound(text: &str, start: usize, end: usize, position: &mut u32) -> Option<Compound> {
    let first = *position;
    let mut parts = Vec::new();
    let mut is_unspaced = false;
    for run in runs(text.get(start..end)?) {
        let (run_start, run_end) = (start + run.start, start + run.end);
        let of_run = text.get(run_start..run_end)?;
        if run.unspaced {
            is_unspaced = true;
            pairs(of_run, run_start, position, &mut parts);
        } else {
            for (from, to) in split(of_run) {
                push_folded(of_run.get(from..to)?, run_start + from, position, &mut parts);
            }
        }
    }
    let folded: String =
        fold(text.get(start..end)?).chars().filter(|c| !c.is_whitespace() && !c.is_control()).collect();
    parts.first()?;
    let whole = Token { term: stored(folded), form: Form::Whole, position: first, start, end };
    Some(Compound { whole, parts, is_unspaced })
}

/// Letters and digits in a row, of scripts with or without spaces.
struct Run {
    start: usize,
    end: usize,
    unspaced: bool,
}

fn runs(text: &str) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    let mut is_open = false;
    for (at, c) in text.char_indices() {
        let end = at + c.len_utf8();
        if is_mark(c) {
            if let Some(run) = runs.last_mut().filter(|_| is_open) {
                run.end = end;
            }
            continue;
        }
        if !c.is_alphanumeric() {
            is_open = false;
            continue;
        }
        let unspaced = is_unspaced(c);
        match runs.last_mut().filter(|run| is_open && run.unspaced == unspaced) {
            Some(run) => run.end = end,
            None => runs.push(Run { start: at, end, unspaced }),
        }
        is_open = true;
    }
    runs
}

/// A character that belongs to the one before it.
fn is_mark(c: char) -> bool {
    // Joiners, the soft hyphen, and the half-width marks of kana.
    is_combining_mark(c) || matches!(c, '\u{AD}' | '\u{200B}'..='\u{200D}' | '\u{2060}' | '\u{FF9E}' | '\u{FF9F}')
}

/// Scripts that are written without spaces between words, and Korean, whose endings stand at its words.
fn is_unspaced(c: char) -> bool {
    matches!(c,
        '\u{0E00}'..='\u{0EFF}' | '\u{1000}'..='\u{109F}' | '\u{1100}'..='\u{11FF}' | '\u{1780}'..='\u{17FF}'
        | '\u{2E80}'..='\u{2FDF}' | '\u{3005}'..='\u{3007}' | '\u{3031}'..='\u{31FF}' | '\u{3400}'..='\u{4DBF}'
        | '\u{4E00}'..='\u{9FFF}' | '\u{A960}'..='\u{A97F}' | '\u{AC00}'..='\u{D7FF}' | '\u{F900}'..='\u{FAFF}'
        | '\u{FF66}'..='\u{FFDC}' | '\u{1AFF0}'..='\u{1B16F}' | '\u{20000}'..='\u{3FFFF}')
}

/// Two neighbouring characters each, and the last one alone.
fn pairs(run: &str, start: usize, position: &mut u32, parts: &mut Vec<Token>) {
    let mut units: Vec<(usize, usize)> = Vec::new();
    for (at, c) in run.char_indices() {
        match units.last_mut().filter(|_| is_mark(c)) {
            Some((_, end)) => *end = at + c.len_utf8(),
            None => units.push((at, at + c.len_utf8())),
        }
    }
    for (one, next) in units.iter().zip(units.iter().skip(1)) {
        push_folded(run.get(one.0..next.1).unwrap_or_default(), start + one.0, position, parts);
    }
    let Some((from, to)) = units.last().copied() else { return };
    let last = run.get(from..to).unwrap_or_default();
    if units.len() == 1 {
        return push_folded(last, start + from, position, parts);
    }
    let term = fold(last);
    if !term.is_empty() {
        let position = position.saturating_sub(1);
        parts.push(Token { term, form: Form::Tail, position, start: start + from, end: start + to });
    }
}

/// Where a word is split: at changes of case, and between letters and digits.
fn split(word: &str) -> Vec<(usize, usize)> {
    #[derive(Clone, Copy, PartialEq)]
    enum Class {
        Lower,
        Upper,
        Digit,
    }
    let class = |c: char| match c {
        _ if c.is_numeric() => Class::Digit,
        _ if c.is_uppercase() => Class::Upper,
        _ => Class::Lower,
    };
    let mut cuts: Vec<usize> = Vec::new();
    let mut before: Option<(usize, Class)> = None;
    let mut before_that: Option<Class> = None;
    for (at, c) in word.char_indices() {
        if is_mark(c) {
            continue;
        }
        let now = class(c);
        if let Some((last_at, last)) = before {
            match (last, now) {
                (Class::Lower, Class::Upper | Class::Digit)
                | (Class::Upper, Class::Digit)
                | (Class::Digit, Class::Lower | Class::Upper) => cuts.push(at),
                // The last capital of a row begins a word: HTMLParser.
                (Class::Upper, Class::Lower) if before_that == Some(Class::Upper) => cuts.push(last_at),
                _ => {}
            }
        }
        before_that = before.map(|(_, class)| class);
        before = Some((at, now));
    }
    if cuts.len() > MAX_CHANGES {
        cuts.clear();
    }
    let starts = std::iter::once(0).chain(cuts.iter().copied());
    let ends = cuts.iter().copied().chain([word.len()]);
    starts.zip(ends).collect()
}

/// Adds a part. One that is several words once it is folded, such as `½`, is as many.
fn push_folded(part: &str, start: usize, position: &mut u32, parts: &mut Vec<Token>) {
    let folded = fold(part);
    for piece in folded.split(|c: char| !c.is_alphanumeric() && !is_mark(c)).filter(|piece| !piece.is_empty()) {
        let term = stored(piece.to_owned());
        parts.push(Token { term, form: Form::Part, position: *position, start, end: start + part.len() });
        *position = position.saturating_add(1);
    }
}

/// Returns the token as it is stored.
fn stored(folded: String) -> String {
    if folded.chars().nth(MAX_TOKEN).is_none() {
        return folded;
    }
    let hash = Fingerprint::of(&[folded.as_bytes()]).to_string();
    std::iter::once(HASHED).chain(hash.chars().take(32)).collect()
}

/// Folds compatibility forms, letter case and marks.
pub fn fold(text: &str) -> String {
    if text.is_ascii() {
        return text.to_ascii_lowercase();
    }
    // Twice: what a compatibility form stands for may have marks and case of its own.
    fold_once(&fold_once(text))
}

fn fold_once(text: &str) -> String {
    text.nfkc()
        // By way of the capital: ß is ss, and both forms of the Greek s are one.
        .flat_map(char::to_uppercase)
        .flat_map(char::to_lowercase)
        .nfkd()
        .filter(|c| !is_dropped(*c))
        .nfkc()
        .collect()
}

/// Marks that do not make another letter, and characters without a form. The marks of other scripts are vowels.
fn is_dropped(c: char) -> bool {
    matches!(c,
        '\u{0300}'..='\u{036F}' | '\u{0483}'..='\u{0489}' | '\u{0591}'..='\u{05C7}' | '\u{0610}'..='\u{061A}'
        | '\u{064B}'..='\u{065F}' | '\u{0670}' | '\u{06D6}'..='\u{06DC}' | '\u{1AB0}'..='\u{1AFF}'
        | '\u{1DC0}'..='\u{1DFF}' | '\u{20D0}'..='\u{20FF}' | '\u{FE20}'..='\u{FE2F}')
        || matches!(c, '\u{AD}' | '\u{200B}'..='\u{200F}' | '\u{2060}' | '\u{FE00}'..='\u{FE0F}' | '\u{FEFF}')
        || c.is_control()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn terms(text: &str) -> Vec<String> {
        let mut terms = Vec::new();
        for compound in compounds(text) {
            if compound.parts.len() > 1 {
                terms.push(compound.whole.term);
            }
            terms.extend(compound.parts.into_iter().map(|part| part.term));
        }
        terms
    }

    #[test]
    fn words_are_folded() {
        for (text, expected) in [
            ("Café, Straße; ﬁne", vec!["cafe", "strasse", "fine"]),
            ("İstanbul ΟΔΟΣ ὁδός", vec!["istanbul", "οδοσ", "οδοσ"]),
            ("Ｆｕｌｌ ﬀ e\u{301}te\u{301}", vec!["full", "ff", "ete"]),
            ("so\u{AD}ft \u{0}nul \u{7}", vec!["soft", "nul"]),
            ("हिन्दी", vec!["हिन्दी"]),
        ] {
            assert_eq!(terms(text), expected, "{text}");
        }
    }

    #[test]
    fn compounds_are_kept_and_split() {
        assert_eq!(terms("snake_case_name"), ["snake_case_name", "snake", "case", "name"]);
        assert_eq!(terms("DS-7604NI-E1/4P"), ["ds-7604ni-e1/4p", "ds", "7604", "ni", "e", "1", "4", "p"]);
        assert_eq!(terms("getHTTPResponse"), ["gethttpresponse", "get", "http", "response"]);
        assert_eq!(terms("me@mail.example"), ["me@mail.example", "me", "mail", "example"]);
        assert_eq!(terms("(x.y)"), ["x.y", "x", "y"]);
        // A code with many changes is one word.
        assert_eq!(terms("01h455vb4pex5vsknk084sn02q"), ["01h455vb4pex5vsknk084sn02q"]);
        assert_eq!(terms("end. Next, word"), ["end", "next", "word"]);
    }

    #[test]
    fn scripts_without_spaces_have_pairs() {
        assert_eq!(terms("テスト"), ["テスト", "テス", "スト", "ト"]);
        assert_eq!(terms("번역을"), ["번역을", "번역", "역을", "을"]);
        assert_eq!(terms("語"), ["語"]);
        assert!(terms("ภาษาไทย").len() > 3);
        // Half-width forms are the usual ones.
        assert_eq!(terms("ﾃﾞｽｸ")[1..], ["デス", "スク", "ク"]);
    }

    #[test]
    fn a_long_word_is_its_hash() {
        let long = "x".repeat(5_000);
        let found = terms(&long);
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].len(), found[0].starts_with(HASHED)), (33, true));
        assert_eq!(terms(&long.to_uppercase()), found);
        assert_ne!(terms(&format!("{long}x")), found);
        assert_eq!(terms(&"x".repeat(MAX_TOKEN)), ["x".repeat(MAX_TOKEN)]);
    }

    proptest! {
        #[test]
        fn every_text_has_tokens_that_can_be_stored(text in any::<String>()) {
            let mut last = 0;
            for compound in compounds(&text) {
                for token in std::iter::once(&compound.whole).chain(&compound.parts) {
                    prop_assert!(!token.term.is_empty() && token.term.chars().count() <= MAX_TOKEN);
                    prop_assert!(!token.term.contains(|c: char| c.is_control() || c.is_whitespace()), "{:?}", token.term);
                    prop_assert!(text.get(token.start..token.end).is_some_and(|text| !text.is_empty()));
                }
                for part in &compound.parts {
                    prop_assert!(part.position >= last);
                    last = part.position;
                }
            }
        }

        #[test]
        fn a_folded_text_stays_as_it_is(text in any::<String>()) {
            let folded = fold(&text);
            prop_assert_eq!(fold(&folded), folded);
        }

        #[test]
        fn case_and_compatibility_forms_do_not_count(text in "[a-zA-Z0-9éßﬁÅ \u{301}_.-]{0,40}") {
            let same: Vec<String> = terms(&text.nfd().collect::<String>());
            prop_assert_eq!(terms(&text), same);
        }
    }
}
