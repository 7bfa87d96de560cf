//! One operator's approval of another's break-glass grant: a text that only this product can have made, with the approver,
//! the grant and the operator. It is stored nowhere, and valid for an hour and for one grant, whose id is in it.

use clap::ValueEnum;
use std::fmt;

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use orgstream_domain::credentials::key::Pepper;
use orgstream_events::{BreakGlassId, OrgId, Timestamp, UserId};
use serde::{Deserialize, Serialize};
use subtle::ConstantTimeEq;

const PREFIX: &str = "osg_";
/// Whether one operator alone looks into an organization.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum GlassApproval {
    /// Another one must approve, who is a person as the first is.
    Required,
    /// No other process is asked.
    Off,
}

/// The validity, in milliseconds.
const GOOD_FOR_MS: i64 = 60 * 60 * 1000;
/// The longest text that is parsed, in bytes.
const MAX_TEXT: usize = 4_096;

/// The content of an approval.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Approval {
    /// The id of the grant.
    pub id: BreakGlassId,
    /// The organization.
    pub org: OrgId,
    /// The operator to be granted access, as the organization's log names them.
    pub operator: String,
    /// The reason.
    pub reason: String,
    /// The maximum duration, in seconds.
    pub seconds: u32,
    /// The approver.
    pub approver: String,
    /// The approver's login identity.
    pub user: UserId,
    /// When the approval expires.
    pub until: Timestamp,
}

/// The text of an approval. Formatting it does not show it.
#[derive(Clone, PartialEq, Eq)]
pub struct ApprovalText(String);

impl Approval {
    /// Returns when an approval of this moment expires.
    pub fn end(now: Timestamp) -> Timestamp {
        Timestamp::from_unix_ms(now.unix_ms() + GOOD_FOR_MS)
    }

    /// Returns its text; none when it is longer than permitted.
    pub fn sealed(&self, pepper: &Pepper) -> Option<ApprovalText> {
        let body = URL_SAFE_NO_PAD.encode(serde_json::to_vec(self).ok()?);
        let text = format!("{PREFIX}{body}.{}", tag(pepper, &body));
        (text.len() <= MAX_TEXT).then_some(ApprovalText(text))
    }

    /// Returns the content of a text, if this product made it.
    pub fn open(pepper: &Pepper, text: &str) -> Option<Self> {
        let (body, mac) = text.strip_prefix(PREFIX).filter(|_| text.len() <= MAX_TEXT)?.split_once('.')?;
        if !bool::from(tag(pepper, body).as_bytes().ct_eq(mac.as_bytes())) {
            return None;
        }
        serde_json::from_slice(&URL_SAFE_NO_PAD.decode(body).ok()?).ok()
    }
}

impl ApprovalText {
    /// Returns the whole text.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for ApprovalText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}…")
    }
}

fn tag(pepper: &Pepper, body: &str) -> String {
    URL_SAFE_NO_PAD.encode(pepper.mac_of("break-glass approval", body).0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_approval_says_what_was_approved_and_nobody_else_can_say_it() {
        let (ours, theirs) = (Pepper::new([1; 32]).unwrap(), Pepper::new([2; 32]).unwrap());
        let now = Timestamp::from_unix_ms(1_700_000_000_000);
        let approval = Approval {
            id: BreakGlassId::fresh(1, [1; 10]),
            org: OrgId::fresh(1, [2; 10]),
            operator: "ann@platform.example".to_owned(),
            reason: "ticket 4711: exports come out empty".to_owned(),
            seconds: 600,
            approver: "bob@platform.example".to_owned(),
            user: UserId::from_login("https://issuer.example", "bob"),
            until: Approval::end(now),
        };
        let text = approval.sealed(&ours).unwrap();
        assert_eq!(Approval::open(&ours, text.reveal()), Some(approval.clone()));
        assert_eq!(Approval::open(&theirs, text.reveal()), None);
        let changed = approval.sealed(&theirs).unwrap();
        let (_, mac) = text.reveal().split_once('.').unwrap();
        let (body, _) = changed.reveal().split_once('.').unwrap();
        let longer = Approval { seconds: 3_600, ..approval };
        let longer = longer.sealed(&theirs).unwrap();
        let (longer, _) = longer.reveal().split_once('.').unwrap();
        assert!(Approval::open(&ours, &format!("{body}.{mac}")).is_some(), "the same words have the same tag");
        assert_eq!(Approval::open(&ours, &format!("{longer}.{mac}")), None);
        for bad in ["", "osg_", "osg_x.y", "x"] {
            assert_eq!(Approval::open(&ours, bad), None);
        }
        assert!(!format!("{text:?}").contains(mac));
    }
}
