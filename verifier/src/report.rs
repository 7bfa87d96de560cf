//! The result of a verification: an outcome for programs, and sentences for people.

use std::fmt;

use serde::Serialize;

/// The most findings that are kept; the rest is counted.
const MAX_FINDINGS: usize = 100;

/// The outcome: the worst of the findings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Everything matches, and enough of the pinned witnesses have signed it.
    Valid,
    /// Everything matches, by the log's own signatures alone.
    NotWitnessed,
    /// What is present matches, and some of the range is missing.
    Incomplete,
    /// The log is not a continuation of a head that the auditor holds.
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

/// A mismatch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Its effect on the outcome.
    pub outcome: Outcome,
    /// The file, if it concerns one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
    /// The event, if it concerns one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub idx: Option<u64>,
    /// The description.
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

/// The full report about a bundle.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Report {
    /// The log.
    pub origin: String,
    /// The size of the signed head.
    pub size: u64,
    /// The root of the signed head.
    pub root: String,
    /// Events whose bytes were present.
    pub events: u64,
    /// Payloads that were present and match, that were withheld, and that were erased. One that is missing without a
    /// reason in the log is a finding as well.
    pub payloads: [u64; 3],
    /// Signed heads that match.
    pub checkpoints: u64,
    /// Pinned witnesses that have signed the head, with their times in seconds since 1970.
    pub witnesses: Vec<(String, u64)>,
    /// Messages that are missing according to the log or the manifest.
    pub lacked: u64,
    /// Messages that the log will never have, because the operator gave them up.
    pub given_up: u64,
    /// The mismatches.
    pub findings: Vec<Finding>,
    /// Number of findings beyond those that are named.
    pub more_findings: u64,
    /// Remarks that are no faults.
    pub notes: Vec<String>,
    /// Sentences about what the bundle proves and what it does not.
    pub says: Vec<String>,
}

impl Report {
    /// The outcome: the worst finding.
    pub fn outcome(&self) -> Outcome {
        self.findings.iter().map(|finding| finding.outcome).max().unwrap_or(Outcome::Valid)
    }

    pub(crate) fn find(&mut self, outcome: Outcome, file: Option<&str>, idx: Option<u64>, what: impl Into<String>) {
        // The worst must not be lost behind many lesser ones.
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
