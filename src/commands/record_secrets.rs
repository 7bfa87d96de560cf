//! Secrets in the commands of records: taken out of the data before anything else is done with it, and sealed into the vault
//! before the record's events are appended.
//!
//! What is left in the data is a keyed hash of the value, so that a repeated command is known and a short secret cannot be guessed
//! from what is kept of a command.

use std::fmt;

use orgstream_domain::{
    Command, FieldError, Rejection,
    record::{Record, RecordCommand},
};
use orgstream_events::{
    AggregateId, Chain, Fingerprint, OrgId, RecordId, RecordSecret, SecretId, SecretPlace, VaultSubject, cause,
};
use orgstream_stream::Freshness;
use serde_json::{Value, json};
use zeroize::Zeroizing;

use super::{
    cache::Cached,
    handler::{CommandContext, CommandHandler, Target},
    request::{Accepted, CommandError, Request},
    vault::VaultError,
};
use crate::tenant_cache::Scoped;

/// The longest secret, in bytes.
const MAX_BYTES: usize = 16 << 10;
/// Tries against others who change the same secrets.
const TRIES: u32 = 8;

/// A value, on its way into the vault.
#[derive(Clone)]
struct NewSecret {
    field: String,
    value: Zeroizing<String>,
    /// A keyed hash of the value, for its organization.
    mac: Fingerprint,
}

/// The secrets that were taken out of a command. They are never shown.
#[derive(Clone, Default)]
pub struct NewSecrets(Vec<NewSecret>);

impl NewSecrets {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Debug for NewSecrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NewSecrets({})", self.0.len())
    }
}

/// The value of a record's secret, and which one it is.
pub struct OpenedSecret {
    /// The secret.
    pub secret: RecordSecret,
    /// The value.
    pub value: Zeroizing<String>,
}

impl From<VaultError> for CommandError {
    fn from(error: VaultError) -> Self {
        match error {
            VaultError::NoKeyRing => Self::NoKeyRing,
            VaultError::Contention(_) => Self::Contention,
            VaultError::Stream(error) => Self::from(error),
            error => Self::KeyRing(cause(error)),
        }
    }
}

impl CommandHandler {
    /// Takes the secrets out of a command, by what its record's kind declares. A command from which they were taken stays as it
    /// is, and so does one whose secrets are not as they must be.
    pub async fn take_secrets(&self, org: OrgId, request: &mut Request) -> Result<(), CommandError> {
        if request.has_secrets() {
            return Ok(());
        }
        let kind = match &request.command {
            Command::CreateRecord(command) => self.kind(org, &command.kind).await?,
            Command::UpdateRecord(command) => {
                // A record keeps its kind.
                let aggregate = AggregateId::Record(command.id);
                let known = Record::cache(self.caches_of()).get(&Scoped::new(org, aggregate.clone()));
                let known = match known.filter(|known| known.state.kind().is_some()) {
                    Some(known) => known,
                    None => {
                        self.aggregates
                            .load::<Record>(&self.aggregates.placement(org).await?, &aggregate, Freshness::Leader)
                            .await?
                    }
                };
                match known.state.kind() {
                    Some(name) => self.kind(org, name).await?,
                    None => None,
                }
            }
            _ => return Ok(()),
        };
        let Some(kind) = kind.filter(|kind| !kind.annotations.secrets.is_empty()) else { return Ok(()) };
        let data = match &mut request.command {
            Command::CreateRecord(command) => &mut command.data,
            Command::UpdateRecord(command) => &mut command.data,
            _ => return Ok(()),
        };
        kind.check_secrets(data).map_err(Rejection::invalid)?;
        for field in &kind.annotations.secrets {
            let Some(place) = data.get_mut(field).filter(|value| value.is_string()) else { continue };
            let Value::String(value) = place.take() else { continue };
            let value = Zeroizing::new(value);
            if value.is_empty() || value.len() > MAX_BYTES {
                let detail = format!("must have 1 to {MAX_BYTES} bytes");
                let pointer = format!("/data/{field}");
                return Err(Rejection::invalid(vec![FieldError { pointer, code: "length".into(), detail }]).into());
            }
            let mac = self.pepper().mac_of(&format!("of a record in {org}"), &value);
            *place = json!({"$secret": mac.to_string()});
            request.secrets.0.push(NewSecret { field: field.clone(), value, mac });
        }
        Ok(())
    }

    /// Seals the secrets of a command, appends the record's events, and destroys the values that the record does not have any
    /// more. `make` makes the command.
    pub(super) async fn write_with_secrets(
        &self,
        attempt: &CommandContext<'_>,
        to: &Target<'_>,
        make: impl Fn(Vec<RecordSecret>) -> RecordCommand,
    ) -> Result<Accepted, CommandError> {
        let org = to.placement.org;
        for _ in 0..TRIES {
            let known = self.aggregates.load::<Record>(to.placement, &to.aggregate, Freshness::Leader).await?;
            if let Some(accepted) = self.aggregates.earlier(attempt, to.placement, &to.aggregate, &known).await? {
                return Ok(accepted);
            }
            let before: Vec<SecretId> = known.state.secrets().map(|secret| secret.id).collect();
            let sealed = self.seal_secrets(attempt, to, &known.state).await?;
            let ids: Vec<SecretId> = sealed.iter().map(|secret| secret.id).collect();
            let command = make(sealed);
            match Box::pin(self.execute::<Record>(attempt, to, command)).await {
                Ok(accepted) => {
                    let now = Record::cache(self.caches_of()).get(&Scoped::new(org, to.aggregate.clone()));
                    let now = match now {
                        Some(now) => now,
                        None => self.aggregates.load::<Record>(to.placement, &to.aggregate, Freshness::Leader).await?,
                    };
                    let is_gone = |id: &SecretId| !now.state.secrets().any(|secret| secret.id == *id);
                    self.destroy_secrets(org, before.into_iter().chain(ids).filter(is_gone)).await;
                    return Ok(accepted);
                }
                Err(error) => {
                    // Another try of the same command has the same ids, and may be just being carried out.
                    if attempt.fingerprint.is_none() && error.is_certain() {
                        self.destroy_secrets(org, ids.into_iter()).await;
                    }
                    match error {
                        CommandError::Rejected(rejection) if rejection.code == "contention" => {}
                        error => return Err(error),
                    }
                }
            }
        }
        Err(CommandError::Contention)
    }

    async fn seal_secrets(
        &self,
        attempt: &CommandContext<'_>,
        to: &Target<'_>,
        record: &Record,
    ) -> Result<Vec<RecordSecret>, CommandError> {
        let AggregateId::Record(id) = to.aggregate else { return Ok(Vec::new()) };
        let mut sealed = Vec::new();
        for NewSecret { field, value, mac } in &attempt.request.secrets.0 {
            let secret = SecretId::derive(attempt.command_id, field, mac);
            let subject = VaultSubject { org: to.placement.org, secret };
            let version = record.next_version(field);
            let of = SecretPlace { record: id, field: field.clone() };
            self.vault().keep(&subject, version, value, of).await?;
            // Of this field alone: who may write records learns nothing of another one's secret by setting guesses.
            let place = format!("fingerprint in {} {id} {field}", to.placement.org);
            let fingerprint: String = self.pepper().mac_of(&place, value).to_string().chars().take(8).collect();
            sealed.push(RecordSecret { field: field.clone(), id: secret, version, fingerprint });
        }
        Ok(sealed)
    }

    /// Destroys values that no record has. What fails here is made up for by `orgstream secrets rewrap`.
    async fn destroy_secrets(&self, org: OrgId, secrets: impl Iterator<Item = SecretId>) {
        for secret in secrets {
            if let Err(error) = self.vault().destroy(&VaultSubject { org, secret }).await {
                tracing::warn!(org.id = %org, secret.id = %secret, error = %Chain(&error), "a secret that is not used any more could not be destroyed: `orgstream secrets rewrap` will do that");
            }
        }
    }

    /// Opens the secret of a field as the log has it now; none if there is no such record or secret.
    pub async fn open_secret(
        &self,
        org: OrgId,
        record: RecordId,
        field: &str,
    ) -> Result<Option<OpenedSecret>, VaultOrCommandError> {
        let (placement, aggregate) = (self.aggregates.placement(org).await?, AggregateId::Record(record));
        let mut seen = None;
        loop {
            let known = self.aggregates.load::<Record>(&placement, &aggregate, Freshness::Leader).await?;
            let Some(secret) = known.state.secret(field).cloned() else { return Ok(None) };
            match self.vault().open(&VaultSubject { org, secret: secret.id }, secret.version).await {
                Ok(value) => return Ok(Some(OpenedSecret { secret, value })),
                // It may have been replaced since the record was read.
                Err(VaultError::Destroyed(_)) if seen != Some(secret.id) => seen = Some(secret.id),
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// The reason why a secret is not opened.
#[derive(Debug, thiserror::Error)]
pub enum VaultOrCommandError {
    /// The record cannot be read.
    #[error(transparent)]
    Command(#[from] CommandError),
    /// The vault does not give it.
    #[error(transparent)]
    Vault(#[from] VaultError),
}
