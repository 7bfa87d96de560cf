//! The deletion of an organization, in the platform's own log: completed once, by its receipt.

use orgstream_events::{AggregateType, DeletionCompleted, DeletionEvent, Event};
use serde::{Deserialize, Serialize};

use crate::{Aggregate, DecisionContext, Rejection};

/// The state of a deletion. By default it is not completed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CompletedDeletion {
    receipt: Option<String>,
}

impl CompletedDeletion {
    /// Returns the receipt, once the deletion is completed.
    pub fn receipt(&self) -> Option<&str> {
        self.receipt.as_deref()
    }
}

/// Completes the deletion, with this receipt. The program decides it, and no caller sends it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CompleteDeletion {
    /// The receipt: a signed note.
    pub receipt: String,
}

impl Aggregate for CompletedDeletion {
    type Command = CompleteDeletion;
    type Event = DeletionEvent;
    type Error = Rejection;
    const TYPE: AggregateType = AggregateType::Deletion;
    const SHAPE: u16 = 1;

    fn apply(&mut self, event: &DeletionEvent) {
        match event {
            DeletionEvent::Completed(DeletionCompleted { receipt }) => {
                self.receipt.get_or_insert_with(|| receipt.clone());
            }
        }
    }

    fn decide(
        &self,
        CompleteDeletion { receipt }: CompleteDeletion,
        _: &DecisionContext,
    ) -> Result<Vec<DeletionEvent>, Rejection> {
        // There is one receipt, whoever comes with another one later.
        let completed = DeletionEvent::Completed(DeletionCompleted { receipt });
        Ok(if self.receipt.is_none() { vec![completed] } else { Vec::new() })
    }

    fn wrap(event: DeletionEvent) -> Event {
        Event::Deletion(event)
    }

    fn event_of(event: &Event) -> Option<&DeletionEvent> {
        if let Event::Deletion(event) = event { Some(event) } else { None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::given;

    #[test]
    fn a_deletion_has_one_receipt() {
        let complete = |receipt: &str| CompleteDeletion { receipt: receipt.to_owned() };
        let completed = DeletionEvent::Completed(DeletionCompleted { receipt: "first".to_owned() });
        let first = given::<CompletedDeletion>(&[]).when(complete("first")).unwrap();
        assert_eq!(first, std::slice::from_ref(&completed));
        let known = given::<CompletedDeletion>(&[completed]);
        assert_eq!(known.when(complete("second")).unwrap(), []);
        assert_eq!(known.0.receipt(), Some("first"));
    }
}
