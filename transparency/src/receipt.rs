//! Receipts of a log's host: a statement of one line, signed by the key that signs the logs.
//!
//! The first line says what the note is, so that no head of a log is a receipt and no receipt a head: a head's second line is a number.

use crate::{BadSignature, FormatError, KeyName, LogKey, LogSigner, SignedNote, text::line};

/// The first line of the note.
const MAGIC: &str = "orgstream.dev/deletion-receipt@v1";

/// A receipt that was verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Receipt {
    /// What it says, in one line.
    pub statement: String,
}

/// The reason why a note is no receipt.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReceiptError {
    /// It has the wrong format.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// The signature is wrong.
    #[error(transparent)]
    BadSignature(#[from] BadSignature),
    /// The key has not signed it.
    #[error("the receipt is not signed by the key {0}")]
    Unsigned(KeyName),
}

impl Receipt {
    /// Signs a statement, which begins with a brace and has one line.
    pub fn sign(key: &LogSigner, statement: &str) -> Result<SignedNote, FormatError> {
        if !statement.starts_with('{') || statement.contains(char::is_control) {
            return Err(FormatError::Malformed { what: "the receipt", expected: "a JSON object in one line" });
        }
        let text = format!("{MAGIC}\n{statement}\n");
        let signature = key.sign_text(&text);
        Ok(SignedNote::new(text, signature))
    }

    /// Parses a note, and verifies that the key has signed it.
    pub fn read(note: &SignedNote, key: &LogKey) -> Result<Self, ReceiptError> {
        let (magic, rest) = line("the first line", note.text())?;
        let (statement, rest) = line("the receipt", rest)?;
        if magic != MAGIC || !statement.starts_with('{') || !rest.is_empty() {
            return Err(FormatError::Malformed { what: "the receipt", expected: "its name and a JSON object" }.into());
        }
        match key.verify(note)? {
            Some(()) => Ok(Self { statement: statement.to_owned() }),
            None => Err(ReceiptError::Unsigned(key.name().clone())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_receipt_is_what_the_key_has_signed() {
        let signer = |seed| LogSigner::from_seed("audit.example".parse().unwrap(), &[seed; 32]);
        let (ours, theirs) = (signer(1), signer(2));
        let note = Receipt::sign(&ours, r#"{"org_id":"org_1"}"#).unwrap();
        let read = SignedNote::parse(note.to_string().as_bytes()).unwrap();
        assert_eq!(Receipt::read(&read, ours.verifier()).unwrap().statement, r#"{"org_id":"org_1"}"#);
        assert!(matches!(Receipt::read(&read, theirs.verifier()), Err(ReceiptError::Unsigned(_))));
        let changed = SignedNote::parse(note.to_string().replace("org_1", "org_2").as_bytes()).unwrap();
        assert!(matches!(Receipt::read(&changed, ours.verifier()), Err(ReceiptError::BadSignature(_))));
        let head = ours.sign(crate::TreeHead { size: 1, root: crate::Hash([0; 32]) });
        assert!(Receipt::read(&head, ours.verifier()).is_err());
        for bad in ["", "7", "{\n}", "{\u{0}}"] {
            assert!(Receipt::sign(&ours, bad).is_err(), "{bad:?}");
        }
    }
}
