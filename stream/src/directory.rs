//! The directory: every org that was placed, the orgs of a shard, and the end of an org's history.

use futures_util::TryStreamExt;
use orgstream_events::{AggregateType, EventSubject, OrgId, Shard, cause};

use crate::{
    Log, Placement, StreamError,
    api::{last_on_leader, next_on_leader, unavailable},
};

const PLACEMENTS: &str = "sys.placement.*";
const LIST: &str = "list the organizations of a shard";
const COUNT: &str = "count the aggregates of an organization";

impl Log {
    /// Returns every org that was placed, in order of placement.
    pub async fn organizations(&self) -> Result<Vec<OrgId>, StreamError> {
        let (mut orgs, mut next) = (Vec::new(), 1);
        while let Some(message) = next_on_leader(&self.inner.system, PLACEMENTS, next).await? {
            next = message.sequence + 1;
            if self.system_content(&message)?.is_none() {
                continue;
            }
            let org = message.subject.as_str().rsplit('.').next().and_then(|org| org.parse().ok());
            orgs.push(org.ok_or_else(|| StreamError::Corrupt {
                subject: message.subject.to_string(),
                seq: message.sequence,
                reason: cause("it places no organization"),
            })?);
        }
        Ok(orgs)
    }

    /// Returns the sequence of the org's last message; 0 when it has none.
    pub async fn head(&self, placement: &Placement) -> Result<u64, StreamError> {
        self.last_of(placement.shard, placement.org).await
    }

    /// Returns the same as [`Log::head`], for a caller that knows the shard.
    pub async fn last_of(&self, shard: Shard, org: OrgId) -> Result<u64, StreamError> {
        let last = last_on_leader(self.stream_of(shard)?, &EventSubject::all_of_org(shard, org)).await?;
        Ok(last.map_or(0, |message| message.sequence))
    }

    /// Returns every organization of the shard, in no order. The platform's own org is not among them.
    pub async fn orgs_of_shard(&self, shard: Shard) -> Result<Vec<OrgId>, StreamError> {
        let lengths = self.lengths_of(shard, AggregateType::Organization).await?;
        Ok(lengths.into_iter().map(|(org, _)| org).collect())
    }

    /// Returns every organization of the shard that has an aggregate of a type of which there is one, and the number of that
    /// one's messages, in no order. Who remembers the number sees which of them has changed.
    pub async fn lengths_of(&self, shard: Shard, aggregate: AggregateType) -> Result<Vec<(OrgId, u64)>, StreamError> {
        let filter = EventSubject::every_org_in_shard(shard, aggregate);
        let asked = self.stream_of(shard)?.info_with_subjects(filter).await;
        let mut subjects = asked.map_err(|error| unavailable(LIST, error))?;
        let mut orgs = Vec::new();
        while let Some((subject, length)) = subjects.try_next().await.map_err(|error| unavailable(LIST, error))? {
            let length = u64::try_from(length).unwrap_or(u64::MAX);
            orgs.extend(EventSubject::route(&subject).map(|(_, org)| (org, length)).ok());
        }
        Ok(orgs)
    }

    /// Returns the number of the org's aggregates of one type, as the shard's leader knows them. For types with few.
    pub async fn count_of_type(&self, placement: &Placement, aggregate: AggregateType) -> Result<u64, StreamError> {
        let Placement { shard, org, .. } = *placement;
        let filter = EventSubject::all_of_type(shard, org, aggregate);
        let asked = self.stream_of(shard)?.info_with_subjects(filter).await;
        let mut subjects = asked.map_err(|error| unavailable(COUNT, error))?;
        let mut count = 0;
        while subjects.try_next().await.map_err(|error| unavailable(COUNT, error))?.is_some() {
            count += 1;
        }
        Ok(count)
    }

    /// Returns the sequence of the org's first message after `after`, as the shard's leader knows it.
    pub async fn next_after(&self, shard: Shard, org: OrgId, after: u64) -> Result<Option<u64>, StreamError> {
        let filter = EventSubject::all_of_org(shard, org);
        let next = next_on_leader(self.stream_of(shard)?, &filter, after + 1).await?;
        Ok(next.map(|message| message.sequence))
    }
}
