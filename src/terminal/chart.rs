//! Charts for people: one aligned bar a line. Colours only on a terminal that wants them.

use std::{env, io::IsTerminal as _};

/// The longest bar, in characters.
const WIDTH: usize = 40;
/// Parts of a character, an eighth each.
const EIGHTHS: [char; 8] = [' ', '▏', '▎', '▍', '▌', '▋', '▊', '▉'];

/// One bar.
#[derive(Debug, Clone, PartialEq)]
pub struct Bar {
    /// What it is of.
    pub label: String,
    /// How long it is, in any unit.
    pub value: f64,
    /// The value as text.
    pub text: String,
}

/// Whether standard output is a terminal that shows colours (`NO_COLOR` says that it must not).
pub fn has_colours() -> bool {
    std::io::stdout().is_terminal() && env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// Returns the lines of a chart: label, bar and value, in columns.
pub fn bars(bars: &[Bar], colours: bool) -> Vec<String> {
    let longest = |text: fn(&Bar) -> &str| bars.iter().map(|bar| text(bar).chars().count()).max().unwrap_or_default();
    let (label, text) = (longest(|bar| &bar.label), longest(|bar| &bar.text));
    let most = bars.iter().map(|bar| bar.value).fold(0.0, f64::max);
    let line = |bar: &Bar| {
        let drawn = drawn(bar.value, most);
        let padding = " ".repeat(WIDTH.saturating_sub(drawn.chars().count()));
        let drawn = if colours && !drawn.is_empty() { format!("\x1b[36m{drawn}\x1b[0m") } else { drawn };
        format!("{:<label$}  {drawn}{padding}  {:>text$}", bar.label, bar.text)
    };
    bars.iter().map(line).collect()
}

/// Draws a bar, where `most` is a whole one. Something is never drawn as nothing.
fn drawn(value: f64, most: f64) -> String {
    if value <= 0.0 || most <= 0.0 {
        return String::new();
    }
    let eighths = (value / most * (WIDTH * EIGHTHS.len()) as f64).round().max(1.0);
    let eighths = (eighths as usize).min(WIDTH * EIGHTHS.len());
    let mut bar = "█".repeat(eighths / EIGHTHS.len());
    bar.extend(EIGHTHS.get(eighths % EIGHTHS.len()).filter(|part| **part != ' '));
    bar
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bar(label: &str, value: f64) -> Bar {
        Bar { label: label.to_owned(), value, text: value.to_string() }
    }

    #[test]
    fn bars_are_aligned_and_something_is_never_nothing() {
        let lines = bars(&[bar("one", 1_000.0), bar("three", 500.0), bar("x", 0.001), bar("", 0.0)], false);
        assert_eq!(lines[0], format!("one    {}   1000", "█".repeat(40)));
        assert_eq!(lines[1], format!("three  {}{}    500", "█".repeat(20), " ".repeat(20)));
        assert_eq!(lines[2], format!("x      ▏{}  0.001", " ".repeat(39)));
        assert_eq!(lines[3], format!("       {}      0", " ".repeat(40)));
        let widths: Vec<usize> = lines.iter().map(|line| line.chars().count()).collect();
        assert!(widths.iter().all(|width| *width == widths[0]), "{widths:?}");
        assert!(bars(&[], true).is_empty());
    }

    #[test]
    fn colours_are_there_when_they_are_asked_for() {
        assert!(bars(&[bar("x", 1.0)], true)[0].contains("\x1b[36m"));
        assert!(!bars(&[bar("x", 1.0)], false)[0].contains('\x1b'));
    }
}
