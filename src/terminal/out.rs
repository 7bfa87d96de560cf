//! The one output path of commands; see `orgstream_verifier::output`. A line goes between two renderings of the progress
//! bar, if one is shown, and never into it.

use std::{fmt, process::ExitCode};

use orgstream_events::Chain;
use orgstream_verifier::output;
pub(crate) use orgstream_verifier::output::{OutputError, told};

use super::progress;

/// A line on standard output, whose error `?` passes on.
#[macro_export]
macro_rules! say {
    ($($text:tt)*) => { $crate::terminal::out::line(format_args!($($text)*)) };
}

/// A line on standard error.
#[macro_export]
macro_rules! note {
    ($($text:tt)*) => { $crate::terminal::out::aside(format_args!($($text)*)) };
}

pub use {note, say};

/// Writes the line of [`say!`].
pub fn line(text: fmt::Arguments<'_>) -> Result<(), OutputError> {
    progress::between(|| output::say(text))
}

/// Writes the line of [`note!`].
pub fn aside(text: fmt::Arguments<'_>) {
    progress::between(|| output::note(text));
}

/// Returns the exit code of the process. A closed standard output is no failure, and is not reported.
pub fn ended(result: anyhow::Result<ExitCode>) -> ExitCode {
    match result {
        Ok(code) => code,
        Err(error) if matches!(error.downcast_ref(), Some(OutputError::Closed)) => ExitCode::SUCCESS,
        Err(error) => {
            note!("error: {}", Chain(error.as_ref()));
            ExitCode::FAILURE
        }
    }
}
