//! How much is taken of whom.

pub mod command_rate;
pub mod hourly;

use std::{num::NonZeroU32, time::Duration};

use command_rate::CommandRate;

/// Why something is not taken at the moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OverLimit {
    /// The limit that is reached.
    pub limit: Limit,
    /// When there is room again.
    pub retry_after: Duration,
}

/// A limit, and how much it allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limit {
    /// Commands of an organization.
    Commands(CommandRate),
    /// Invitations that an organization sends in an hour.
    Invitations(NonZeroU32),
    /// Organizations that one person makes in an hour.
    Organizations(NonZeroU32),
}
