//! The personal organization of each person. Its id, its slug and the command that creates it follow from the person, so
//! that there is one, however often, and wherever at once, they sign in first.

use orgstream_domain::{CreateOrganization, organization::PERSONAL_SLUG};
use orgstream_events::{CommandId, OrgId, PLATFORM_ORG, Slug, TenantType, UserId};

use super::request::Request;

/// The idempotency key of the command. It has a space, which no caller's key can have.
const KEY: &str = "personal organization";
const NAME: &str = "Personal";

/// Returns the id of every command of `actor` that creates an organization under `key`: a new organization has no scope of
/// its own yet.
pub fn creation(actor: &str, key: &str) -> CommandId {
    CommandId::from_idempotency_key(PLATFORM_ORG, &format!("{actor}/{key}"))
}

/// Returns the idempotency key of a person's first personal organization, and of the next after that was deleted.
fn key(deleted: u32) -> String {
    if deleted == 0 { KEY.to_owned() } else { format!("{KEY} after {deleted}") }
}

/// Returns the id of this person's personal organization, whether it was created or not, after so many that were deleted.
pub fn personal_org(user: UserId, deleted: u32) -> OrgId {
    OrgId::derive(creation(&user.to_string(), &key(deleted)))
}

/// Returns the command that creates it, to be sent by the person.
pub fn create_personal(user: UserId, deleted: u32) -> Request {
    let id = personal_org(user, deleted).to_string();
    let (_, digits) = id.split_once('_').unwrap_or_default();
    let slug: Result<Slug, _> = format!("{PERSONAL_SLUG}{digits}").parse();
    // 26 letters and digits behind a prefix with a hyphen are always a slug.
    #[expect(clippy::unreachable, reason = "a test makes one, and they all have the same form")]
    let slug = slug.unwrap_or_else(|_| unreachable!());
    let (name, tenant_type) = (NAME.to_owned(), TenantType::Personal);
    let command = CreateOrganization { name, slug, tenant_type, auth0_organization_id: None };
    Request { idempotency_key: Some(key(deleted)), ..orgstream_domain::Command::from(command).into() }
}

/// Returns a placeholder for the address of a person whose issuer verified none. It cannot be a real address, and discloses
/// nothing.
pub fn no_address(user: UserId) -> String {
    let org = personal_org(user, 0).to_string();
    let (_, digits) = org.split_once('_').unwrap_or_default();
    format!("{digits}@personal.invalid")
}

#[cfg(test)]
mod tests {
    use super::*;
    use orgstream_domain::Command;

    #[test]
    fn everybody_has_one_of_their_own() {
        let (ann, bob) =
            (UserId::from_login("https://i.example", "ann"), UserId::from_login("https://i.example", "bob"));
        assert_eq!(personal_org(ann, 0), personal_org(ann, 0));
        assert_ne!(personal_org(ann, 0), personal_org(bob, 0));
        let Command::CreateOrganization(one) = create_personal(ann, 0).command else { unreachable!() };
        let Command::CreateOrganization(other) = create_personal(bob, 0).command else { unreachable!() };
        // An id is never given again.
        assert_ne!(personal_org(ann, 0), personal_org(ann, 1));
        assert_ne!(one.slug, other.slug);
        assert_eq!(one.tenant_type, TenantType::Personal);
        assert!(no_address(ann).ends_with("@personal.invalid") && no_address(ann) != no_address(bob));
    }
}
