//! The use of a secret: by those with a permission of its own, for a reason, and in the audit log before it is shown.

use orgstream_domain::Rejection;
use orgstream_events::{AccessEvent, RecordId, RecordSecret, SecretUsed};

use super::{
    problem::Problem,
    submit::{Gateway, Origin},
};
use crate::{
    auth::Access,
    commands::record_secrets::{OpenedSecret, VaultOrCommandError},
    secret::Secret,
};

/// The longest reason, in characters.
const MAX_REASON: usize = 500;

/// A secret that is shown.
pub struct Revealed {
    /// The secret.
    pub secret: RecordSecret,
    /// The value.
    pub value: Secret,
}

impl From<VaultOrCommandError> for Problem {
    fn from(error: VaultOrCommandError) -> Self {
        match error {
            VaultOrCommandError::Command(error) => error.into(),
            VaultOrCommandError::Vault(error) => error.into(),
        }
    }
}

impl Gateway {
    /// Returns the value of a record's secret to somebody who may use it. Its use is in the log before.
    pub async fn reveal(
        &self,
        access: &Access,
        origin: &Origin,
        (record, field): (RecordId, &str),
        reason: &str,
    ) -> Result<Revealed, Problem> {
        let is_plain = |c: char| !c.is_control() || matches!(c, '\n' | '\r' | '\t');
        if reason.trim().is_empty() || reason.chars().count() > MAX_REASON || !reason.chars().all(is_plain) {
            let detail = format!("must have 1 to {MAX_REASON} characters besides spaces, and no control characters");
            return Err(Rejection::field("/reason", "reason", detail).into());
        }
        let admitted = access.rules().map(|rules| self.admission().admit(access.org(), rules, 1));
        if let Some(refusal) = admitted.and_then(|admitted| admitted.refusal) {
            return Err(refusal.into());
        }
        let taken = self.quotas.take_secret_use(access.org())?;
        let opened = Box::pin(self.handler.open_secret(access.org(), record, field)).await?;
        let Some(OpenedSecret { secret, value }) = opened else {
            taken.give_back();
            return Err(Problem::not_found());
        };
        let used = SecretUsed {
            record,
            field: secret.field.clone(),
            secret: secret.id,
            version: secret.version,
            reason: reason.to_owned(),
        };
        self.access_log.write_down(access.bound(), access.actor(), origin, AccessEvent::SecretUsed(used)).await?;
        Ok(Revealed { secret, value: (*value).clone().into() })
    }
}
