//! Child processes that end when this process does, in whatever way it ends.
//!
//! Three defences. A server that is dropped is killed. Where the kernel can send a signal on the death of a parent, it
//! is requested, so that `kill -9` of this process also ends its servers. And every start records the started process,
//! so that the next start finds a leftover all the same, and ends it if it is still the same process.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::{fs::OpenOptionsExt as _, process::CommandExt as _},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::OnceLock,
    time::Duration,
};

use orgstream_events::Chain;
use rustix::process::{Pid, Signal, kill_process};
use serde::{Deserialize, Serialize};
use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, sleep},
};

use crate::{ServerError, account::Account};

const POLL: Duration = Duration::from_millis(10);
/// Timeout for a server to die of SIGKILL: only the kernel is involved.
const KILL_TIME: Duration = Duration::from_secs(10);
/// Size in bytes from which a log is replaced at the next start.
const LOG_LIMIT: u64 = 16 * 1024 * 1024;

/// The specification of a server process.
pub(super) struct Spec<'a> {
    /// Its human-readable name.
    pub(super) name: &'static str,
    pub(super) program: &'a Path,
    pub(super) args: Vec<String>,
    /// The file of its output.
    pub(super) log: &'a Path,
    /// The file where it is recorded.
    pub(super) children: &'a Path,
    /// The account it runs as, if not this process's.
    pub(super) account: Option<&'a Account>,
    /// The signal for a graceful stop: sent by this process, or by the kernel on its death.
    pub(super) stop: Signal,
    /// The signal that the kernel sends it on this process's death.
    pub(super) on_our_death: &'static str,
    /// The signal of the last resort.
    pub(super) abort: Signal,
}

/// A running child.
pub(super) struct Server {
    name: &'static str,
    child: Child,
    children: PathBuf,
    stop: Signal,
    abort: Signal,
    ended: Option<ExitStatus>,
}

impl Server {
    /// Starts the process and records it.
    pub(super) async fn spawn(spec: Spec<'_>) -> Result<Self, ServerError> {
        let log = open_log(spec.log)?;
        let errors = log.try_clone().map_err(ServerError::io("share the log"))?;
        let mut command = child_command(spec.program, spec.on_our_death).await;
        command.args(&spec.args).stdin(Stdio::null()).stdout(log).stderr(errors).current_dir("/");
        if let Some(account) = spec.account {
            // The kernel clears the death signal on a change of user, so the change comes before setpriv.
            command.uid(account.uid).gid(account.gid);
        }
        let what = format!("start {}", spec.program.display());
        let child = spawn(command).await.map_err(ServerError::io(what))?;
        let mut server = Self {
            name: spec.name,
            child,
            children: spec.children.to_owned(),
            stop: spec.stop,
            abort: spec.abort,
            ended: None,
        };
        if let Err(error) = Written::of(server.pid(), spec.program).store(spec.children) {
            server.kill().await;
            return Err(ServerError::io(format!("write {}", spec.children.display()))(error));
        }
        Ok(server)
    }

    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Returns the exit status, if it ended.
    pub(super) fn ended(&mut self) -> Option<ExitStatus> {
        if self.ended.is_none() {
            self.ended = self.child.try_wait().ok().flatten();
            if self.ended.is_some() {
                let _ = fs::remove_file(&self.children);
            }
        }
        self.ended
    }

    /// Stops it gracefully; after `within`, by force.
    pub(super) async fn stop(&mut self, within: Duration) {
        self.signal(self.stop);
        if !self.has_ended_within(within).await {
            tracing::warn!(server = self.name, pid = self.pid(), "the server did not stop in time and is killed");
            self.signal(self.abort);
            self.has_ended_within(within).await;
            self.kill().await;
        }
    }

    /// Kills it, and returns when it is gone.
    pub(super) async fn kill(&mut self) {
        self.signal(Signal::KILL);
        self.has_ended_within(KILL_TIME).await;
    }

    async fn has_ended_within(&mut self, within: Duration) -> bool {
        let deadline = Instant::now() + within;
        while self.ended().is_none() {
            if Instant::now() >= deadline {
                return false;
            }
            sleep(POLL).await;
        }
        true
    }

    fn signal(&mut self, signal: Signal) {
        // Until it was waited for, its number is not reused.
        if self.ended().is_none() {
            let _ = kill_process(Pid::from_child(&self.child), signal);
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.signal(self.abort);
        // Nothing can be awaited here, so the thread blocks: a moment, for a server that is being aborted.
        for _ in 0..300 {
            if self.ended().is_some() {
                return;
            }
            std::thread::park_timeout(POLL);
        }
        self.signal(Signal::KILL);
        let _ = self.child.wait();
        self.ended();
    }
}

struct Job {
    command: Command,
    reply: oneshot::Sender<io::Result<Child>>,
}

/// Starts a process from a thread that lives as long as this process.
///
/// The kernel's "signal on the death of the parent" refers to the thread that started the child. A runtime's threads
/// come and go; if one of them had started the server, its end would stop the server.
async fn spawn(command: Command) -> io::Result<Child> {
    static SPAWNER: OnceLock<mpsc::Sender<Job>> = OnceLock::new();
    let gone = || io::Error::other("the thread that starts servers is gone");
    let spawner = SPAWNER.get_or_init(|| {
        let (sender, mut jobs) = mpsc::channel::<Job>(4);
        let run = move || {
            while let Some(Job { mut command, reply }) = jobs.blocking_recv() {
                let _ = reply.send(command.spawn());
            }
        };
        // Without a thread the channel is closed, and every job fails with that error.
        if let Err(error) = std::thread::Builder::new().name("server-spawner".to_owned()).spawn(run) {
            tracing::error!(error = %Chain(&error), "cannot start the thread that starts servers");
        }
        sender
    });
    let (reply, answer) = oneshot::channel();
    spawner.send(Job { command, reply }).await.map_err(|_| gone())?;
    answer.await.map_err(|_| gone())?
}

/// A command that runs `program` in a session of its own, and that the kernel sends a signal on this process's death,
/// where it can.
///
/// A session of its own, because Ctrl-C in a terminal is for this process, which stops the servers after the processes
/// that need them; and because Linux divides the processor by session: a server competes on its own.
pub async fn child_command(program: &Path, on_our_death: &str) -> Command {
    if dies_with_parent().await {
        let mut command = Command::new("setsid");
        command.args(["setpriv", "--pdeathsig", on_our_death, "--"]).arg(program);
        command
    } else {
        let mut command = Command::new(program);
        command.process_group(0);
        command
    }
}

/// Whether `setpriv` can request a signal on this process's death. Not everywhere: it is Linux-only, and not in every
/// container.
async fn dies_with_parent() -> bool {
    static CAN: OnceLock<bool> = OnceLock::new();
    if let Some(can) = CAN.get() {
        return *can;
    }
    let probe = tokio::process::Command::new("setpriv")
        .args(["--pdeathsig", "KILL", "--", "true"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .await;
    *CAN.get_or_init(|| probe.is_ok_and(|status| status.success()))
}

fn open_log(path: &Path) -> Result<File, ServerError> {
    if fs::metadata(path).is_ok_and(|log| log.len() > LOG_LIMIT) {
        let _ = fs::rename(path, path.with_extension("log.1"));
    }
    let opened = OpenOptions::new().create(true).append(true).mode(0o600).open(path);
    opened.map_err(ServerError::io(format!("write {}", path.display())))
}

/// The record of a child: a number alone could be another process by the time it is read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Written {
    pid: u32,
    /// When the process began, in the kernel's own ticks since boot.
    started: Option<u64>,
    /// The id of the boot.
    boot: Option<String>,
    executable: PathBuf,
}

impl Written {
    fn of(pid: u32, program: &Path) -> Self {
        let executable = fs::canonicalize(program).unwrap_or_else(|_| program.to_owned());
        Self { pid, started: started(pid), boot: boot(), executable }
    }

    fn store(&self, children: &Path) -> io::Result<()> {
        // Renamed into place, so that a crash leaves the old file or the new one.
        let draft = children.with_extension("json.new");
        fs::write(&draft, serde_json::to_vec(&[self])?)?;
        fs::rename(draft, children)
    }

    /// Whether the process of this number is still the recorded one.
    fn is_running(&self) -> bool {
        let same = self.started.is_some() && started(self.pid) == self.started && boot() == self.boot;
        same && match fs::read_link(format!("/proc/{}/exe", self.pid)) {
            Ok(found) => {
                // A program that was replaced on disk meanwhile.
                let found = found.to_string_lossy();
                found.strip_suffix(" (deleted)").unwrap_or(&found) == self.executable.to_string_lossy()
            }
            // A dying process has released its program before its files and its ports.
            Err(error) => error.kind() == io::ErrorKind::NotFound,
        }
    }

    fn signal(&self, signal: Signal) {
        if let Some(pid) = i32::try_from(self.pid).ok().and_then(Pid::from_raw) {
            let _ = kill_process(pid, signal);
        }
    }
}

/// Ends the processes that an earlier run left behind: first with `stop`, after `within` by force.
pub(super) async fn end_leftovers(children: &Path, stop: Signal, within: Duration) -> Result<(), ServerError> {
    let Ok(bytes) = fs::read(children) else { return Ok(()) };
    // An unreadable file names no process.
    let leftovers: Vec<Written> = serde_json::from_slice(&bytes).unwrap_or_default();
    for leftover in leftovers.iter().filter(|leftover| leftover.is_running()) {
        tracing::warn!(pid = leftover.pid, program = %leftover.executable.display(), "ending a server that was left over");
        leftover.signal(stop);
        let deadline = Instant::now() + within;
        while leftover.is_running() && Instant::now() < deadline {
            sleep(POLL).await;
        }
        if leftover.is_running() {
            leftover.signal(Signal::KILL);
        }
        let deadline = Instant::now() + KILL_TIME;
        while leftover.is_running() {
            if Instant::now() > deadline {
                let problem = format!("the process {} from an earlier run cannot be ended", leftover.pid);
                return Err(ServerError::Folder { path: children.to_owned(), problem });
            }
            sleep(POLL).await;
        }
    }
    let _ = fs::remove_file(children);
    Ok(())
}

/// The processes of `program` (by file name) that work in `dir`. None where the kernel does not show them.
pub(super) fn working_in(dir: &Path, program: &str) -> Vec<Pid> {
    let Ok(dir) = fs::canonicalize(dir) else { return Vec::new() };
    let Ok(processes) = fs::read_dir("/proc") else { return Vec::new() };
    let found = processes.flatten().filter_map(|process| {
        let pid: i32 = process.file_name().to_str()?.parse().ok()?;
        let link = |name: &str| fs::read_link(process.path().join(name)).ok();
        let here = link("cwd").is_some_and(|cwd| cwd == dir);
        let ours = link("exe").is_some_and(|exe| {
            let name = exe.file_name().unwrap_or_default().to_string_lossy().into_owned();
            name.strip_suffix(" (deleted)").unwrap_or(&name) == program
        });
        (here && ours).then(|| Pid::from_raw(pid)).flatten()
    });
    found.collect()
}

/// Waits until no process of `program` works in `dir` any more; after `within`, by force.
pub(super) async fn all_gone(dir: &Path, program: &str, within: Duration) {
    let deadline = Instant::now() + within;
    let forced = deadline + KILL_TIME;
    loop {
        let left = working_in(dir, program);
        if left.is_empty() || Instant::now() > forced {
            return;
        }
        if Instant::now() > deadline {
            for pid in left {
                let _ = kill_process(pid, Signal::KILL);
            }
        }
        sleep(POLL).await;
    }
}

/// When a process began, in ticks since boot. None for one that is gone, or that has ended and was not waited for.
fn started(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is a name in parentheses, and may itself contain spaces and parentheses.
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_ascii_whitespace();
    let state = fields.next()?;
    if matches!(state, "Z" | "X") {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

fn boot() -> Option<String> {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").ok().map(|id| id.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("orgstream-process-{name}-{}", std::process::id()));
            fs::create_dir_all(&path).unwrap();
            Self(path)
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn sleeper() -> (Child, PathBuf) {
        let program = ["/bin/sleep", "/usr/bin/sleep"].into_iter().find(|path| Path::new(path).exists()).unwrap();
        (Command::new(program).arg("600").spawn().unwrap(), program.into())
    }

    #[cfg(target_os = "linux")]
    #[tokio::test]
    async fn what_is_left_over_is_ended() {
        let folder = Folder::new("leftover");
        let children = folder.0.join("children.json");
        let (mut child, program) = sleeper();
        Written::of(child.id(), &program).store(&children).unwrap();
        end_leftovers(&children, Signal::TERM, Duration::from_secs(5)).await.unwrap();
        assert!(child.try_wait().unwrap().is_some());
        assert!(!children.exists());
    }

    #[cfg(target_os = "linux")]
    #[tokio::test]
    async fn another_process_of_the_same_number_is_left_alone() {
        let folder = Folder::new("other");
        let children = folder.0.join("children.json");
        let (mut child, program) = sleeper();
        let right = Written::of(child.id(), &program);
        for wrong in [
            Written { started: right.started.map(|ticks| ticks + 1), ..right.clone() },
            Written { boot: Some("another".to_owned()), ..right.clone() },
            Written { executable: "/usr/sbin/nats-server".into(), ..right.clone() },
        ] {
            wrong.store(&children).unwrap();
            end_leftovers(&children, Signal::KILL, Duration::from_secs(5)).await.unwrap();
            assert!(child.try_wait().unwrap().is_none());
        }
        fs::write(&children, b"not json").unwrap();
        end_leftovers(&children, Signal::KILL, Duration::from_secs(5)).await.unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn processes_are_found_by_where_they_work() {
        let folder = Folder::new("cwd");
        let mut child = Command::new("sleep").arg("600").current_dir(&folder.0).spawn().unwrap();
        assert_eq!(working_in(&folder.0, "sleep"), [Pid::from_child(&child)]);
        assert!(working_in(&folder.0, "postgres").is_empty());
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(working_in(&folder.0, "sleep").is_empty());
    }
}
