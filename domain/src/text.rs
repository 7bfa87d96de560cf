//! Rules for texts in commands: the same for every aggregate, collected so that all faults show at once.

use serde_json::Value;

use crate::FieldError;

/// The longest name, in characters.
pub(super) const MAX_NAME: usize = 120;
/// The longest name of something at another program, in characters.
const MAX_NAME_ELSEWHERE: usize = 200;
/// The longest reason, in characters.
pub(super) const MAX_REASON: usize = 500;
/// The longest e-mail address, as mail servers limit it.
const MAX_EMAIL: usize = 254;

/// The faults found so far.
#[derive(Debug, Default)]
pub(super) struct Faults(Vec<FieldError>);

impl Faults {
    /// Adds a fault.
    pub(super) fn add(&mut self, pointer: impl Into<String>, code: &'static str, detail: impl Into<String>) {
        self.0.push(FieldError { pointer: pointer.into(), code: code.into(), detail: detail.into() });
    }

    /// Checks a name: one visible line.
    pub(super) fn name(&mut self, pointer: &str, text: &str) {
        self.length(pointer, text, 1, MAX_NAME);
        if text.chars().any(|c| c.is_control() || is_deceptive(c)) {
            let rule =
                "must not contain control characters, nor characters that change the direction of text or are not seen";
            self.add(pointer, "control_character", rule);
        }
    }

    /// Checks a name that something has at another program, as a payment at its provider.
    pub(super) fn name_elsewhere(&mut self, pointer: &str, text: &str) {
        self.length(pointer, text, 1, MAX_NAME_ELSEWHERE);
        self.lines(pointer, text);
    }

    /// Checks a reason: a few lines.
    pub(super) fn reason(&mut self, pointer: &str, text: &str) {
        self.length(pointer, text, 1, MAX_REASON);
        self.lines(pointer, text);
    }

    /// Checks a text of `min` to `max` characters, of which at least `min` remain after trimming.
    pub(super) fn length(&mut self, pointer: &str, text: &str, min: usize, max: usize) {
        if text.trim().chars().count() < min {
            self.add(pointer, "too_short", format!("must have at least {min} characters besides spaces"));
        } else if text.chars().count() > max {
            self.add(pointer, "too_long", format!("must have at most {max} characters"));
        }
    }

    /// Checks a text without control characters other than line ends and tabs.
    pub(super) fn lines(&mut self, pointer: &str, text: &str) {
        if text.chars().any(|c| (c.is_control() && !matches!(c, '\n' | '\r' | '\t')) || is_deceptive(c)) {
            let rule = "must not contain control characters other than line ends and tabs, nor characters that change the \
                        direction of text or are not seen";
            self.add(pointer, "control_character", rule);
        }
    }

    /// Checks the form of an e-mail address. Whether it exists, only a mail sent there can tell.
    pub(super) fn email(&mut self, pointer: &str, text: &str) {
        let parts = text.split_once('@').filter(|(local, domain)| {
            let is_other = |c: char| c.is_whitespace() || c.is_control() || is_deceptive(c) || is_joiner(c);
            let separated = text.chars().any(|c| is_other(c) || matches!(c, ',' | ';' | '<' | '>'));
            // No part of a domain is empty, nor the whole of it.
            !local.is_empty() && !domain.contains('@') && domain.split('.').all(|label| !label.is_empty()) && !separated
        });
        if parts.is_none() || text.len() > MAX_EMAIL {
            self.add(
                pointer,
                "email",
                format!("must be one e-mail address of at most {MAX_EMAIL} bytes, like ann@acme.example"),
            );
        }
    }

    /// Whether there are no faults.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Fails with all faults, if there are any.
    pub(super) fn none_or<E>(self, error: impl FnOnce(Vec<FieldError>) -> E) -> Result<(), E> {
        if self.0.is_empty() { Ok(()) } else { Err(error(self.0)) }
    }

    /// Returns the faults.
    pub(super) fn into_vec(self) -> Vec<FieldError> {
        self.0
    }
}

/// Folds an e-mail address for comparison: ASCII letters have no case, and all others stay as they are. Unicode would fold
/// letters of other mailboxes into these, as U+212A into k.
pub(super) fn fold_email(email: &str) -> String {
    email.to_ascii_lowercase()
}

/// Whether both are the same address.
pub(super) fn same_email(one: &str, other: &str) -> bool {
    one.eq_ignore_ascii_case(other)
}

/// Whether a character makes a text look like another one: it changes the direction of what follows, ends a line invisibly,
/// or is itself invisible. The joiners of Persian, of Indian scripts and of emoji are no such characters.
fn is_deceptive(c: char) -> bool {
    matches!(c,
        '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{115f}' | '\u{1160}' | '\u{17b4}' | '\u{17b5}' | '\u{180e}' | '\u{200b}'
        | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{3164}' | '\u{feff}'
        | '\u{ffa0}' | '\u{fff0}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

/// Whether the character is an invisible joiner, which words have and addresses do not.
fn is_joiner(c: char) -> bool {
    matches!(c, '\u{200c}' | '\u{200d}')
}

/// Checks every text inside `value`, keys included; `path` is the pointer to it.
///
/// The database stores JSON, but not the character U+0000, so a value that has one could be stored in the stream and then
/// never be projected. Depth is bounded for the same reason: everything that reads the value later recurses.
pub(super) fn storable(value: &Value, path: &mut String, depth_left: usize, faults: &mut Faults) {
    let Some(depth_left) = depth_left.checked_sub(1) else {
        faults.add(path.clone(), "too_deep", "is nested too deeply");
        return;
    };
    match value {
        Value::String(text) if text.contains('\0') => {
            faults.add(path.clone(), "nul_character", "must not contain the character U+0000");
        }
        Value::Array(items) => {
            for (index, item) in items.iter().enumerate() {
                under(path, &index.to_string(), |path| storable(item, path, depth_left, faults));
            }
        }
        Value::Object(fields) => {
            for (name, field) in fields {
                if name.contains('\0') {
                    faults.add(
                        path.clone(),
                        "nul_character",
                        "must not have the character U+0000 in the name of a field",
                    );
                }
                under(path, name, |path| storable(field, path, depth_left, faults));
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// Calls `visit` with `path` one step longer: the text of one JSON pointer grows and shrinks with the traversal.
pub(super) fn under<T>(path: &mut String, step: &str, visit: impl FnOnce(&mut String) -> T) -> T {
    let length = path.len();
    path.push('/');
    path.push_str(&step.replace('~', "~0").replace('/', "~1"));
    let visited = visit(path);
    path.truncate(length);
    visited
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn codes(check: impl FnOnce(&mut Faults)) -> Vec<String> {
        let mut faults = Faults::default();
        check(&mut faults);
        faults.into_vec().into_iter().map(|fault| fault.code.into_owned()).collect()
    }

    #[test]
    fn names_are_one_visible_line() {
        assert!(codes(|faults| faults.name("/name", "Ärzte ohne Grenzen e.V.")).is_empty());
        assert_eq!(codes(|faults| faults.name("/name", " \u{3000}")), ["too_short"]);
        assert_eq!(codes(|faults| faults.name("/name", &"ä".repeat(121))), ["too_long"]);
        assert!(codes(|faults| faults.name("/name", &"ä".repeat(120))).is_empty());
        assert_eq!(codes(|faults| faults.name("/name", "a\nb")), ["control_character"]);
        assert_eq!(codes(|faults| faults.name("/name", "a\0b")), ["control_character"]);
        for deceptive in
            ['\u{202e}', '\u{2066}', '\u{200f}', '\u{61c}', '\u{200b}', '\u{2028}', '\u{feff}', '\u{e0041}']
        {
            assert_eq!(codes(|faults| faults.name("/name", &format!("a{deceptive}b"))), ["control_character"]);
            assert_eq!(codes(|faults| faults.reason("/reason", &format!("a{deceptive}b"))), ["control_character"]);
        }
        for honest in ["می\u{200c}خواهم", "क्\u{200d}ष", "👩\u{200d}💻", "שלום", "e\u{301}"] {
            assert!(codes(|faults| faults.name("/name", honest)).is_empty(), "{honest}");
        }
    }

    #[test]
    fn a_reason_may_have_lines() {
        assert!(codes(|faults| faults.reason("/reason", "unpaid\nsince May")).is_empty());
        assert_eq!(codes(|faults| faults.reason("/reason", "a\0b")), ["control_character"]);
    }

    #[test]
    fn what_cannot_be_an_email_is_refused() {
        for good in ["ann@acme.example", "a+b@x", "\"ü\"@münchen.example"] {
            assert!(codes(|faults| faults.email("/email", good)).is_empty(), "{good}");
        }
        for bad in ["", "ann", "@acme", "ann@", "a@b@c", "a b@c", "a@b\n", "Ann <ann@acme.example>", "a@b,c@d"] {
            assert_eq!(codes(|faults| faults.email("/email", bad)), ["email"], "{bad}");
        }
        for bad in ["a@x..example", "a@x.example.", "a@.example"] {
            assert_eq!(codes(|faults| faults.email("/email", bad)), ["email"], "{bad}");
        }
        for unseen in ['\u{202e}', '\u{200b}', '\u{200c}', '\u{200d}', '\u{2066}', '\u{feff}', '\u{ad}', '\u{e0041}'] {
            for bad in [format!("{unseen}ann@acme.example"), format!("ann@acme.example{unseen}")] {
                assert_eq!(codes(|faults| faults.email("/email", &bad)), ["email"], "{bad:?}");
            }
        }
    }

    #[test]
    fn values_that_no_database_takes_are_pointed_at() {
        let mut faults = Faults::default();
        storable(&json!({"a/b": [1, "x\0"], "k\0": 1, "fine": "y"}), &mut "/data".to_owned(), 10, &mut faults);
        let found: Vec<_> = faults.into_vec().into_iter().map(|fault| fault.pointer).collect();
        assert_eq!(found, ["/data/a~1b/1", "/data"]);
        assert_eq!(codes(|faults| storable(&json!([[[1]]]), &mut String::new(), 3, faults)), ["too_deep"]);
        assert!(codes(|faults| storable(&json!([[[1]]]), &mut String::new(), 4, faults)).is_empty());
    }
}
