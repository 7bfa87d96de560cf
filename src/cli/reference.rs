//! The command line and its settings as pages: `docs/reference/cli.md` and `docs/reference/settings.md`, made from the same
//! declarations as `--help`.

use std::fmt::Write;

use clap::{Arg, ArgAction, Command};

use super::program;

/// Variables that are read before there is a command line, each with its reader and its meaning.
const ENVIRONMENT_ALONE: &[(&str, &str, &str)] = &[
    ("ORGSTREAM_BIN", "`./dev`", "A program that is built already; nothing is built then."),
    (
        "ORGSTREAM_NATS_SERVER",
        "`dev`, `bench`, tests",
        "The nats-server program. Without it: the one on the path, then the one in `.orgstream/tools`.",
    ),
    (
        "ORGSTREAM_POSTGRES_BIN",
        "`dev`, `bench`, tests",
        "The folder with PostgreSQL's programs. Without it: the usual places.",
    ),
    (
        "ORGSTREAM_TEST_POSTGRES",
        "tests",
        "A PostgreSQL server that tests share, in place of a private one for each. `orgstream test-servers` sets it.",
    ),
];

/// The settings, by the heading that they have in `--help`.
pub fn settings_page() -> String {
    let mut page = "# Settings\n\nEach setting is a flag or an environment variable, read once at the start; the flag wins. \
                    Secrets are better in the environment: a command line is seen by every user of the machine. Written by \
                    `DOCS_WRITE=1` from the declarations of the command line.\n"
        .to_owned();
    for (heading, settings) in grouped(&commands()) {
        let _ = write!(
            page,
            "\n## {heading}\n\n| variable | flag | read by | default | meaning |\n|---|---|---|---|---|\n"
        );
        for Setting { variable, flag, readers, default, meaning } in settings {
            let readers = readers.join(", ");
            let _ = writeln!(page, "| `{variable}` | `{flag}` | {readers} | {default} | {meaning} |");
        }
    }
    page.push_str("\n## Environment only\n\n| variable | read by | meaning |\n|---|---|---|\n");
    for (variable, readers, meaning) in ENVIRONMENT_ALONE {
        let _ = writeln!(page, "| `{variable}` | {readers} | {meaning} |");
    }
    page
}

/// Every command with its arguments and examples.
pub fn cli_page() -> String {
    let mut page = "# Command line\n\nOne program, one command for each job. `./dev COMMAND` runs it from a checkout. Data goes \
                    to standard output, everything else to standard error. Arguments with a variable are explained in \
                    [settings.md](settings.md); `--log`, `--log-format` and `--otlp-url` are taken by every command. Written \
                    by `DOCS_WRITE=1` from the declarations of the command line.\n\n| command | purpose |\n|---|---|\n"
        .to_owned();
    let commands = commands();
    for (name, command) in commands.iter().filter(|(_, command)| !command.is_subcommand_required_set()) {
        let anchor = format!("orgstream-{}", name.replace(' ', "-"));
        let _ = writeln!(page, "| [`{name}`](#{anchor}) | {} |", about(command, false));
    }
    for (name, command) in commands.iter().filter(|(_, command)| !command.is_subcommand_required_set()) {
        let _ = write!(page, "\n## `orgstream {name}`\n\n{}\n", about(command, true));
        let shown = |argument: &&Arg| !argument.is_hide_set() && !argument.is_global_set();
        let arguments: Vec<&Arg> = command.get_arguments().filter(shown).collect();
        let own: Vec<&&Arg> = arguments.iter().filter(|argument| argument.get_env().is_none()).collect();
        if !own.is_empty() {
            page.push_str("\n| argument | default | meaning |\n|---|---|---|\n");
            for argument in own {
                let _ = writeln!(page, "| `{}` | {} | {} |", usage(argument), default(argument), meaning(argument));
            }
        }
        let variables: Vec<String> =
            arguments.iter().filter_map(|argument| Some(format!("`{}`", argument.get_env()?.to_str()?))).collect();
        if !variables.is_empty() {
            let _ = write!(page, "\nSettings: {}.\n", variables.join(", "));
        }
        if let Some(examples) = command.get_after_help() {
            let lines: Vec<String> = examples.to_string().lines().skip(1).map(|line| line.trim().to_owned()).collect();
            let _ = write!(page, "\n```sh\n{}\n```\n", lines.join("\n").trim());
        }
    }
    page
}

/// Every command that is not hidden, by its words behind `orgstream`.
fn commands() -> Vec<(String, Command)> {
    let mut found = Vec::new();
    let mut left = vec![(String::new(), program())];
    while let Some((name, command)) = left.pop() {
        let below: Vec<_> = command.get_subcommands().filter(|below| !below.is_hide_set()).collect();
        let below = below
            .into_iter()
            .rev()
            .map(|below| (format!("{name} {}", below.get_name()).trim().to_owned(), below.clone()));
        left.extend(below);
        found.push((name, command));
    }
    found
}

/// One line of the settings.
struct Setting {
    variable: String,
    flag: String,
    readers: Vec<String>,
    default: String,
    meaning: String,
}

/// The settings by heading, in the order in which the commands name them.
fn grouped(commands: &[(String, Command)]) -> Vec<(String, Vec<Setting>)> {
    let mut groups: Vec<(String, Vec<Setting>)> = Vec::new();
    for (name, command) in commands {
        for argument in command.get_arguments().filter(|argument| !argument.is_hide_set()) {
            let Some(variable) = argument.get_env().and_then(|variable| variable.to_str()) else { continue };
            let heading = argument.get_help_heading().unwrap_or("General").to_owned();
            let reader = if name.is_empty() { "every command".to_owned() } else { format!("`{name}`") };
            let (default, meaning) = (default(argument), meaning(argument));
            let group = match groups.iter_mut().find(|(known, _)| *known == heading) {
                Some((_, group)) => group,
                None => {
                    groups.push((heading, Vec::new()));
                    match groups.last_mut() {
                        Some((_, group)) => group,
                        None => continue,
                    }
                }
            };
            // Two commands may mean different things by one variable, as they do by where they listen.
            let same = |known: &&mut Setting| {
                known.variable == variable && known.default == default && known.meaning == meaning
            };
            match group.iter_mut().find(same) {
                Some(known) => known.readers.push(reader),
                None => group.push(Setting {
                    variable: variable.to_owned(),
                    flag: usage(argument),
                    readers: vec![reader],
                    default,
                    meaning,
                }),
            }
        }
    }
    groups
}

fn about(command: &Command, long: bool) -> String {
    let text = if long { command.get_long_about().or(command.get_about()) } else { command.get_about() };
    text.map(|text| cell(&text.to_string())).unwrap_or_default()
}

/// As one types it.
fn usage(argument: &Arg) -> String {
    let takes_value = matches!(argument.get_action(), ArgAction::Set | ArgAction::Append);
    let names = argument.get_value_names().unwrap_or_default();
    let values = names.iter().map(|name| name.replace('|', "\\|")).collect::<Vec<_>>().join(" ");
    match argument.get_long() {
        Some(long) if takes_value && !values.is_empty() => format!("--{long} {values}"),
        Some(long) => format!("--{long}"),
        None => values,
    }
}

fn default(argument: &Arg) -> String {
    if !matches!(argument.get_action(), ArgAction::Set | ArgAction::Append) {
        return String::new();
    }
    let values: Vec<_> = argument.get_default_values().iter().filter_map(|value| value.to_str()).collect();
    match (values.is_empty(), argument.is_required_set()) {
        (false, _) => format!("`{}`", values.join(",")),
        (true, true) => "required".to_owned(),
        (true, false) => String::new(),
    }
}

fn meaning(argument: &Arg) -> String {
    let text = argument.get_long_help().or(argument.get_help()).map(|text| cell(&text.to_string())).unwrap_or_default();
    let values: Vec<String> = argument
        .get_possible_values()
        .iter()
        .filter(|value| !value.is_hide_set())
        .map(|value| format!("`{}`", value.get_name()))
        .collect();
    let takes_value = matches!(argument.get_action(), ArgAction::Set | ArgAction::Append);
    if takes_value && !values.is_empty() { format!("{text} One of {}.", values.join(", ")) } else { text }
}

/// A text in one cell of a table. Help texts come without their last full stop.
fn cell(text: &str) -> String {
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ").replace('|', "\\|");
    if text.is_empty() || text.ends_with(['.', '!', '?']) { text } else { format!("{text}.") }
}
