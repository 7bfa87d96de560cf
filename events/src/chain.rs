//! The causes of errors: how one error carries another, and the text of both for logs, answers and the command line.

use std::{error::Error, fmt, sync::Arc};

/// An error that caused another one, of a type that its receiver need not know; or a condition, as a plain text.
///
/// It is shared by all that wait for the same answer.
pub type Cause = Arc<dyn Error + Send + Sync>;

/// Makes a cause of an error, or of a text.
pub fn cause(error: impl Into<Box<dyn Error + Send + Sync>>) -> Cause {
    Arc::from(error.into())
}

/// Displays an error and its sources, joined by `: `.
///
/// The text of an error does not repeat its source. Those of some libraries do, so what was said already is left out.
#[derive(Clone, Copy)]
pub struct Chain<'a>(pub &'a (dyn Error + 'a));

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = self.0.to_string();
        let mut next = self.0.source();
        while let Some(source) = next {
            let part = source.to_string();
            if !text.contains(&part) {
                text = format!("{text}: {part}");
            }
            next = source.source();
        }
        f.write_str(&text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    enum Outer {
        #[error("the file cannot be read")]
        Read(#[source] Cause),
        #[error(transparent)]
        Same(Cause),
        #[error("the library failed: {0}")]
        Twice(#[source] std::io::Error),
    }

    #[test]
    fn every_part_is_there_once() {
        let io = || std::io::Error::other("disk full");
        let read = Outer::Read(cause(io()));
        assert_eq!(read.to_string(), "the file cannot be read");
        assert_eq!(Chain(&read).to_string(), "the file cannot be read: disk full");
        assert_eq!(Chain(&Outer::Read(cause(read))).to_string(), "the file cannot be read: disk full");
        assert_eq!(Chain(&Outer::Same(cause("no answer in time"))).to_string(), "no answer in time");
        assert_eq!(
            Chain(&Outer::Same(cause(Outer::Read(cause(io()))))).to_string(),
            "the file cannot be read: disk full"
        );
        assert_eq!(Chain(&Outer::Twice(io())).to_string(), "the library failed: disk full");
    }
}
