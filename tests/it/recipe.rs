//! CONTRIBUTING's recipe for an aggregate, followed in a copy of the checkout: the files of `tests/recipe/aggregate` are
//! added, lines are added where the recipe says, the copy is compiled, and what was added is used.
//!
//! The copy shares the compiled dependencies of this build, so that only our own crates are compiled again.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use sqlx::{AssertSqlSafe, Connection, PgConnection};
use tokio::{process::Command, time::timeout};

use crate::{
    readme::{Dev, shell},
    support::{self, TempDir},
};

const BUILD_TIME: Duration = Duration::from_mins(15);
const USE_TIME: Duration = Duration::from_mins(1);
const MIGRATION: &str = "migrations/9990_rm_notes.sql";
/// Files by a person that are no part of the product: they test it.
const TESTS: [&str; 2] = ["events/tests/bytes.rs", "domain/tests/states.rs"];

/// Lines that are added to a file, before the first line that begins with `before`.
struct Addition {
    file: &'static str,
    before: &'static str,
    lines: &'static str,
}

const fn add(file: &'static str, before: &'static str, lines: &'static str) -> Addition {
    Addition { file, before, lines }
}

/// What the recipe adds to files that are there.
const ADDITIONS: &[Addition] = &[
    add(
        "events/src/ids.rs",
        "    /// A domain that an organization claims.",
        "    /// A note.\n    NoteId = \"note\";\n",
    ),
    add("events/src/ids.rs", "derived_from_command!(", "derived_from_command!(NoteId);\n"),
    add("events/src/lib.rs", "mod organization;", "mod note;\n"),
    add(
        "events/src/lib.rs",
        "pub use organization::",
        "pub use ids::NoteId;\npub use note::{NoteEvent, NoteWithdrawn, NoteWritten};\n",
    ),
    add("events/src/event.rs", "macro_rules! aggregates", "use crate::{NoteEvent, NoteId};\n\n"),
    add(
        "events/src/event.rs",
        "    /// What happened at the API boundary",
        "    /// One note.\n    Note(NoteId) = \"note\": NoteEvent;\n",
    ),
    add(
        "events/tests/bytes.rs",
        "use proptest::prelude::*;",
        "use orgstream_events::{NoteEvent, NoteId, NoteWithdrawn, NoteWritten};\n",
    ),
    add(
        "events/tests/bytes.rs",
        "    let role_event = ",
        "    let note = |event| (AggregateId::Note(NoteId::fresh(1_700_000_000_000, [9; 10])), Event::Note(event));\n",
    ),
    add(
        "events/tests/bytes.rs",
        "        access(AccessEvent::Denied(",
        "        note(NoteEvent::Written(NoteWritten { text: \"on Sunday\".to_owned() })),\n        note(NoteEvent::Withdrawn(NoteWithdrawn {})),\n",
    ),
    add("domain/src/lib.rs", "pub mod organization;", "pub mod note;\n"),
    add("domain/src/lib.rs", "pub use organization::", "pub use note::{WithdrawNote, WriteNote};\n"),
    add("domain/src/command.rs", "/// The declaration of a command", "use crate::{WithdrawNote, WriteNote};\n\n"),
    add("domain/src/command.rs", "    CreateRecord,\n", "    WriteNote,\n    WithdrawNote,\n"),
    add(
        "domain/src/permission.rs",
        "    /// Read and replay the audit log.",
        "    /// Write and withdraw notes.\n    ManageNotes = \"notes:manage\": Owner, Admin;\n",
    ),
    add("domain/tests/states.rs", "        states::<Domain>()", "        states::<orgstream_domain::note::Note>(),\n"),
    add("src/commands/cache.rs", "    parking: Parking", "    notes: Note, 10_000;\n"),
    add("src/commands/cache.rs", "use orgstream_events::", "use orgstream_domain::note::Note;\n"),
    add("src/commands/handler.rs", "use orgstream_events::", "use orgstream_domain::note::{Note, NoteCommand};\n"),
    add(
        "src/commands/handler.rs",
        "            Command::ClaimDomain(",
        "            Command::WriteNote(command) => self.execute::<Note>(&attempt, &to, NoteCommand::Write(command)).await,\n            Command::WithdrawNote(_) => self.execute::<Note>(&attempt, &to, NoteCommand::Withdraw).await,\n",
    ),
    add("projections/src/lib.rs", "pub mod organizations;", "pub mod notes;\n"),
    add("projections/src/read_model.rs", "    &domains::TABLE,", "    &crate::notes::TABLE,\n"),
    add(
        "projections/src/apply.rs",
        "    let mut domains = ",
        "    let mut notes = crate::notes::Changeset::default();\n",
    ),
    add(
        "projections/src/apply.rs",
        "                (Event::Domain(event), AggregateId::Domain(id))",
        "                (Event::Note(event), AggregateId::Note(id)) => notes.apply(*id, event, row_version),\n",
    ),
    add("projections/src/apply.rs", "                    | Event::Domain(_)", "                    | Event::Note(_)\n"),
    add("projections/src/apply.rs", "    domains.write(connection, org)", "    notes.write(connection, org).await?;\n"),
    add("src/api/http/org/mod.rs", "pub mod organizations;", "pub mod notes;\n"),
    add("src/api/http/org/mod.rs", "        .merge(domains::routes())", "        .merge(notes::routes())\n"),
    add(
        "src/app/event_view.rs",
        "        Event::Domain(_) =>",
        "        Event::Note(_) => Some(Permission::ReadOrganization),\n",
    ),
    add(
        "src/api/http/kit/reply.rs",
        "        AggregateId::Domain(id) =>",
        "        AggregateId::Note(id) => Some(format!(\"/v1/organizations/{org}/notes/{id}\")),\n",
    ),
];

/// What is used once everything is compiled: written, read back at its position, withdrawn, and in the audit log.
const USE: &str = r#"set -eo pipefail
eval "$(./dev demo acme)"
ask() { curl -sS --fail-with-body "$@" -H "Authorization: Bearer $ORGSTREAM_API_KEY"; }
notes=$ORGSTREAM_URL/v1/organizations/acme/notes
position=$(ask "$notes" -H 'Content-Type: application/json' -d '{"text": "on Sunday"}' -D - -o /dev/null \
  | tr -d '\r' | sed -n 's/^stream-position: //p')
ask "$notes" -H "Min-Position: $position"
echo
note=$(ask "$notes" -H "Min-Position: $position" | sed 's/.*"id":"\(note_[a-z0-9]*\)".*/\1/')
position=$(ask -X DELETE "$notes/$note" -D - -o /dev/null | tr -d '\r' | sed -n 's/^stream-position: //p')
ask "$notes" -H "Min-Position: $position"
echo
ask "$ORGSTREAM_URL/v1/organizations/acme/audit/events?limit=5" -H "Min-Position: $position"
echo
"#;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Runs a command to its end, and returns what it printed.
async fn ran(mut command: Command, limit: Duration) -> String {
    command.stdin(Stdio::null()).kill_on_drop(true);
    let output = timeout(limit, command.output()).await.unwrap_or_else(|_| panic!("{command:?} does not end")).unwrap();
    let printed = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{command:?}: {}\n{printed}", output.status);
    printed
}

/// The files below a folder, by their paths in it.
fn files(folder: &Path) -> Vec<PathBuf> {
    let (mut left, mut found) = (vec![folder.to_owned()], Vec::new());
    while let Some(path) = left.pop() {
        if path.is_dir() {
            left.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        } else {
            found.push(path.strip_prefix(folder).unwrap().to_owned());
        }
    }
    found
}

/// Copies the checkout's files to `copy`, and adds what the recipe adds. Returns the files that a person wrote.
async fn follow(copy: &Path) -> BTreeSet<String> {
    let script =
        "git ls-files -z --cached --others --exclude-standard | xargs -0 cp --parents --target-directory \"$0\"";
    let mut command = Command::new("sh");
    command.args(["-c", script]).arg(copy).current_dir(root());
    ran(command, USE_TIME).await;
    let mut written = BTreeSet::new();
    let recipe = root().join("tests/recipe/aggregate");
    for file in files(&recipe) {
        assert!(!copy.join(&file).exists(), "{} is new", file.display());
        fs::copy(recipe.join(&file), copy.join(&file)).unwrap();
        written.insert(file.display().to_string());
    }
    for Addition { file, before, lines } in ADDITIONS {
        let path = copy.join(file);
        let text = fs::read_to_string(&path).unwrap();
        let at = if text.starts_with(before) { Some(0) } else { text.find(&format!("\n{before}")).map(|at| at + 1) };
        let at = at.unwrap_or_else(|| panic!("{file} has no line that begins with {before:?}: say it here anew"));
        fs::write(&path, format!("{}{lines}{}", &text[..at], &text[at..])).unwrap();
        written.insert((*file).to_owned());
    }
    written
}

/// The section of CONTRIBUTING that begins with this title, up to the next recipe.
fn recipe(title: &str) -> String {
    let text = fs::read_to_string(root().join("CONTRIBUTING.md")).unwrap();
    let at = text.find(&format!("\n**{title}")).unwrap_or_else(|| panic!("no recipe for {title}"));
    let rest = &text[at + 3..];
    rest[..rest.find("\n**").unwrap_or(rest.len())].to_owned()
}

#[tokio::test]
async fn an_aggregate_is_added_by_the_recipe_compiles_and_works() {
    let place = TempDir::within(Path::new(env!("CARGO_TARGET_TMPDIR")));
    let copy = place.path();
    let written = follow(copy).await;

    // The recipe names each file that is there already, and how many there are in all.
    let product: Vec<&String> = written.iter().filter(|file| !TESTS.contains(&file.as_str())).collect();
    let of_aggregates = recipe("An aggregate with a read model and routes");
    let named = of_aggregates.clone() + &recipe("A read model") + &recipe("A route");
    for Addition { file, .. } in ADDITIONS {
        assert!(named.contains(&format!("`{file}`")), "no recipe names {file}");
    }
    let count = format!("({} files and a migration", product.len() - 1);
    assert!(of_aggregates.contains(&count), "{product:#?}\nthe recipe says otherwise than {count}");

    // A database as the copy's migrations make it, by which its queries are checked.
    let database = support::database().await;
    let mut connection = PgConnection::connect(&database.owner_url).await.unwrap();
    let migration = format!("BEGIN; {}; COMMIT;", fs::read_to_string(copy.join(MIGRATION)).unwrap());
    sqlx::raw_sql(AssertSqlSafe(migration)).execute(&mut connection).await.unwrap();
    connection.close().await.unwrap();

    let target = copy.join("target");
    let built = std::env::current_exe().unwrap().parent().unwrap().parent().unwrap().to_owned();
    let mut command = Command::new("sh");
    let script = "mkdir -p \"$1/debug\" && cp -al \"$0/deps\" \"$0/build\" \"$1/debug\" && cp -a \"$0/.fingerprint\" \"$1/debug\"";
    command.args(["-c", script]).args([&built, &target]);
    ran(command, USE_TIME).await;
    let cargo = |arguments: &str| {
        let mut command = Command::new("cargo");
        command.args(arguments.split(' ')).current_dir(copy).env("CARGO_TARGET_DIR", &target);
        command.env("SQLX_OFFLINE", "false").env("DATABASE_URL", &database.owner_url);
        command.env("GOLDEN_WRITE", "1").env("STATES_WRITE", "1");
        command
    };
    // As `./check` builds: another choice of packages would have dependencies with other features compiled again.
    ran(cargo("build --workspace --offline --locked"), BUILD_TIME).await;
    // The golden bytes are written first, and read by the test of states.
    for test in ["bytes", "states"] {
        let tested = ran(cargo(&format!("test --workspace --offline --locked --test {test}")), BUILD_TIME).await;
        assert!(tested.contains("test result: ok"), "{tested}");
    }

    let dir = TempDir::new();
    let program = target.join("debug/orgstream");
    let (dev, _) = Dev::start("./dev", &program, dir.path()).await;
    let printed = ran(shell(USE, &program, dir.path()), USE_TIME).await;
    let lines: Vec<&str> = printed.lines().collect();
    assert!(lines[0].contains("\"text\":\"on Sunday\""), "{printed}");
    assert!(lines[1].contains("\"data\":[]"), "{printed}");
    assert!(["note.written", "note.withdrawn"].iter().all(|event| lines[2].contains(event)), "{printed}");
    dev.interrupt().await;
}
