//! Policies as files (C2SP tlog-policy): the logs, the witnesses with their addresses, and the quorum.
//!
//! An auditor uses one as the rule of trust; an operator uses one as the list of witnesses to request signatures from.

use std::collections::BTreeMap;

use crate::{
    Distrust, LogKey, MAX_WITNESSES, Policy, PolicyError, SignedNote, WitnessKey, Witnessed, text::plain_text,
};

/// The longest file that is read.
const MAX_BYTES: usize = 64 * 1024;

/// A policy file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PolicyFile {
    /// The logs of the file, with their addresses.
    pub logs: Vec<(LogKey, Option<String>)>,
    /// The witnesses, in the file's order.
    pub witnesses: Vec<KnownWitness>,
    /// The meaning of names: witnesses, and groups of names with their required number.
    rules: BTreeMap<String, Rule>,
    quorum: Option<String>,
}

/// A witness of a policy file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KnownWitness {
    /// Its name in the file.
    pub name: String,
    /// Its key.
    pub key: WitnessKey,
    /// The address that checkpoints are sent to, if given.
    pub url: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Rule {
    Witness(usize),
    Group(usize, Vec<String>),
}

/// An error in a line of a policy file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line} of the policy: {what}")]
pub struct PolicyFileError {
    /// The line, from 1; 0 when it concerns the whole file.
    pub line: usize,
    /// The error.
    pub what: String,
}

impl PolicyFile {
    /// Parses a file. Groups consist of names defined above them, so none contains itself.
    pub fn parse(file: &[u8]) -> Result<Self, PolicyFileError> {
        let whole = |what: String| PolicyFileError { line: 0, what };
        let text = plain_text("the policy", file, MAX_BYTES).map_err(|error| whole(error.to_string()))?;
        let mut policy = Self { logs: Vec::new(), witnesses: Vec::new(), rules: BTreeMap::new(), quorum: None };
        let mut has_quorum = false;
        for (number, line) in (1..).zip(text.lines()) {
            let words: Vec<&str> = line.split_whitespace().collect();
            let wrong = |what: String| PolicyFileError { line: number, what };
            match *words.as_slice() {
                [] => {}
                [first, ..] if first.starts_with('#') => {}
                ["log", key] | ["log", key, _] => {
                    let key = key.parse().map_err(|error| wrong(format!("{error}")))?;
                    policy.logs.push((key, words.get(2).map(|url| (*url).to_owned())));
                }
                ["witness", name, key] | ["witness", name, key, _] => {
                    let key = key.parse().map_err(|error| wrong(format!("{error}")))?;
                    policy.add_witness(name, key, words.get(3).copied()).map_err(wrong)?;
                }
                ["group", name, enough, ref members @ ..] if !members.is_empty() => {
                    policy.add_group(name, enough, members).map_err(wrong)?;
                }
                ["quorum", name] if !has_quorum => {
                    has_quorum = true;
                    policy.quorum = (name != "none").then(|| name.to_owned());
                    if name != "none" && !policy.rules.contains_key(name) {
                        return Err(wrong(format!("there is no witness or group {name} above")));
                    }
                }
                _ => return Err(wrong("is not a log, witness, group or (once) quorum".to_owned())),
            }
        }
        if has_quorum {
            Ok(policy)
        } else {
            Err(whole("a line `quorum` is missing; `quorum none` asks for none".into()))
        }
    }

    fn add_witness(&mut self, name: &str, key: WitnessKey, url: Option<&str>) -> Result<(), String> {
        if self.witnesses.len() == MAX_WITNESSES {
            return Err(format!("there may be {MAX_WITNESSES} witnesses"));
        }
        if self.witnesses.iter().any(|known| known.key.name() == key.name() || known.key.public() == key.public()) {
            return Err(format!("the key {} is there twice", key.name()));
        }
        self.add_rule(name, Rule::Witness(self.witnesses.len()))?;
        self.witnesses.push(KnownWitness { name: name.to_owned(), key, url: url.map(str::to_owned) });
        Ok(())
    }

    fn add_group(&mut self, name: &str, enough: &str, members: &[&str]) -> Result<(), String> {
        if let Some(unknown) = members.iter().find(|member| !self.rules.contains_key(**member)) {
            return Err(format!("there is no witness or group {unknown} above"));
        }
        let distinct: std::collections::BTreeSet<_> = members.iter().collect();
        if distinct.len() < members.len() {
            return Err("a member is named twice".to_owned());
        }
        let enough = match enough {
            "all" => members.len(),
            "any" => 1,
            number => number.parse().map_err(|_| format!("{number} is not all, any or a number"))?,
        };
        if enough == 0 || enough > members.len() {
            return Err(format!("{enough} of {} members cannot be asked for", members.len()));
        }
        self.add_rule(name, Rule::Group(enough, members.iter().map(|member| (*member).to_owned()).collect()))
    }

    fn add_rule(&mut self, name: &str, rule: Rule) -> Result<(), String> {
        if name == "none" || self.rules.insert(name.to_owned(), rule).is_some() {
            return Err(format!("the name {name} is taken"));
        }
        Ok(())
    }

    /// Whether any witness is required.
    pub fn asks_for_witnesses(&self) -> bool {
        self.quorum.is_some()
    }

    /// Returns the witnesses that signed this checkpoint of `log`, and whether they satisfy the quorum.
    pub fn check(&self, log: &LogKey, note: &SignedNote) -> Result<(Witnessed, bool), PolicyCheckError> {
        let keys = self.witnesses.iter().map(|witness| witness.key.clone()).collect();
        let seen = Policy::new(log.clone(), keys, 0)?.check(note)?;
        let signed = |nth: usize| {
            let key = self.witnesses.get(nth).map(|witness| witness.key.name());
            key.is_some_and(|key| seen.witnesses.iter().any(|(name, _)| name == key))
        };
        let enough = self.quorum.as_ref().is_none_or(|quorum| self.is_met(quorum, &signed));
        Ok((seen, enough))
    }

    fn is_met(&self, name: &str, signed: &impl Fn(usize) -> bool) -> bool {
        match self.rules.get(name) {
            Some(Rule::Witness(nth)) => signed(*nth),
            Some(Rule::Group(enough, members)) => {
                members.iter().filter(|member| self.is_met(member, signed)).count() >= *enough
            }
            None => false,
        }
    }
}

/// The reason why a checkpoint is not trusted, or a policy requires less than it seems to.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PolicyCheckError {
    /// The keys contradict each other.
    #[error(transparent)]
    Policy(#[from] PolicyError),
    /// The checkpoint is not trusted.
    #[error(transparent)]
    Distrust(#[from] Distrust),
}
