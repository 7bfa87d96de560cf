//! What there is: every org that was placed, and where an org's history ends.

use orgstream_events::{EventSubject, OrgId};

use crate::{
    Log, Placement, StreamError,
    api::{last_on_leader, next_on_leader},
};

const PLACEMENTS: &str = "sys.placement.*";

impl Log {
    /// Every org that was placed, in the order in which that happened.
    pub async fn organizations(&self) -> Result<Vec<OrgId>, StreamError> {
        let (mut orgs, mut next) = (Vec::new(), 1);
        while let Some(message) = next_on_leader(&self.inner.system, PLACEMENTS, next).await? {
            next = message.sequence + 1;
            let org = message.subject.as_str().rsplit('.').next().and_then(|org| org.parse().ok());
            orgs.push(org.ok_or_else(|| StreamError::Corrupt {
                subject: message.subject.to_string(),
                seq: message.sequence,
                reason: "it places no organization".to_owned(),
            })?);
        }
        Ok(orgs)
    }

    /// The sequence of the org's last message; 0 when it has none.
    pub async fn head(&self, placement: &Placement) -> Result<u64, StreamError> {
        let everything = EventSubject::all_of_org(placement.shard, placement.org);
        let last = last_on_leader(self.stream_of(placement.shard)?, &everything).await?;
        Ok(last.map_or(0, |message| message.sequence))
    }
}
