//! Where commands say things: what was asked for on standard output, everything else on standard error. Nobody has to read
//! either to the end, and a disk may be full, and neither is a reason to panic.

use std::{
    fmt,
    io::{self, ErrorKind, Write as _},
};

/// Why something could not be said on standard output.
#[derive(Debug, thiserror::Error)]
pub enum OutputError {
    /// Whoever read it has read enough, as `head` does. No fault of anybody's.
    #[error("nobody reads the output any more")]
    Closed,
    /// It cannot be written.
    #[error("the output cannot be written: {0}")]
    Failed(io::Error),
}

impl From<io::Error> for OutputError {
    fn from(error: io::Error) -> Self {
        if error.kind() == ErrorKind::BrokenPipe { Self::Closed } else { Self::Failed(error) }
    }
}

/// Writes a line to standard output, and knows that it is there.
pub fn say(text: fmt::Arguments<'_>) -> Result<(), OutputError> {
    let mut out = io::stdout().lock();
    writeln!(out, "{text}")?;
    Ok(out.flush()?)
}

/// Writes a line to standard error. When nobody reads that, there is nobody to tell.
pub fn note(text: fmt::Arguments<'_>) {
    let _ = writeln!(io::stderr().lock(), "{text}");
}

/// What a verdict came to, told or not: that nobody read it does not change it.
pub fn told<T>(verdict: T, said: Result<(), OutputError>) -> T {
    if let Err(error @ OutputError::Failed(_)) = said {
        note(format_args!("error: {error}"));
    }
    verdict
}
