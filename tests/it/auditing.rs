//! An installation with signed audit logs and an independent witness: the setup of tests of the audit log.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Child,
    time::Duration,
};

use orgstream_transparency::{Log, LogKey, LogSigner, SignedNote};
use reqwest::Method;
use serde_json::Value;

use crate::{
    cluster::{Cluster, ClusterOptions, Tenant, create, eventually, program},
    support::TempDir,
};

/// The key's host, and so the first part of every log's name.
pub(crate) const HOST: &str = "audit.test";

/// The product, a signing process, a witness, and folders for an auditor's files.
pub(crate) struct Auditing {
    pub(crate) cluster: Cluster,
    signing: Option<Child>,
    witness: Option<Child>,
}

/// The result of a verification.
pub(crate) struct Verdict {
    pub(crate) code: i32,
    pub(crate) report: Value,
}

impl Verdict {
    /// The findings, one line each.
    pub(crate) fn findings(&self) -> Vec<String> {
        let text = |finding: &Value, name: &str| finding[name].as_str().unwrap_or_default().to_owned();
        let findings = self.report["findings"].as_array().unwrap().iter();
        findings.map(|one| format!("{} {} {}", text(one, "file"), one["idx"], text(one, "what"))).collect()
    }

    /// Returns the verdict, if it has this code.
    pub(crate) fn expect(self, code: i32) -> Self {
        assert_eq!(self.code, code, "{:#}", self.report);
        self
    }

    /// Returns the verdict, if it contains these words.
    pub(crate) fn naming(self, words: &[&str]) -> Self {
        let findings = self.findings();
        let named = |finding: &String| words.iter().all(|word| finding.contains(word));
        assert!(findings.iter().any(named), "{words:?} in {findings:#?}");
        self
    }
}

impl Auditing {
    /// Starts everything, with a witness.
    pub(crate) async fn start() -> Self {
        let mut all = Self::start_unwitnessed().await;
        all.start_witness().await;
        all.start_signing();
        all
    }

    /// Starts the product with a key, but no signing process.
    pub(crate) async fn start_unwitnessed() -> Self {
        let cluster = Cluster::start(ClusterOptions::default()).await;
        let made = cluster.cli("", &["sign", "--keys", "keys", "--new-key", HOST]).await.success();
        assert_eq!(made.stdout, fs::read_to_string(cluster.dir().join("keys/log.vkey")).unwrap());
        fs::write(cluster.dir().join("policy.txt"), "quorum none\n").unwrap();
        Self { cluster, signing: None, witness: None }
    }

    /// Starts with API and workers that were given the key, which cannot be changed through the database.
    pub(crate) async fn start_pinned() -> Self {
        let outside = TempDir::new();
        let keys = outside.path().join("keys");
        let made = program().arg("sign").arg("--keys").arg(&keys).args(["--new-key", HOST]).output().unwrap();
        assert!(made.status.success(), "{made:?}");
        let pin = vec!["--log-key".to_owned(), keys.join("log.vkey").to_str().unwrap().to_owned()];
        let options = ClusterOptions { serve: pin.clone(), work: pin, ..ClusterOptions::default() };
        let cluster = Cluster::start(options).await;
        copy(&keys, &cluster.dir().join("keys"));
        fs::write(cluster.dir().join("policy.txt"), "quorum none\n").unwrap();
        Self { cluster, signing: None, witness: None }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.cluster.dir().join(name)
    }

    /// Starts a program of the cluster in the background, with its output in a file.
    pub(crate) fn spawn(&self, log: &str, args: &[&str]) -> Child {
        let mut command = self.cluster.command("", args).0;
        let log = fs::File::create(self.path(log)).unwrap();
        command.stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap()
    }

    pub(crate) fn start_signing(&mut self) {
        let args =
            ["sign", "--keys", "keys", "--witnesses", "policy.txt", "--sign-seconds", "1", "--http", "127.0.0.1:0"];
        self.signing = Some(self.spawn("sign.log", &args));
    }

    pub(crate) fn stop_signing(&mut self) {
        end(self.signing.take());
    }

    pub(crate) async fn start_witness(&mut self) {
        self.start_witness_in("witness", "policy.txt").await;
    }

    /// Starts a witness with its state and its key in a folder, and a policy that requires it, in place of the one
    /// before.
    pub(crate) async fn start_witness_in(&mut self, dir: &str, policy: &str) {
        let port = orgstream_servers::stable_listener(&self.path("port")).unwrap().local_addr().unwrap();
        let (http, url) = (port.to_string(), format!("http://{port}"));
        let name = format!("{dir}.test/w1");
        let args = ["witness", "--dir", dir, "--name", &name, "--log-key", "keys/log.vkey", "--http", &http];
        self.witness = Some(self.spawn("witness.log", &args));
        let health = format!("{url}/healthz");
        eventually("the witness", async || reqwest::get(&health).await.ok().map(|_| ())).await;
        let vkey = fs::read_to_string(self.path(dir).join("witness.vkey")).unwrap();
        let text = format!("witness w1 {} {url}\nquorum w1\n", vkey.trim_end());
        fs::write(self.path(policy), text).unwrap();
    }

    pub(crate) fn stop_witness(&mut self) {
        end(self.witness.take());
    }

    pub(crate) fn log_key(&self) -> LogKey {
        fs::read_to_string(self.path("keys/log.vkey")).unwrap().trim_end().parse().unwrap()
    }

    /// The operator's own key, which an attacker in the operator's place has.
    pub(crate) fn signer(&self, tenant: &Tenant) -> LogSigner {
        let text = fs::read_to_string(self.path("keys/log.key")).unwrap();
        let key: orgstream_transparency::SignerKey<Log> = text.trim_end().parse().unwrap();
        key.named(format!("{HOST}/{}", tenant.id).parse().unwrap())
    }

    /// Records, each an event of its own.
    pub(crate) async fn records(&self, tenant: &Tenant, names: impl IntoIterator<Item = String>) {
        let commands: Vec<Value> = names.into_iter().map(create).collect();
        for (number, commands) in commands.chunks(500).enumerate() {
            let key = format!("{:?}", (commands.first(), number));
            let key: String = key.chars().filter(char::is_ascii_alphanumeric).take(200).collect();
            self.cluster.client.command(tenant, &key, &Value::from(commands)).await.expect(200);
        }
        self.cluster.until_projected(tenant).await;
    }

    /// A text response of the API.
    pub(crate) async fn text(&self, tenant: &Tenant, path: &str) -> String {
        let request = self.cluster.client.request(Method::GET, &tenant.path(path), &tenant.key);
        let answer = request.header("Prefer", "wait=20").send().await.unwrap();
        assert_eq!(answer.status(), 200, "{path}: {}", answer.text().await.unwrap());
        answer.text().await.unwrap()
    }

    /// A binary response of the API.
    pub(crate) async fn bytes(&self, tenant: &Tenant, path: &str) -> Vec<u8> {
        let answer = self.cluster.client.request(Method::GET, &tenant.path(path), &tenant.key).send().await.unwrap();
        assert_eq!(answer.status(), 200, "{path}");
        answer.bytes().await.unwrap().to_vec()
    }

    /// The signed head over everything projected so far.
    pub(crate) async fn head(&self, tenant: &Tenant) -> SignedNote {
        let answer = self.cluster.client.get(&tenant.key, &tenant.path("audit/events?limit=1")).await.expect(200);
        let size = answer.body["data"][0]["idx"].as_u64().unwrap() + 1;
        SignedNote::parse(self.text(tenant, &format!("audit/checkpoint?at_least={size}")).await.as_bytes()).unwrap()
    }

    /// The signed head once the witness has signed it too; kept in a file.
    pub(crate) async fn witnessed_head(&self, tenant: &Tenant, file: &str) -> SignedNote {
        let note = eventually("the witness's signature", async || {
            Some(self.head(tenant).await).filter(|note| note.signatures().len() > 1)
        })
        .await;
        fs::write(self.path(file), note.to_string()).unwrap();
        note
    }

    /// Exports a log in any state. Returns whether it matches what was signed, according to the export itself.
    pub(crate) async fn export(&self, tenant: &Tenant, out: &str) -> bool {
        let said = self.cluster.cli(&tenant.key, &["audit", "export", "--out", out]).await;
        assert!(said.ok || said.stderr.contains("this is not what was signed"), "{said:?}");
        said.ok
    }

    /// Verifies as an auditor does that has pinned the log's key and a policy.
    pub(crate) async fn verify(&self, bundle: &str, more: &[&str]) -> Verdict {
        let args = [&["audit", "verify", "--bundle", bundle, "--pin", "keys/log.vkey", "--json"], more].concat();
        let output = tokio::process::Command::from(self.cluster.command("", &args).0).output().await.unwrap();
        let code = output.status.code().unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        let report = serde_json::from_str(&text).unwrap_or_else(|_| panic!("{args:?}: {output:?}"));
        let verdict = Verdict { code, report };
        self.ask_python(bundle, more, &verdict);
        verdict
    }

    /// Checks that the independent verifier has the same result. It ignores witnesses, tiles of hashes whose events it
    /// has, the order in time and renderings: if all findings are of that kind, it finds nothing, and otherwise it
    /// does.
    fn ask_python(&self, bundle: &str, more: &[&str], verdict: &Verdict) {
        let known = more.windows(2).filter(|pair| pair[0] == "--known").map(|pair| self.path(pair[1]));
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/verify.py");
        let mut python = std::process::Command::new("python3");
        python.arg(script).arg(self.path(bundle)).arg(self.path("keys/log.vkey")).args(known);
        let output = python.output().unwrap();
        let expected = match verdict.code {
            0 => 10,
            40 if verdict.report["findings"].as_array().unwrap().iter().all(is_beyond_python) => 10,
            code => code,
        };
        assert_eq!(output.status.code(), Some(expected), "{:#} but {output:?}", verdict.report);
    }
}

/// Whether a finding is about something that the independent verifier ignores, or no fault at all.
fn is_beyond_python(finding: &Value) -> bool {
    let (file, what) = (finding["file"].as_str().unwrap_or_default(), finding["what"].as_str().unwrap());
    let is_of_hashes =
        file.strip_prefix("tile/").is_some_and(|place| place.starts_with(|first: char| first.is_numeric()));
    is_of_hashes && what == "its hashes are not the roots of the tiles below"
        || what.starts_with("its bytes are not those that tile/")
        || what.starts_with("it was recorded at ") && what.contains("before an event in front of it")
        || what.starts_with("it says that it was recorded at ")
        || what == "the line does not say what the entry says"
        || what == "has lines that belong to no entry"
        || finding["outcome"] == "not_witnessed"
}

fn end(child: Option<Child>) {
    if let Some(mut child) = child {
        child.kill().unwrap();
        child.wait().unwrap();
    }
}

impl Drop for Auditing {
    fn drop(&mut self) {
        end(self.signing.take());
        end(self.witness.take());
        if std::thread::panicking() {
            for log in ["sign.log", "witness.log"] {
                eprintln!("--- {log}\n{}", fs::read_to_string(self.path(log)).unwrap_or_default());
            }
        }
    }
}

/// Copies a folder, to be changed by a test.
pub(crate) fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// Updates a manifest to match the files, as an attacker would.
pub(crate) fn remake_manifest(bundle: &Path) {
    let path = bundle.join("manifest.json");
    let mut manifest: orgstream_verifier::Manifest = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    manifest.files.retain(|file| bundle.join(&file.path).exists());
    for file in &mut manifest.files {
        let bytes = fs::read(bundle.join(&file.path)).unwrap();
        (file.bytes, file.sha256) = (bytes.len() as u64, orgstream_events::Fingerprint::of(&[&bytes]));
    }
    fs::write(path, serde_json::to_vec_pretty(&manifest).unwrap()).unwrap();
}

/// Changes one byte of a file.
pub(crate) fn flip(path: &Path, at: usize) {
    let mut bytes = fs::read(path).unwrap();
    let at = at.min(bytes.len() - 1);
    bytes[at] ^= 1;
    fs::write(path, bytes).unwrap();
}

/// Timeout for an action that a process takes every second.
pub(crate) const MOMENT: Duration = Duration::from_secs(20);
