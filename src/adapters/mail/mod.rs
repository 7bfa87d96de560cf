//! Outgoing mails: their transport, by SMTP or into a folder, and the loop that sends what is due in the read models.

mod invitation;

use std::{fmt, os::unix::fs::PermissionsExt, path::Path};

use anyhow::{Context, bail};
use lettre::{
    AsyncFileTransport, AsyncSmtpTransport, AsyncTransport, Message, Tokio1Executor,
    message::{Body, Mailbox, header::ContentTransferEncoding},
};
use orgstream_events::{Cause, cause};

pub use invitation::Invite;

/// The transport of mails, and their common parts.
#[derive(Clone)]
pub struct Mailer {
    way: Way,
    from: Mailbox,
    /// The link for the invited person; `{token}` stands for the token.
    link: String,
}

#[derive(Clone)]
enum Way {
    Smtp(AsyncSmtpTransport<Tokio1Executor>),
    /// One file for each mail.
    Folder(AsyncFileTransport<Tokio1Executor>),
}

impl fmt::Debug for Mailer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The transport holds a password.
        f.debug_struct("Mailer").field("from", &self.from).field("link", &self.link).finish_non_exhaustive()
    }
}

/// The reason why a mail was not sent.
#[derive(Debug, thiserror::Error)]
pub enum MailError {
    /// A permanent failure.
    #[error(transparent)]
    Refused(Cause),
    /// A transient failure.
    #[error(transparent)]
    NotNow(Cause),
}

impl Mailer {
    /// Creates a mailer from the settings; none when they name no transport.
    ///
    /// `link` is the link for the invited person; `{token}` stands for the token.
    pub fn new(smtp: Option<&str>, folder: Option<&Path>, from: &str, link: &str) -> anyhow::Result<Option<Self>> {
        let way = match (smtp, folder) {
            (Some(_), Some(_)) => bail!("mails go to --smtp-url or to --mail-folder, not to both"),
            (Some(url), None) => {
                // The URL is not repeated: it may hold a password.
                let smtp = AsyncSmtpTransport::<Tokio1Executor>::from_url(url);
                Way::Smtp(
                    smtp.context("--smtp-url (ORGSTREAM_SMTP_URL) is not like smtps://user:password@host")?.build(),
                )
            }
            (None, Some(folder)) => Way::folder(folder)?,
            (None, None) => return Ok(None),
        };
        let from = from.parse().context("--mail-from (ORGSTREAM_MAIL_FROM) is not an address")?;
        if !link.contains("{token}") {
            bail!("--invitation-link (ORGSTREAM_INVITATION_LINK) must have {{token}} where the token goes");
        }
        Ok(Some(Self { way, from, link: link.to_owned() }))
    }

    async fn send(&self, mail: Message) -> Result<(), MailError> {
        match &self.way {
            Way::Smtp(smtp) => match smtp.send(mail).await {
                Ok(_) => Ok(()),
                Err(error) => {
                    // The server's text about an address has the address in it, which does not belong in a log.
                    let is_permanent = error.is_permanent();
                    let reason = match error.status() {
                        Some(code) => cause(format!("the mail server answers {code}")),
                        None => cause(error),
                    };
                    Err(if is_permanent { MailError::Refused(reason) } else { MailError::NotNow(reason) })
                }
            },
            Way::Folder(folder) => folder.send(mail).await.map(|_| ()).map_err(|error| MailError::NotNow(cause(error))),
        }
    }
}

impl Way {
    /// Returns the text as it is transferred. In a file it stays as it is, for people to read.
    fn encoded(&self, text: String) -> Body {
        match self {
            Self::Smtp(_) => Body::new(text),
            Self::Folder(_) => Body::dangerous_pre_encoded(text.into_bytes(), ContentTransferEncoding::EightBit),
        }
    }

    /// Uses the folder, created if it is missing. Tokens lie in it, so it is readable by its owner alone.
    fn folder(folder: &Path) -> anyhow::Result<Self> {
        let refused = || format!("the mail folder {} cannot be used", folder.display());
        std::fs::create_dir_all(folder).with_context(refused)?;
        std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o700)).with_context(refused)?;
        Ok(Self::Folder(AsyncFileTransport::new(folder)))
    }
}
