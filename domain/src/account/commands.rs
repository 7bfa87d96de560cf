//! The commands of an account, as received.

use orgstream_events::{AggregateId, Amount, HoldId, KindName, MeterName, OrgId, Timestamp, TopUpId, TopUpRule};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{About, CommandSpec, Declared, Permission, Requires, Scope, grants::Grant, openapi};

/// Holds an amount for an operation before it begins: its worst case. It is settled or released afterwards, and returns by
/// itself at the deadline.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ReserveUsage {
    /// Name of the meter: 1 to 31 characters of a-z, 0-9 and _, beginning with a letter.
    #[schema(value_type = String, example = "tokens")]
    pub meter: MeterName,
    /// Amount in units of the meter, as a decimal text with at most six digits after the point. 0 holds a place among those
    /// that may run at the same time, and nothing else.
    #[schema(value_type = String, example = "4000")]
    pub amount: Amount,
    /// Time to the deadline, in seconds: 1 to 86,400, or 900 without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 86_400, example = 900)]
    pub seconds: Option<u32>,
    /// Name of the kind of record that it is about, for reports of usage.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, example = "evaluation")]
    pub kind: Option<KindName>,
    /// Name of the model, 1 to 100 characters, for reports of usage.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(max_length = 100, example = "small-2")]
    pub model: Option<String>,
}

/// Makes an open hold larger, or lets it last longer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ExtendHold {
    /// Id of the hold (`hold_` and 26 characters).
    #[schema(value_type = String, example = "hold_01h455vb4pex5vsknk084sn02q")]
    pub hold: HoldId,
    /// Amount by which it becomes larger, in units of the meter, as a decimal text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, example = "1000")]
    pub amount: Option<Amount>,
    /// Time from now to the deadline, in seconds: 1 to 86,400, and at most a day after the reservation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 86_400, example = 900)]
    pub seconds: Option<u32>,
}

/// Uses what is held, as far as it was needed, and ends the hold. The rest returns.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SettleHold {
    /// Id of the hold (`hold_` and 26 characters).
    #[schema(value_type = String, example = "hold_01h455vb4pex5vsknk084sn02q")]
    pub hold: HoldId,
    /// Amount that was used, in units of the meter, as a decimal text: at most what is held.
    #[schema(value_type = String, example = "3121.5")]
    pub amount: Amount,
}

/// Ends a hold unused.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ReleaseHold {
    /// Id of the hold (`hold_` and 26 characters).
    #[schema(value_type = String, example = "hold_01h455vb4pex5vsknk084sn02q")]
    pub hold: HoldId,
}

/// Uses an amount at once, for what has a known cost.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ChargeUsage {
    /// Name of the meter: 1 to 31 characters of a-z, 0-9 and _, beginning with a letter.
    #[schema(value_type = String, example = "ecu")]
    pub meter: MeterName,
    /// Amount in units of the meter, as a decimal text with at most six digits after the point.
    #[schema(value_type = String, example = "2")]
    pub amount: Amount,
    /// Name of the kind of record that it is about, for reports of usage.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, example = "evaluation")]
    pub kind: Option<KindName>,
    /// Name of the model, 1 to 100 characters, for reports of usage.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(max_length = 100, example = "small-2")]
    pub model: Option<String>,
}

/// Grants an amount. For platform operators.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreditAccount {
    /// Name of the meter: 1 to 31 characters of a-z, 0-9 and _, beginning with a letter.
    #[schema(value_type = String, example = "ecu")]
    pub meter: MeterName,
    /// Amount in units of the meter, as a decimal text with at most six digits after the point.
    #[schema(value_type = String, example = "100")]
    pub amount: Amount,
    /// Time at which what is left of it lapses (RFC 3339); never without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime, example = "2027-01-01T00:00:00.000Z")]
    pub expires_at: Option<Timestamp>,
    /// Reason for the audit log, 1 to 500 characters.
    #[schema(max_length = 500, example = "ticket 4711: goodwill")]
    pub reason: String,
}

/// Changes when more of a meter is bought by itself, at the plan's price for that. One top-up is open at a time.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ChangeTopUp {
    /// Name of the meter: 1 to 31 characters of a-z, 0-9 and _, beginning with a letter.
    #[schema(value_type = String, example = "tokens")]
    pub meter: MeterName,
    /// Rule from now on; null or absent so that nothing is bought by itself any more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(schema_with = openapi::top_up_rule)]
    pub rule: Option<TopUpRule>,
}

/// Requests a top-up now if the rule says so. Usage requests it by itself; this is for after a pause, when nothing can be used
/// any more.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RequestTopUp {
    /// Name of the meter: 1 to 31 characters of a-z, 0-9 and _, beginning with a letter.
    #[schema(value_type = String, example = "tokens")]
    pub meter: MeterName,
}

/// Notes that a top-up was paid, and grants what was bought. The program sends it; for platform operators.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PayTopUp {
    /// Number of the top-up, from 1.
    #[schema(value_type = u32, minimum = 1, example = 1)]
    pub top_up: TopUpId,
    /// Name of the payment where it was made, 1 to 200 characters.
    #[schema(max_length = 200, example = "pi_1")]
    pub payment: String,
}

/// Notes that a top-up was not paid: the next one is requested an hour later at the earliest, and twice as late each time. The
/// program sends it; for platform operators.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DeclineTopUp {
    /// Number of the top-up, from 1.
    #[schema(value_type = u32, minimum = 1, example = 1)]
    pub top_up: TopUpId,
    /// Reason for the audit log, 1 to 500 characters.
    #[schema(max_length = 500, example = "card_declined")]
    pub reason: String,
}

macro_rules! declare {
    ($($command:ident = $name:literal: $permission:ident, $creates:literal, $suspended:literal, [$($event:literal),*];)*) => {$(
        impl Declared for $command {
            const SPEC: CommandSpec = CommandSpec {
                name: $name,
                requires: Requires::Permission(Permission::$permission),
                // What follows from the time alone is decided with each of them.
                events: &[
                    "account.holds_expired", "account.bucket_closed", "account.granted", "account.allowance_changed",
                    $($event),*
                ],
                creates: $creates,
                scope: Scope::Organization,
                while_suspended: $suspended,
                in_personal: true,
                gives_access: false,
                hourly_limit: None,
            };

            fn about(&self, org: OrgId) -> About {
                About::One(AggregateId::Account(org))
            }

            fn grants(&self) -> Vec<Grant> {
                Vec::new()
            }
        }
    )*};
}

declare! {
    ReserveUsage = "reserve_usage": UseAccount, true, false, ["account.reserved", "account.threshold_crossed", "account.top_up_requested"];
    ExtendHold = "extend_hold": UseAccount, false, false, ["account.extended", "account.threshold_crossed", "account.top_up_requested"];
    SettleHold = "settle_hold": UseAccount, false, true, ["account.settled"];
    ReleaseHold = "release_hold": UseAccount, false, true, ["account.released"];
    ChargeUsage = "charge_usage": UseAccount, false, false, ["account.settled", "account.threshold_crossed", "account.top_up_requested"];
    CreditAccount = "credit_account": ManagePlan, false, true, [];
    ChangeTopUp = "change_top_up": ManageOrganization, false, false, ["account.top_up_changed", "account.top_up_requested"];
    RequestTopUp = "request_top_up": UseAccount, false, false, ["account.top_up_requested"];
    PayTopUp = "pay_top_up": ManagePlan, false, true, ["account.top_up_paid"];
    DeclineTopUp = "decline_top_up": ManagePlan, false, true, ["account.top_up_declined"];
}
