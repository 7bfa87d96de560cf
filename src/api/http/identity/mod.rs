//! Sign-in and identity.

pub mod leaked_keys;
pub mod me;
pub mod sessions;

use super::kit::routes::Routes;

pub(super) fn routes() -> Routes {
    Routes::new().merge(me::routes()).merge(sessions::routes()).merge(leaked_keys::routes())
}
