//! The invitation mail.

use lettre::{
    Message,
    address::AddressError,
    message::{Mailbox, header::ContentType},
};
use orgstream_domain::credentials::invitation::InvitationToken;
use orgstream_events::{CommandId, Timestamp, cause};

use super::{MailError, Mailer};

/// The content of the mail.
pub struct Invite<'a> {
    /// The id of the mail, so that a duplicate is recognized.
    pub id: CommandId,
    /// The address.
    pub to: &'a str,
    /// The organization's name.
    pub organization: &'a str,
    /// The inviting person, if it was a member who is still known.
    pub by: Option<&'a str>,
    /// The token that proves the invitation.
    pub token: &'a InvitationToken,
    /// When the invitation expires.
    pub expires_at: Timestamp,
}

impl Mailer {
    /// Sends the mail.
    pub async fn invite(&self, invite: &Invite<'_>) -> Result<(), MailError> {
        let to: Mailbox = invite.to.parse().map_err(|error: AddressError| MailError::Refused(cause(error)))?;
        let Invite { organization, token, expires_at, .. } = invite;
        let by = invite.by.map_or_else(|| "You have been".to_owned(), |by| format!("{by} has"));
        let invited = if invite.by.is_some() { "invited you to" } else { "invited to" };
        let link = self.link.replace("{token}", token.reveal());
        let body = format!(
            "Hello,\n\n{by} {invited} join {organization}.\n\nTo accept, open\n\n    {link}\n\nand sign in with this \
             e-mail address. The invitation can be used once, until {expires_at}.\n\nIts token, should you be asked for \
             it:\n\n    {}\n\nIf you do not know what this is about, do nothing.\n",
            token.reveal(),
        );
        let mail = Message::builder()
            .from(self.from.clone())
            .to(to)
            .subject(format!("Invitation to {organization}"))
            .message_id(Some(format!("<{}@{}>", invite.id, self.from.email.domain())))
            .header(ContentType::TEXT_PLAIN)
            .body(self.way.encoded(body));
        self.send(mail.map_err(|error| MailError::Refused(cause(error)))?).await
    }
}
