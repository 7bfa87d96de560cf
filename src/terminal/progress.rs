//! Progress bars. They share standard error with the log and with the output of commands, so all of them are drawn in one
//! place, which hides them for every line.

use std::{
    io::{self, Write},
    sync::LazyLock,
    time::Duration,
};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use tracing_subscriber::fmt::MakeWriter;

/// Nothing is drawn where standard error is no terminal.
static BARS: LazyLock<MultiProgress> = LazyLock::new(MultiProgress::new);

/// Creates a bar of this template.
pub fn bar(template: &str) -> ProgressBar {
    let bar = BARS.add(ProgressBar::no_length());
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    bar
}

/// Creates a spinner for a long operation, with a message.
pub fn spinner() -> ProgressBar {
    let spinner = bar("{spinner} {msg}");
    spinner.enable_steady_tick(Duration::from_millis(100));
    spinner
}

/// Runs a closure while no bar is on the screen.
pub fn between<T>(what: impl FnOnce() -> T) -> T {
    BARS.suspend(what)
}

/// The writer of the log: standard error, a line at a time, between two renderings of the bars.
#[derive(Debug, Clone, Copy)]
pub struct LogLines;

impl Write for LogLines {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        between(|| io::stderr().lock().write_all(line))?;
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl MakeWriter<'_> for LogLines {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        Self
    }
}
