//! The README's first steps and the walk of docs/guide.md, run word for word as a newcomer would paste them.
//!
//! A block of the walk stands behind `<!-- walk -->`; a `text` block right after it is what must be seen, with `...` for
//! anything. All blocks of a document run in one shell, in the checkout. Only the environment differs: the data is in a temporary
//! folder, the port is free, and the program is the one that was built for the tests.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
    time::{Instant, sleep, timeout},
};

use crate::support::TempDir;

/// The documents, in the order in which they are walked, beside one `./dev`.
const DOCUMENTS: [(&str, &str); 2] =
    [("README.md", include_str!("../../README.md")), ("docs/guide.md", include_str!("../../docs/guide.md"))];
/// The last line of what `./dev` prints when it is ready.
const READY: &str = "Ctrl-C stops everything; the data stays.";
const PROGRAM: &str = env!("CARGO_BIN_EXE_orgstream");
const START_TIME: Duration = Duration::from_mins(2);
const WALK_TIME: Duration = Duration::from_mins(4);
const STOP_TIME: Duration = Duration::from_mins(1);
/// Stands before the output of each block, and in no output.
const MARK: char = '\u{1}';

/// One block of the walk.
#[derive(Debug)]
struct Step {
    document: &'static str,
    line: usize,
    code: String,
    expected: Option<String>,
}

/// The block that starts everything, and the others.
fn walk(document: &'static str, text: &str) -> (Step, Vec<Step>) {
    let lines: Vec<&str> = text.lines().collect();
    let (mut start, mut steps) = (None, Vec::new());
    let mut at = 0;
    while at < lines.len() {
        let marked = at > 0 && lines[at - 1].starts_with("<!-- walk");
        let is_start = marked && lines[at - 1] == "<!-- walk: start -->";
        assert!(lines[at] != "```bash" || marked, "{document} line {}: every bash block belongs to the walk", at + 1);
        assert!(!marked || lines[at] == "```bash", "{document} line {}: a walk has a bash block", at + 1);
        if !marked {
            at += 1;
            continue;
        }
        let (code, end) = block(&lines, at);
        let next = (end..lines.len()).find(|next| !lines[*next].is_empty()).unwrap_or(end);
        let expected = (lines.get(next) == Some(&"```text")).then(|| block(&lines, next).0);
        let step = Step { document, line: at + 1, code, expected };
        if is_start {
            assert!(start.replace(step).is_none(), "it starts once");
        } else {
            steps.push(step);
        }
        at = end;
    }
    (start.expect("the walk starts"), steps)
}

/// The content of the block whose fence is at `at`, and the line behind its end.
fn block(lines: &[&str], at: usize) -> (String, usize) {
    let length = lines[at + 1..].iter().position(|line| *line == "```").expect("a block ends");
    (lines[at + 1..at + 1 + length].join("\n"), at + length + 2)
}

/// Whether `text` matches `pattern`, in which `...` stands for anything, and a line of it for any lines or none.
fn matches(pattern: &str, text: &str) -> bool {
    let pattern = format!("\n{pattern}\n").replace("\n...\n", "\n...");
    // A command's progress, which it prints only when the machine is slow.
    let is_progress = |line: &&str| line.contains(" lines read: ");
    let text: Vec<&str> = text.lines().filter(|line| !is_progress(line)).collect();
    let text = format!("\n{}\n", text.join("\n"));
    let (mut parts, text) = (pattern.split("..."), text.as_str());
    let Some(mut rest) = parts.next().and_then(|first| text.strip_prefix(first)) else { return false };
    let parts: Vec<&str> = parts.collect();
    let Some((last, between)) = parts.split_last() else { return rest.is_empty() };
    for part in between {
        let Some(found) = rest.find(part) else { return false };
        rest = &rest[found + part.len()..];
    }
    rest.ends_with(last)
}

#[test]
fn a_pattern_matches_what_it_shows() {
    assert!(matches("a ... c", "a b c") && matches("...\nend", "x\ny\nend") && matches("...", ""));
    assert!(matches("a\n...\nb", "a\nb") && matches("a\n...\nb", "a\nx\ny\nb") && matches("a\n...", "a\nb"));
    assert!(!matches("a ... c", "a b") && !matches("a", "a b") && !matches("b...", "a b"));
    assert!(!matches("a...a", "a") && !matches("a\n...\nb", "a\nc") && !matches("...\nb", "a b c"));
}

/// `./dev` in the background.
pub(crate) struct Dev {
    child: Child,
    dir: PathBuf,
}

impl Dev {
    /// Starts it with a program as it was built, and returns what it printed once it is ready.
    pub(crate) async fn start(code: &str, program: &Path, dir: &Path) -> (Self, String) {
        let log = fs::File::create(dir.join("dev.log")).unwrap();
        // `exec`, so that a signal to the shell is one to the program: in a terminal Ctrl-C reaches both.
        let mut child =
            shell(&format!("exec {code}"), program, dir).stdout(Stdio::piped()).stderr(log).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut card = Vec::new();
        let ready = async {
            while let Some(line) = lines.next_line().await.unwrap() {
                let is_last = line == READY;
                card.push(line);
                if is_last {
                    return;
                }
            }
            panic!("it ended instead of getting ready");
        };
        let ready = timeout(START_TIME, ready).await;
        let dev = Self { child, dir: dir.to_owned() };
        assert!(ready.is_ok(), "{code} is not ready:\n{}\n{}", card.join("\n"), dev.log());
        (dev, card.join("\n"))
    }

    fn log(&self) -> String {
        fs::read_to_string(self.dir.join("dev.log")).unwrap_or_default()
    }

    /// Sends Ctrl-C, and checks that nothing is left.
    pub(crate) async fn interrupt(mut self) {
        let pid = self.child.id().expect("it runs until now");
        let children = descendants(pid);
        assert!(children.len() >= 3, "nats-server, PostgreSQL and its helpers: {children:?}");
        kill_process(Pid::from_raw(pid.try_into().unwrap()).unwrap(), Signal::INT).unwrap();
        let ended = timeout(STOP_TIME, self.child.wait()).await;
        let status = ended.unwrap_or_else(|_| panic!("Ctrl-C does not stop it:\n{}", self.log())).unwrap();
        assert!(status.success(), "{status}:\n{}", self.log());
        let left: Vec<_> = children.into_iter().filter(|(pid, began)| began_at(*pid) == Some(*began)).collect();
        assert_eq!(left, [], "left behind");
        assert_eq!(running_in(&self.dir), [] as [String; 0], "left behind");
    }
}

impl Drop for Dev {
    fn drop(&mut self) {
        // Only a failing test gets here while it still runs. Its servers end with it.
        if let Some(pid) = self.child.id().and_then(|pid| Pid::from_raw(pid.try_into().unwrap())) {
            let _ = kill_process(pid, Signal::TERM);
        }
    }
}

/// Bash in the checkout, as a new user has it, with a program as it was built.
pub(crate) fn shell(script: &str, program: &Path, dir: &Path) -> Command {
    let mut command = Command::new("bash");
    command.args(["--noprofile", "--norc", "-c", script]).current_dir(env!("CARGO_MANIFEST_DIR"));
    command.env("ORGSTREAM_BIN", program);
    command.env("ORGSTREAM_DATA_DIR", dir.join("data")).env("ORGSTREAM_HTTP", "127.0.0.1:0");
    command.stdin(Stdio::null()).kill_on_drop(false);
    command
}

/// Runs the blocks in one shell; returns the output of each that was begun.
async fn run(steps: &[Step], dir: &Path) -> Vec<String> {
    let mut script = String::from("set -eo pipefail\nexec 2>&1\n");
    for step in steps {
        script.push_str(&format!("echo; echo {MARK}\n{}\n", step.code));
    }
    script.push_str(&format!("echo; echo {MARK}\n"));
    let output = shell(&script, Path::new(PROGRAM), dir).stdout(Stdio::piped()).kill_on_drop(true).output();
    let output = timeout(WALK_TIME, output).await.expect("the walk does not end").unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.split(&format!("{MARK}\n")).skip(1).map(|part| part.trim_end_matches('\n').to_owned()).collect()
}

fn see(step: &Step, output: &str) {
    if let Some(expected) = &step.expected {
        let Step { document, line, code, .. } = step;
        assert!(
            matches(expected, output.trim_matches('\n')),
            "{document} line {line}:\n{code}\n\nsays\n{expected}\n\nbut shows\n{output}"
        );
    }
}

#[tokio::test]
async fn the_walk_shows_what_it_says() {
    let walks = DOCUMENTS.map(|(document, text)| walk(document, text));
    let dir = TempDir::new();
    let (dev, card) = Dev::start(&walks[0].0.code, Path::new(PROGRAM), dir.path()).await;
    for (start, steps) in &walks {
        assert_eq!(start.code, walks[0].0.code, "all begin alike");
        see(start, &card);
        let outputs = run(steps, dir.path()).await;
        for (step, output) in steps.iter().zip(&outputs) {
            see(step, output);
        }
        // The mark behind the last block is one more.
        if outputs.len() <= steps.len() {
            let (Step { document, line, code, .. }, output) = (&steps[outputs.len() - 1], &outputs[outputs.len() - 1]);
            let hint =
                if code.contains("npm pack") { "\nThe walk needs npm, and its registry within reach." } else { "" };
            panic!("{document} line {line}: this block failed.{hint}\n{code}\n\nshows\n{output}\n\n{}", dev.log());
        }
    }
    dev.interrupt().await;

    let (dev, _) = Dev::start(&walks[0].0.code, Path::new(PROGRAM), dir.path()).await;
    let again = |code: &str, expected: &str| Step {
        document: "after a restart",
        line: 0,
        code: code.to_owned(),
        expected: Some(expected.to_owned()),
    };
    let steps = [
        // With the reads made meanwhile, which are in the log too.
        again(
            "eval \"$(./dev demo acme)\"\n./dev replay | grep -v access.audit_read | wc -l",
            "... events of org_...\n336",
        ),
        again("./dev publish .orgstream/webhooks.ndjson", "0 accepted, 329 were there already, 0 refused"),
    ];
    let outputs = run(&steps, dir.path()).await;
    assert_eq!(outputs.len(), steps.len() + 1, "after a restart: {outputs:?}\n{}", dev.log());
    for (step, output) in steps.iter().zip(&outputs) {
        see(step, output);
    }
    dev.interrupt().await;
}

#[tokio::test]
async fn everything_that_dev_starts_is_seen_by_the_walk() {
    // The walk's check that nothing is left must be able to detect a process.
    let mut child = Command::new("sh").args(["-c", "sleep 60 & wait"]).kill_on_drop(true).spawn().unwrap();
    let deadline = Instant::now() + STOP_TIME;
    let children = loop {
        let found = descendants(child.id().unwrap());
        if !found.is_empty() || Instant::now() > deadline {
            break found;
        }
        sleep(Duration::from_millis(10)).await;
    };
    assert_eq!(children.len(), 1);
    let (pid, began) = children[0];
    assert_eq!(began_at(pid), Some(began));
    kill_process(Pid::from_raw(pid.try_into().unwrap()).unwrap(), Signal::KILL).unwrap();
    timeout(STOP_TIME, child.wait()).await.unwrap().unwrap();
    assert_eq!(began_at(pid), None);
}

/// The fields of a process behind its name: state, parent, and so on.
fn stat(pid: u32) -> Option<Vec<String>> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, fields) = text.rsplit_once(") ")?;
    Some(fields.split(' ').map(str::to_owned).collect())
}

/// When a process began, in the kernel's ticks; none when it is gone.
fn began_at(pid: u32) -> Option<u64> {
    let fields = stat(pid)?;
    if matches!(fields[0].as_str(), "Z" | "X") { None } else { fields[19].parse().ok() }
}

fn processes() -> impl Iterator<Item = u32> {
    fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// The children of a process and theirs, each with when it began.
fn descendants(pid: u32) -> Vec<(u32, u64)> {
    let parents: Vec<(u32, u32)> = processes().filter_map(|pid| Some((pid, stat(pid)?[1].parse().ok()?))).collect();
    let mut family = vec![pid];
    let mut found = Vec::new();
    while let Some(parent) = family.pop() {
        for (child, _) in parents.iter().filter(|(_, of)| *of == parent) {
            family.push(*child);
            found.extend(began_at(*child).map(|began| (*child, began)));
        }
    }
    found
}

/// The command lines of processes that were given a path in `dir`.
fn running_in(dir: &Path) -> Vec<String> {
    let lines = processes()
        .filter(|pid| began_at(*pid).is_some())
        .filter_map(|pid| fs::read(format!("/proc/{pid}/cmdline")).ok());
    let lines = lines.map(|line| String::from_utf8_lossy(&line).replace('\0', " "));
    lines.filter(|line| line.contains(&*dir.to_string_lossy())).collect()
}
