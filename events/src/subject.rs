//! Subjects, formatted and parsed in this one place: `ev.<shard>.<org>.<aggregate>.<id>`, and those of snapshots.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::{AggregateId, AggregateType, OrgId};

/// One of the pooled streams. An org lives in exactly one at a time; which one is data, not arithmetic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Shard(pub u16);

impl fmt::Display for Shard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for AggregateId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.aggregate_type().name(), self.id())
    }
}

/// An aggregate as a subject names it, which need not be one that this version can parse: the decision on a parked message
/// has to name such a subject, too.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct AggregateName {
    /// The first token behind the org.
    #[serde(rename = "type")]
    pub aggregate: String,
    /// All tokens behind that; empty where there are none.
    pub id: String,
}

impl AggregateName {
    /// Parses what a subject names, in the tokens behind its org.
    pub fn of_subject(subject: &str) -> Self {
        subject.splitn(4, '.').nth(3).unwrap_or_default().into()
    }
}

impl fmt::Display for AggregateName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.aggregate)?;
        if self.id.is_empty() { Ok(()) } else { write!(f, ".{}", self.id) }
    }
}

impl From<&str> for AggregateName {
    fn from(text: &str) -> Self {
        let (aggregate, id) = text.split_once('.').unwrap_or((text, ""));
        Self { aggregate: aggregate.to_owned(), id: id.to_owned() }
    }
}

impl From<AggregateId> for AggregateName {
    fn from(aggregate: AggregateId) -> Self {
        Self { aggregate: aggregate.aggregate_type().name().to_owned(), id: aggregate.id() }
    }
}

impl TryFrom<AggregateName> for AggregateId {
    type Error = SubjectError;

    fn try_from(name: AggregateName) -> Result<Self, SubjectError> {
        Self::parse(&name.aggregate, &name.id)
    }
}

/// The reason why a text is not a valid subject.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is {problem}")]
pub struct SubjectError {
    text: String,
    problem: &'static str,
}

impl SubjectError {
    pub(crate) fn new(text: &str, problem: &'static str) -> Self {
        Self { text: text.chars().take(120).collect(), problem }
    }
}

/// The subject of the commits of one aggregate.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct EventSubject {
    /// The stream that holds the org.
    pub shard: Shard,
    /// The org, before anything else that could distinguish two aggregates.
    pub org: OrgId,
    /// The aggregate.
    pub aggregate: AggregateId,
}

impl EventSubject {
    /// Returns the wildcard of everything in one shard.
    pub fn all_in_shard(shard: Shard) -> String {
        format!("ev.{shard}.>")
    }

    /// Returns the wildcard of everything of one org.
    pub fn all_of_org(shard: Shard, org: OrgId) -> String {
        format!("ev.{shard}.{org}.>")
    }

    /// Returns the wildcard of the org's aggregates of one type.
    pub fn all_of_type(shard: Shard, org: OrgId, aggregate: AggregateType) -> String {
        format!("ev.{shard}.{org}.{}.*", aggregate.name())
    }

    /// Returns the wildcard of the aggregates of a type of all orgs in one shard: one subject each, where an org has one of them.
    pub fn every_org_in_shard(shard: Shard, aggregate: AggregateType) -> String {
        format!("ev.{shard}.*.{}.*", aggregate.name())
    }

    /// Parses the shard and org of a subject, without the aggregate: all that routing needs.
    pub fn route(subject: &str) -> Result<(Shard, OrgId), SubjectError> {
        let mut tokens = subject.split('.');
        match (tokens.next(), tokens.next().map(str::parse), tokens.next().map(str::parse)) {
            (Some("ev"), Some(Ok(shard)), Some(Ok(org))) => Ok((Shard(shard), org)),
            _ => Err(SubjectError::new(subject, "not an event subject")),
        }
    }
}

impl fmt::Display for EventSubject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ev.{}.{}.{}", self.shard, self.org, self.aggregate)
    }
}

impl FromStr for EventSubject {
    type Err = SubjectError;

    fn from_str(subject: &str) -> Result<Self, SubjectError> {
        let (shard, org) = Self::route(subject)?;
        let mut rest = subject.split('.').skip(3);
        match (rest.next(), rest.next(), rest.next()) {
            (Some(aggregate), Some(id), None) => Ok(Self { shard, org, aggregate: AggregateId::parse(aggregate, id)? }),
            _ => Err(SubjectError::new(subject, "not an event subject")),
        }
    }
}

/// The subject of one part of an aggregate's snapshot: `snap.<shard>.<org>.<aggregate>.<id>.<part>`.
#[derive(Debug, Clone, Copy)]
pub struct SnapshotSubject<'a> {
    /// The aggregate.
    pub of: &'a EventSubject,
    /// The part, from 0 on.
    pub part: u16,
}

impl fmt::Display for SnapshotSubject<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let EventSubject { shard, org, aggregate } = self.of;
        write!(f, "snap.{shard}.{org}.{aggregate}.{}", self.part)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{CommandId, DomainId, InvitationId, KeyId, Pipeline, RecordId, RecordLogId, UniqueValueId};

    #[test]
    fn a_subject_reads_back() {
        let command = CommandId::fresh(1_700_000_000_000, [3; 10]);
        let org = OrgId::derive(command);
        for aggregate in [
            AggregateId::Organization(org),
            AggregateId::Member(org),
            AggregateId::Invitation(InvitationId::derive(command)),
            AggregateId::Role(org),
            AggregateId::Domain(DomainId::of(org, &"acme.example".parse().unwrap())),
            AggregateId::SsoConnection(org),
            AggregateId::ApiKey(KeyId::derive(command)),
            AggregateId::Kind("yara_rule".parse().unwrap()),
            AggregateId::Record(RecordId::derive(command)),
            AggregateId::RecordLog(RecordLogId::of(command)),
            AggregateId::UniqueValue(UniqueValueId::of(org, &"space".parse().unwrap(), "name", "a")),
            AggregateId::CatalogItem(RecordId::derive(command)),
            AggregateId::CatalogChoice(org),
            AggregateId::Plan("trial".parse().unwrap()),
            AggregateId::Account(org),
            AggregateId::Invoice(org),
            AggregateId::Parking(Pipeline::Audit),
            AggregateId::Access(org),
        ] {
            let subject = EventSubject { shard: Shard(3), org, aggregate };
            assert_eq!(subject.to_string().parse::<EventSubject>().unwrap(), subject);
            assert_eq!(EventSubject::route(&subject.to_string()).unwrap(), (Shard(3), org));
        }
    }

    #[test]
    fn whatever_a_subject_names_can_be_named() {
        let name = |subject| AggregateName::of_subject(subject);
        for (subject, shown) in [
            ("ev.3.org_1.record.res_2", "record.res_2"),
            ("ev.3.org_1.record.a.b", "record.a.b"),
            ("ev.3.org_1.spaceship", "spaceship"),
            ("ev.3.org_1", ""),
        ] {
            assert_eq!(name(subject).to_string(), shown);
            assert_eq!(AggregateName::from(shown), name(subject));
        }
        let id = AggregateId::Parking(Pipeline::Audit);
        assert_eq!(AggregateName::from(id.clone()).to_string(), id.to_string());
    }

    #[test]
    fn other_subjects_do_not_parse() {
        for bad in ["", "ev", "ev.1", "ev.x.org_1.record.y", "ev.1.org_1.record", "cmd.1.a.b.c", "ev.1.a.b.c.d.e"] {
            assert!(bad.parse::<EventSubject>().is_err(), "{bad}");
        }
    }
}
