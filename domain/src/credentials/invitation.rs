//! The text of an invitation's token: `osi_<32 base62 secret><6 base62 checksum>`.
//!
//! It is derived from the command that issued or resent the invitation and the server's own secret, so the mail sender
//! derives it again from the stored state, which is worthless without that secret.

use std::{fmt, str::FromStr};

use orgstream_events::{CommandId, Fingerprint};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

use super::key::{Pepper, base62, checksum};

const PREFIX: &str = "osi_";
const SECRET_LENGTH: usize = 32;
const CHECKSUM_LENGTH: usize = 6;

/// A token. Formatting it never shows it; [`InvitationToken::reveal`] does, and is for the one mail that may.
#[derive(Clone, PartialEq, Eq)]
pub struct InvitationToken(String);

impl InvitationToken {
    /// Returns the token that `command` issued.
    pub fn of(pepper: &Pepper, command: CommandId) -> Self {
        let random = pepper.derive(&[b"invitation ", command.uuid().as_bytes().as_slice()].concat());
        let digits = |from: usize| {
            let part = random.iter().skip(from).take(16);
            base62(part.fold(0_u128, |number, byte| number << 8 | u128::from(*byte)), SECRET_LENGTH / 2)
        };
        let body = format!("{PREFIX}{}{}", digits(0), digits(16));
        let checksum = checksum(&body);
        Self(body + &checksum)
    }

    /// Returns the keyed hash that is stored.
    pub fn mac(&self, pepper: &Pepper) -> Fingerprint {
        pepper.mac_of("invitation", &self.0)
    }

    /// Returns the whole token.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for InvitationToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}…")
    }
}

impl FromStr for InvitationToken {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let whole = text.len() == PREFIX.len() + SECRET_LENGTH + CHECKSUM_LENGTH
            && text.strip_prefix(PREFIX).is_some_and(|rest| rest.bytes().all(|b| b.is_ascii_alphanumeric()));
        let checked = text.split_at_checked(PREFIX.len() + SECRET_LENGTH).filter(|_| whole);
        match checked {
            None => Err("is no token of an invitation: they begin with osi_; was it cut off?"),
            Some((body, sum)) if checksum(body) == sum => Ok(Self(text.to_owned())),
            Some(_) => Err("has a typing error: its checksum does not fit; copy it again"),
        }
    }
}

impl Serialize for InvitationToken {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for InvitationToken {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pepper(byte: u8) -> Pepper {
        Pepper::new([byte; 32]).unwrap()
    }

    #[test]
    fn a_token_follows_from_its_command_and_the_pepper_alone() {
        let (one, two) = (CommandId::fresh(1, [1; 10]), CommandId::fresh(1, [2; 10]));
        let token = InvitationToken::of(&pepper(1), one);
        assert_eq!(token, InvitationToken::of(&pepper(1), one));
        assert_ne!(token, InvitationToken::of(&pepper(1), two));
        assert_ne!(token, InvitationToken::of(&pepper(2), one));
        assert_eq!(token.reveal().parse(), Ok(token.clone()));
        assert_ne!(token.mac(&pepper(1)), token.mac(&pepper(2)));
    }

    #[test]
    fn it_is_never_printed_and_never_guessed() {
        let token = InvitationToken::of(&pepper(1), CommandId::fresh(1, [1; 10]));
        assert_eq!(format!("{token:?}"), "osi_…");
        let mut typo = token.reveal().to_owned().into_bytes();
        typo[10] = if typo[10] == b'a' { b'b' } else { b'a' };
        assert!(String::from_utf8(typo).unwrap().parse::<InvitationToken>().unwrap_err().contains("typing error"));
        for bad in ["", "osi_", "os_live_x", &token.reveal()[..40], "osi_ääääääääääääääääääääääääääääääääääääää"]
        {
            assert!(bad.parse::<InvitationToken>().unwrap_err().contains("no token"), "{bad}");
        }
    }
}
