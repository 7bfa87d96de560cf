//! Output of commands: results on standard output, everything else on standard error. A reader may stop early, and a
//! disk may be full; neither causes a panic.

use std::{
    fmt,
    io::{self, ErrorKind, Write as _},
};

use orgstream_events::Chain;

/// The reason why standard output could not be written.
#[derive(Debug, thiserror::Error)]
pub enum OutputError {
    /// The reader has closed it, as `head` does. This is no error.
    #[error("the reader of the output has closed it")]
    Closed,
    /// It cannot be written.
    #[error("the output cannot be written")]
    Failed(#[source] io::Error),
}

impl From<io::Error> for OutputError {
    fn from(error: io::Error) -> Self {
        if error.kind() == ErrorKind::BrokenPipe { Self::Closed } else { Self::Failed(error) }
    }
}

/// Writes a line to standard output, and flushes it.
pub fn say(text: fmt::Arguments<'_>) -> Result<(), OutputError> {
    let mut out = io::stdout().lock();
    writeln!(out, "{text}")?;
    Ok(out.flush()?)
}

/// Writes a line to standard error. A failure is ignored, since there is no other place to report it.
pub fn note(text: fmt::Arguments<'_>) {
    let _ = writeln!(io::stderr().lock(), "{text}");
}

/// Returns a verdict, whether or not it could be printed: a failure of the output does not change it.
pub fn told<T>(verdict: T, said: Result<(), OutputError>) -> T {
    if let Err(error @ OutputError::Failed(_)) = said {
        note(format_args!("error: {}", Chain(&error)));
    }
    verdict
}
