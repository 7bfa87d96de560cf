//! Examples under the `--help` of each command. A test parses every one of them as the program would.

use clap::Command;

/// Commands by their words after `orgstream`, each with example lines and their purpose.
const EXAMPLES: &[(&str, &str)] = &[
    (
        "dev",
        "orgstream dev                              # on http://127.0.0.1:8080, until Ctrl-C
orgstream dev --http 127.0.0.1:0 --no-demo # any free port, and an empty platform",
    ),
    (
        "demo",
        "orgstream demo            # settings for the demo organization acme; eval \"$(orgstream demo)\" takes them\norgstream demo --operator # settings for the operator",
    ),
    ("outbox", "orgstream outbox --last # the newest mail that `orgstream dev` has written"),
    (
        "serve",
        "orgstream serve --http 0.0.0.0:8080 --pepper SECRET # settings are better in the environment: docs/reference/settings.md",
    ),
    ("work", "orgstream work --http 127.0.0.1:9090 # health and metrics there"),
    ("migrate", "orgstream migrate --owner-url postgres://owner@db.example/orgstream # before a new version starts"),
    ("nats init", "orgstream nats init --dir nats-access # once; never writes over what is there"),
    (
        "nats streams",
        "orgstream nats streams --nats-creds nats-access/admin/nats.creds # once, and after --shards has grown",
    ),
    ("secrets init", "orgstream secrets init --key-ring key-ring.json # once; the file is for every `orgstream serve`"),
    (
        "secrets rotate",
        "orgstream secrets rotate --key-ring key-ring.json # a new key, by which everything is wrapped from then on",
    ),
    ("secrets rewrap", "orgstream secrets rewrap # with the settings of `serve` in the environment, after a rotation"),
    (
        "search targets",
        "orgstream search targets --search-targets targets.json # with the settings of `work` in the environment",
    ),
    ("search placements", "orgstream search placements # whose index is elsewhere, and how far it is"),
    (
        "search place",
        "orgstream search place org_01h455vb4pex5vsknk084sn02q --target large   # build it there, then search there
orgstream search place org_01h455vb4pex5vsknk084sn02q --target default # back into the database",
    ),
    ("secrets status", "orgstream secrets status # with the settings of `serve` in the environment"),
    ("check-config", "orgstream check-config # with the settings of `serve` or `work` in the environment"),
    (
        "history list",
        "orgstream history list # with the settings of `serve` in the environment; 1 when a stream is lost",
    ),
    ("history refill", "orgstream history refill EV_9 # after every serve and work was stopped"),
    (
        "history accept",
        "orgstream history accept EV_9         # after a better copy was brought back
orgstream history accept EV_9 --lossy # without what is missing, for good",
    ),
    ("shard list", "orgstream shard list --nats-creds access/admin/nats.creds # what waits to be erased"),
    (
        "shard rewrite",
        "orgstream shard rewrite --shard 7 --dry-run # what would be erased
orgstream shard rewrite --shard 7           # again after it was interrupted: it goes on",
    ),
    (
        "publish",
        "orgstream publish commands.ndjson            # one command a line; again changes nothing
orgstream publish commands.ndjson --from 501 # go on behind line 500",
    ),
    (
        "replay",
        "orgstream replay                                     # every event, oldest first
orgstream replay --at 2026-01-31T12:00:00Z --projection records # the records as they were then
orgstream replay --verify --org acme                 # stream, audit log and read models compared; for operators",
    ),
    ("audit export", "orgstream audit export --out bundle # into a folder; again goes on where it was"),
    (
        "audit verify",
        "orgstream audit verify --bundle bundle --pin log.vkey # exit 10 valid, 20 not proven, 40 altered",
    ),
    (
        "sign",
        "orgstream sign --new-key log.example # make the key, once\norgstream sign                       # sign the heads until Ctrl-C",
    ),
    ("witness", "orgstream witness --log-key log.vkey --name witness.example # sign what continues the last head"),
    ("login", "orgstream login --email ann@acme.example # the development sign-in; keeps a session for other commands"),
    ("session show", "orgstream session show"),
    ("session list", "orgstream session list --json # for programs"),
    ("session switch", "orgstream session switch globex # act in that organization from now on"),
    ("session revoke", "orgstream session revoke # end the one in use"),
    (
        "lag",
        "orgstream lag         # your organization\norgstream lag --all   # every shard, and what stands still; for operators\norgstream lag --watch # until Ctrl-C",
    ),
    ("park list", "orgstream park list --org acme"),
    ("park retry", "orgstream park retry --org acme record.res_01h455vb4pex5vsknk084sn02q # after the cause is mended"),
    (
        "park skip",
        "orgstream park skip --org acme --seq 17 --reason \"written by a test\" record.res_01h455vb4pex5vsknk084sn02q",
    ),
    ("catalog list", "orgstream catalog list"),
    ("catalog publish", "orgstream catalog publish res_01h455vb4pex5vsknk084sn02q --record-version 3"),
    ("catalog withdraw", "orgstream catalog withdraw res_01h455vb4pex5vsknk084sn02q --reason \"superseded\""),
    (
        "break-glass",
        "orgstream break-glass --org acme --reason \"ticket 4711\" --minutes 30
orgstream break-glass --org acme --close",
    ),
    ("key check", "orgstream key check < token.txt"),
    ("key nats", "orgstream key nats > producer.creds # shown once"),
    ("key pattern", "git grep -E \"$(orgstream key pattern)\" # keys that leaked into a repository"),
    ("account show", "orgstream account show --org acme"),
    (
        "account credit",
        "orgstream account credit --org acme ecu 100 --reason \"ticket 4711: goodwill\" --expires-at 2027-01-01T00:00:00Z",
    ),
    (
        "account top-up",
        "orgstream account top-up tokens --below 10000 --amount 100000 --monthly-limit 1000000
orgstream account top-up tokens --off",
    ),
    (
        "account ledger",
        "orgstream account ledger --org acme                     # every change, with the balance after it
orgstream account ledger --org acme --csv > ledger.csv  # for a spreadsheet
orgstream account ledger --meter tokens --since 2026-03-01T00:00:00Z --jsonl",
    ),
    ("plans list", "orgstream plans list"),
    ("plans show", "orgstream plans show premium > premium.json"),
    ("plans publish", "orgstream plans publish premium.json # organizations on the plan have it within a second"),
    ("plan", "orgstream plan --org acme premium"),
    (
        "limits",
        "orgstream limits --org acme --commands-per-second 50
orgstream limits --org acme --as-plan",
    ),
    (
        "usage",
        "orgstream usage --org acme                              # counts, and a chart of this month by day
orgstream usage --step hour --group-by model --watch     # hours, by model, until Ctrl-C
orgstream usage --from 2026-03-01T00:00:00Z --to 2026-04-01T00:00:00Z --json",
    ),
    (
        "delete-organization",
        "orgstream delete-organization acme --slug acme # with a session of the last ten minutes: orgstream login",
    ),
    ("deletions list", "orgstream deletions list # with the operator's token"),
    ("deletions show", "orgstream deletions show org_01h455vb4pex5vsknk084sn02q"),
    ("deletions cancel", "orgstream deletions cancel org_01h455vb4pex5vsknk084sn02q"),
    ("deletions receipt", "orgstream deletions receipt org_01h455vb4pex5vsknk084sn02q --out receipt.txt"),
    ("invoices list", "orgstream invoices list --org acme"),
    (
        "invoices show",
        "orgstream invoices show 3 --org acme                    # with its lines
orgstream invoices show 3 --org acme --pdf invoice-3.pdf",
    ),
    ("invoices close", "orgstream invoices close 2026-03 --org acme # the program does it by itself"),
    ("invoices pay", "orgstream invoices pay 3 --org acme --payment \"transfer 2026-04-05\""),
    ("invoices void", "orgstream invoices void 3 --org acme --reason \"ticket 4711: goodwill\""),
    ("invoices end-billing", "orgstream invoices end-billing --org acme --reason \"ticket 4711: contract ended\""),
    (
        "rebuild",
        "orgstream rebuild --org org_01h455vb4pex5vsknk084sn02q # beside what is shown, then in its place
orgstream rebuild --org org_01h455vb4pex5vsknk084sn02q --verify # compare, and show nothing
orgstream rebuild --all --detach      # every organization; look at it by `orgstream rebuild status`",
    ),
    ("completions", "orgstream completions bash > ~/.local/share/bash-completion/completions/orgstream"),
    ("man", "orgstream man --dir ~/.local/share/man/man1"),
];

/// Adds the examples to the help of the program's commands.
pub(super) fn with_examples(program: Command) -> Command {
    EXAMPLES.iter().fold(program, |program, (command, examples)| {
        let words: Vec<&str> = command.split(' ').collect();
        add(program, &words, examples)
    })
}

fn add(command: Command, words: &[&str], examples: &str) -> Command {
    let Some((first, rest)) = words.split_first() else {
        let lines: Vec<String> = examples.lines().map(|line| format!("  {line}")).collect();
        return command.after_help(format!("Examples:\n{}", lines.join("\n")));
    };
    command.mut_subcommand(first, |inner| add(inner, rest, examples))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use clap::CommandFactory as _;

    use super::*;
    use crate::cli::Cli;

    /// Collects every executable command, by its words.
    fn leaves(command: &Command, words: &str, found: &mut BTreeSet<String>) {
        let visible = |inner: &&Command| !inner.is_hide_set() && inner.get_name() != "help";
        let inner: Vec<&Command> = command.get_subcommands().filter(visible).collect();
        if inner.is_empty() || !command.is_subcommand_required_set() && !words.is_empty() {
            found.insert(words.to_owned());
            return;
        }
        for command in inner {
            leaves(command, format!("{words} {}", command.get_name()).trim(), found);
        }
    }

    #[test]
    fn every_command_has_examples() {
        let mut expected = BTreeSet::new();
        leaves(&Cli::command(), "", &mut expected);
        // It is a program of its own, with a help of its own.
        expected.remove("bench");
        assert_eq!(EXAMPLES.iter().map(|(command, _)| (*command).to_owned()).collect::<BTreeSet<_>>(), expected);
    }

    #[test]
    fn examples_are_what_the_program_takes() {
        for (command, examples) in EXAMPLES {
            for line in examples.lines() {
                let typed = line.split(" #").next().unwrap().split([';', '>', '<']).next().unwrap();
                let Some(place) = typed.find("orgstream ") else { continue };
                let typed = typed[place..].trim_end_matches(['"', ')', ' ']);
                // Quoted words are one argument.
                let mut words = Vec::new();
                for (number, part) in typed.split('"').enumerate() {
                    if number % 2 == 1 { words.push(part) } else { words.extend(part.split_whitespace()) }
                }
                let read = Cli::command().try_get_matches_from(&words);
                assert!(read.is_ok(), "{command}: {line}: {}", read.unwrap_err());
            }
        }
    }
}
