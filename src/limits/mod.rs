//! Rate limits and quotas.

pub mod command_rate;
pub mod hourly;

use std::{num::NonZeroU32, time::Duration};

use command_rate::CommandRate;

/// A refusal by a limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OverLimit {
    /// The limit that is reached.
    pub limit: Limit,
    /// The time until there is room again.
    pub retry_after: Duration,
}

/// A limit, and its amount.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limit {
    /// Commands of an organization, or its reads.
    Commands(CommandRate),
    /// Invitations that an organization sends in an hour.
    Invitations(NonZeroU32),
    /// Organizations that one person creates in an hour.
    Organizations(NonZeroU32),
    /// Uses of secrets of an organization in an hour.
    SecretUses(NonZeroU32),
}
