//! The loop that sends due mails. Any number of processes may run it: each mail is taken by one of them at a time.
//!
//! An invitation and its mail are written by the same batch, so no mail is sent for what did not happen, and none is lost
//! for what did: a mail that was taken by a process that died is due again.

use std::time::Duration;

use metrics::counter;
use orgstream_domain::credentials::{invitation::InvitationToken, key::Pepper};
use orgstream_events::{ActorType, Chain, cause};
use orgstream_projections::{
    Database, DbError,
    invitations::{self, InvitationStatus},
    members, organizations,
    outbox::{Mail, MailOutcome},
};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::{
    adapters::mail::{Invite, MailError, Mailer},
    clock::now,
};

/// The polling interval.
const EVERY: Duration = Duration::from_millis(500);
/// The maximum number of attempts before an operator must act: over a day, with the pauses between.
const TRIES: u32 = 24;

/// Sends mails. One per process that has a transport.
pub struct Sender {
    db: Database,
    mailer: Mailer,
    pepper: Pepper,
}

impl Sender {
    /// Creates a sender. `pepper` derives the tokens of the mails again.
    pub fn new(db: Database, mailer: Mailer, pepper: Pepper) -> Self {
        Self { db, mailer, pepper }
    }

    /// Sends due mails until `stop`, then those already taken.
    pub async fn run(&self, stop: CancellationToken) {
        while stop.run_until_cancelled(sleep(EVERY)).await.is_some() {
            if let Err(error) = self.round().await {
                tracing::warn!(error = %Chain(&error), "mails cannot be looked for at the moment");
            }
        }
    }

    async fn round(&self) -> Result<(), DbError> {
        for mail in self.db.take_mails().await? {
            let org = mail.org.org();
            let outcome = match self.send(&mail).await? {
                Ok(outcome) => outcome,
                Err(MailError::NotNow(reason)) if mail.attempts < TRIES => {
                    tracing::warn!(org.id = %org, invitation.id = %mail.invitation, reason = %Chain(&reason), "a mail is tried again later");
                    counter!("orgstream_mails_total", "outcome" => "later").increment(1);
                    continue;
                }
                Err(MailError::NotNow(reason) | MailError::Refused(reason)) => {
                    tracing::error!(
                        org.id = %org, invitation.id = %mail.invitation, reason = %Chain(&reason),
                        "a mail was given up: see to the address or the mail server, then send the invitation again"
                    );
                    MailOutcome::GivenUp
                }
            };
            self.db.finish_mail(&mail, outcome).await?;
            let outcome = match outcome {
                MailOutcome::Sent => "sent",
                MailOutcome::Void => "void",
                MailOutcome::GivenUp => "given_up",
            };
            counter!("orgstream_mails_total", "outcome" => outcome).increment(1);
        }
        Ok(())
    }

    async fn send(&self, mail: &Mail) -> Result<Result<MailOutcome, MailError>, DbError> {
        let mut tx = self.db.read(mail.org).await?;
        let Some(invitation) = invitations::get(&mut tx, mail.invitation).await? else {
            return Ok(Ok(MailOutcome::Void));
        };
        // It may have been resent since, accepted or revoked, and it may have expired.
        let is_due = invitation.token_command == mail.id
            && invitation.status == InvitationStatus::Pending
            && invitation.expires_at > now();
        let organization = organizations::get(&mut tx).await?.filter(|_| is_due);
        let Some(organization) = organization else { return Ok(Ok(MailOutcome::Void)) };
        let by = match (invitation.created_by.actor_type, invitation.created_by.member()) {
            (ActorType::Member, Some(member)) => members::get(&mut tx, member).await?.map(|member| member.email),
            _ => None,
        };
        drop(tx);
        let token = InvitationToken::of(&self.pepper, mail.id);
        if token.mac(&self.pepper) != invitation.token_mac {
            let reason = "this process has another pepper than the one that issued the invitation";
            return Ok(Err(MailError::NotNow(cause(reason))));
        }
        let invite = Invite {
            id: mail.id,
            to: &invitation.email,
            organization: &organization.name,
            by: by.as_deref(),
            token: &token,
            expires_at: invitation.expires_at,
        };
        Ok(self.mailer.invite(&invite).await.map(|()| MailOutcome::Sent))
    }
}
