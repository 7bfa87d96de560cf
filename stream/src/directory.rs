//! The directory: every org that was placed, the orgs of a shard, and the end of an org's history.

use futures_util::TryStreamExt;
use orgstream_events::{AggregateId, AggregateType, EventSubject, OrgId, Shard, cause};

use crate::{
    Log, Placement, StreamError,
    api::{next_on_leader, unavailable},
    generation::Which,
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
        let last = self.on_leader(shard, Which::Last(&EventSubject::all_of_org(shard, org))).await?;
        Ok(last.map_or(0, |message| message.seq))
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
        let subjects = self.subjects(shard, filter, LIST).await?;
        let org = |(subject, length): (String, u64)| Some((EventSubject::route(&subject).ok()?.1, length));
        Ok(subjects.into_iter().filter_map(org).collect())
    }

    /// Returns the number of the org's aggregates of one type, as the shard's leader knows them. For types with few.
    pub async fn count_of_type(&self, placement: &Placement, aggregate: AggregateType) -> Result<u64, StreamError> {
        let Placement { shard, org, .. } = *placement;
        let filter = EventSubject::all_of_type(shard, org, aggregate);
        Ok(self.subjects(shard, filter, COUNT).await?.len() as u64)
    }

    /// Returns the subjects of the shard that match, with the number of messages on each.
    async fn subjects(
        &self,
        shard: Shard,
        filter: String,
        action: &'static str,
    ) -> Result<Vec<(String, u64)>, StreamError> {
        // The look at the stream finds the one that serves the shard now.
        let (generation, _) = self.shard_info(shard).await?;
        let asked = generation.stream.info_with_subjects(filter).await;
        let subjects = asked.map_err(|error| unavailable(action, error))?;
        let counted = subjects.map_ok(|(subject, count)| (subject, u64::try_from(count).unwrap_or(u64::MAX)));
        counted.try_collect().await.map_err(|error| unavailable(action, error))
    }

    /// Returns the org's aggregates of one type, as the shard's leader knows them. For types with few.
    pub async fn aggregates_of_type(
        &self,
        placement: &Placement,
        aggregate: AggregateType,
    ) -> Result<Vec<AggregateId>, StreamError> {
        let Placement { shard, org, .. } = *placement;
        let filter = EventSubject::all_of_type(shard, org, aggregate);
        let subjects = self.subjects(shard, filter, COUNT).await?;
        let found = subjects.into_iter();
        Ok(found.filter_map(|(subject, _)| Some(subject.parse::<EventSubject>().ok()?.aggregate)).collect())
    }

    /// Returns the sequence of the org's first message after `after`, as the shard's leader knows it.
    pub async fn next_after(&self, shard: Shard, org: OrgId, after: u64) -> Result<Option<u64>, StreamError> {
        let filter = EventSubject::all_of_org(shard, org);
        let next = self.on_leader(shard, Which::Next(&filter, after + 1)).await?;
        Ok(next.map(|message| message.seq))
    }
}
