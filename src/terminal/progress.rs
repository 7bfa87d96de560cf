//! The bars that show how far a command is. They share standard error with the log and with what commands say, so all of
//! them are drawn by one hand, which puts them aside for every line.

use std::{
    io::{self, Write},
    sync::LazyLock,
    time::Duration,
};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use tracing_subscriber::fmt::MakeWriter;

/// Nothing is drawn where standard error is no terminal.
static BARS: LazyLock<MultiProgress> = LazyLock::new(MultiProgress::new);

/// A bar that looks like this.
pub fn bar(template: &str) -> ProgressBar {
    let bar = BARS.add(ProgressBar::no_length());
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    bar
}

/// Something that turns while it takes long, with a message.
pub fn spinner() -> ProgressBar {
    let spinner = bar("{spinner} {msg}");
    spinner.enable_steady_tick(Duration::from_millis(100));
    spinner
}

/// Does something while no bar is on the screen.
pub fn between<T>(what: impl FnOnce() -> T) -> T {
    BARS.suspend(what)
}

/// Where the log goes: standard error, a line at a time, between two pictures of the bars.
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
