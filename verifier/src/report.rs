//! What verification found: an outcome for programs, and sentences for people.

use std::fmt;

use serde::Serialize;

/// The most findings that are kept; the rest is counted.
const MAX_FINDINGS: usize = 100;

/// How it ended. The worst of what was found counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Everything fits, and enough of the pinned witnesses have seen it.
    Valid,
    /// Everything fits, as far as the log's own word goes.
    NotWitnessed,
    /// What is there fits, and some of the range is not there.
    Incomplete,
    /// The log is not a continuation of a head that you hold.
    Diverges,
    /// Something contradicts what was signed.
    Invalid,
}

impl Outcome {
    /// The exit code.
    pub fn code(self) -> u8 {
        match self {
            Self::Valid => 0,
            Self::NotWitnessed => 10,
            Self::Incomplete => 20,
            Self::Diverges => 30,
            Self::Invalid => 40,
        }
    }

    fn words(self) -> &'static str {
        match self {
            Self::Valid => "VALID and witnessed",
            Self::NotWitnessed => "VALID, NOT WITNESSED",
            Self::Incomplete => "VALID, but INCOMPLETE",
            Self::Diverges => "DIVERGES from a head that you hold",
            Self::Invalid => "INVALID",
        }
    }
}

/// One thing that does not fit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What it makes of the whole.
    pub outcome: Outcome,
    /// The file, where it is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
    /// The event, where it is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub idx: Option<u64>,
    /// What is wrong.
    pub what: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(file) = &self.file {
            write!(f, "{file}: ")?;
        }
        if let Some(idx) = self.idx {
            write!(f, "event {idx}: ")?;
        }
        f.write_str(&self.what)
    }
}

/// Everything that is to be said about a bundle.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Report {
    /// The log.
    pub origin: String,
    /// The size of the signed head.
    pub size: u64,
    /// The root of the signed head.
    pub root: String,
    /// Events whose bytes were there.
    pub events: u64,
    /// Payloads that were there and fit, that were kept back, and that are gone. For one that is missing without a reason in
    /// the log there is a finding as well.
    pub payloads: [u64; 3],
    /// Signed heads that fit.
    pub checkpoints: u64,
    /// Pinned witnesses that have seen the head, and when, in seconds since 1970.
    pub witnesses: Vec<(String, u64)>,
    /// Messages that the log says it lacks, or that the manifest says it does.
    pub lacked: u64,
    /// Messages that the log will never have, because the operator gave them up.
    pub given_up: u64,
    /// What does not fit.
    pub findings: Vec<Finding>,
    /// Findings beyond those that are named.
    pub more_findings: u64,
    /// What is worth knowing and no fault.
    pub notes: Vec<String>,
    /// What the bundle proves and what it does not.
    pub says: Vec<String>,
}

impl Report {
    /// The outcome: the worst finding.
    pub fn outcome(&self) -> Outcome {
        self.findings.iter().map(|finding| finding.outcome).max().unwrap_or(Outcome::Valid)
    }

    pub(crate) fn find(&mut self, outcome: Outcome, file: Option<&str>, idx: Option<u64>, what: impl Into<String>) {
        // The worst must not be lost behind many that are less.
        if self.findings.len() < MAX_FINDINGS || outcome > self.outcome() {
            self.findings.push(Finding { outcome, file: file.map(str::to_owned), idx, what: what.into() });
        } else {
            self.more_findings += 1;
        }
    }

    pub(crate) fn invalid(&mut self, file: &str, what: impl Into<String>) {
        self.find(Outcome::Invalid, Some(file), None, what);
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { origin, size, root, events, payloads: [shown, withheld, erased], checkpoints, .. } = self;
        writeln!(f, "{}", self.outcome().words())?;
        writeln!(f, "  log          {origin}")?;
        writeln!(f, "  head         {size} events, root {root}")?;
        writeln!(f, "  events       {events}; payloads: {shown} match, {withheld} withheld, {erased} erased")?;
        writeln!(f, "  heads        {checkpoints} signed and consistent")?;
        if self.lacked > 0 || self.given_up > 0 {
            writeln!(
                f,
                "  lacks        {} messages that are parked, {} that were given up",
                self.lacked, self.given_up
            )?;
        }
        for (name, time) in &self.witnesses {
            writeln!(f, "  witness      {name} at {time} (seconds since 1970)")?;
        }
        for finding in &self.findings {
            writeln!(f, "  ! {finding}")?;
        }
        if self.more_findings > 0 {
            writeln!(f, "  ! and {} more", self.more_findings)?;
        }
        self.notes.iter().try_for_each(|note| writeln!(f, "  note: {note}"))?;
        self.says.iter().try_for_each(|sentence| writeln!(f, "  {sentence}"))
    }
}
