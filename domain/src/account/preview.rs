//! What a reservation would do now: which buckets it would use, or why it would be refused. Nothing happens.

use std::sync::Arc;

use orgstream_events::{AccountEvent, Amount, BucketSource, CommandId, OrgId, Timestamp, UsedBy};

use super::{Account, AccountAction, AccountCommand, AccountError, ReserveUsage, Terms};
use crate::{Aggregate, DecisionContext};

/// A part of an amount that would be held.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// Where the bucket comes from.
    pub source: BucketSource,
    /// The amount that would be held of it.
    pub amount: Amount,
    /// What would be left in it.
    pub left: Amount,
    /// The first moment at which it may not be used any more.
    pub until: Option<Timestamp>,
}

impl Account {
    /// Returns the parts of an amount that would be held, in the order of use, or the refusal. It is the decision itself, about a copy.
    pub fn preview(
        &self,
        reserve: ReserveUsage,
        terms: Terms,
        by: UsedBy,
        org: OrgId,
        now: Timestamp,
    ) -> Result<Vec<Part>, AccountError> {
        let context = DecisionContext { now, command_id: CommandId::from_idempotency_key(org, "preview"), org };
        let command = AccountCommand { terms: Arc::new(terms), by, command: AccountAction::Reserve(reserve) };
        let (mut account, mut parts) = (self.clone(), Vec::new());
        for event in self.decide(command, &context)? {
            account.apply(&event);
            let AccountEvent::Reserved(reserved) = event else { continue };
            parts.extend(reserved.draws.iter().filter_map(|draw| {
                let bucket = account.buckets.get(&draw.bucket)?;
                Some(Part { source: bucket.source, amount: draw.amount, left: bucket.left(), until: bucket.until })
            }));
        }
        Ok(parts)
    }
}
