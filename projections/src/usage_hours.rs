//! What an organization used, by the hour: one row for each hour, meter, purpose and principal, which is a sum of what was
//! settled.
//!
//! An amount belongs to the hour in which it was reserved, as in the account's months. Days and months are sums of hours,
//! computed by the query, so they cannot differ.

use std::collections::BTreeMap;

use orgstream_events::{AccountEvent, AccountSettled, AmountSum, Fingerprint, KindName, MeterName, Timestamp};
use sqlx::PgConnection;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::{
    DbError, TenantTx,
    apply::RowVersion,
    convert::{CreatedBy, column, from_bigint, parsed, to_bigint},
    read_model::ReadModel,
};

/// Milliseconds in an hour.
const HOUR_MS: i64 = 3_600_000;

pub(crate) const TABLE: ReadModel = ReadModel::by_bytes(
    "usage_hours",
    "rm.usage_hours",
    "key",
    &["key", "begins_at", "meter", "kind", "model", "actor_type", "actor_id", "micros", "uses", "seq"],
    &[],
)
.without(&["key"]);

/// A batch's additions to the rows.
#[derive(Default)]
pub(crate) struct Changeset<'a> {
    sums: BTreeMap<Vec<u8>, Addition<'a>>,
}

/// What is added to a row.
struct Addition<'a> {
    /// Any of the events: all of them have the same hour, meter, purpose and principal.
    settled: &'a AccountSettled,
    begins_at: OffsetDateTime,
    sum: AmountSum,
    uses: u64,
    seq: i64,
}

impl<'a> Changeset<'a> {
    pub(crate) fn apply(&mut self, event: &'a AccountEvent, row_version: RowVersion) {
        match event {
            AccountEvent::Settled(settled) => {
                let hour = settled.reserved_at.unix_ms().div_euclid(HOUR_MS);
                let addition = self.sums.entry(key_of(hour, settled)).or_insert_with(|| Addition {
                    settled,
                    begins_at: Timestamp::from_unix_ms(hour.saturating_mul(HOUR_MS)).to_datetime(),
                    sum: AmountSum::default(),
                    uses: 0,
                    seq: row_version.seq,
                });
                addition.sum = addition.sum.plus(settled.amount.into());
                addition.uses += 1;
                addition.seq = row_version.seq;
            }
            // Nothing was used. Balances are read from the log, where they are exact.
            AccountEvent::Granted(_)
            | AccountEvent::AllowanceChanged(_)
            | AccountEvent::BucketClosed(_)
            | AccountEvent::Reserved(_)
            | AccountEvent::Extended(_)
            | AccountEvent::Released(_)
            | AccountEvent::HoldsExpired(_)
            | AccountEvent::ThresholdCrossed(_)
            | AccountEvent::TopUpChanged(_)
            | AccountEvent::TopUpRequested(_)
            | AccountEvent::TopUpPaid(_)
            | AccountEvent::TopUpDeclined(_) => {}
        }
    }

    pub(crate) async fn write(self, connection: &mut PgConnection, org: Uuid) -> Result<(), DbError> {
        if self.sums.is_empty() {
            return Ok(());
        }
        let rows: Vec<_> = self.sums.into_iter().collect();
        let settled = |(_, addition): &(_, Addition<'a>)| addition.settled;
        // Decimal texts: a sum may have more digits than a bigint.
        sqlx::query!(
            "INSERT INTO rm.usage_hours AS known
                (org_id, key, begins_at, meter, kind, model, actor_type, actor_id, micros, uses, seq)
            SELECT $1, item.key, item.begins_at, item.meter, item.kind, item.model, item.actor_type, item.actor_id,
                item.micros::numeric, item.uses, item.seq
            FROM unnest($2::bytea[], $3::timestamptz[], $4::text[], $5::text[], $6::text[], $7::text[], $8::text[],
                $9::text[], $10::bigint[], $11::bigint[])
                AS item (key, begins_at, meter, kind, model, actor_type, actor_id, micros, uses, seq)
            ON CONFLICT (org_id, rm_version, key) DO UPDATE SET
                micros = known.micros + excluded.micros,
                uses = known.uses + excluded.uses,
                seq = excluded.seq",
            org,
            column(&rows, |(key, _)| key.as_slice()) as _,
            &column(&rows, |(_, addition)| addition.begins_at),
            column(&rows, |row| settled(row).meter.as_str()) as _,
            column(&rows, |row| settled(row).used_for.kind.as_ref().map(KindName::as_str)) as _,
            column(&rows, |row| settled(row).used_for.model.as_deref()) as _,
            column(&rows, |row| settled(row).by.actor_type.name()) as _,
            column(&rows, |row| settled(row).by.id.as_str()) as _,
            &column(&rows, |(_, addition)| addition.sum.micros().to_string()),
            &column(&rows, |(_, addition)| to_bigint(addition.uses)),
            &column(&rows, |(_, addition)| addition.seq),
        )
        .execute(connection)
        .await?;
        Ok(())
    }
}

/// The key of a row: the hour, so that keys are in the order of hours, and a hash of the rest.
fn key_of(hour: i64, settled: &AccountSettled) -> Vec<u8> {
    let AccountSettled { meter, used_for, by, .. } = settled;
    // A name that was not given is none of those that can be.
    let kind = used_for.kind.as_ref().map_or("", KindName::as_str);
    let parts = [meter.as_str(), kind, used_for.model.as_deref().unwrap_or(""), by.actor_type.name(), &by.id];
    let mut text = Vec::new();
    for part in parts {
        text.extend_from_slice(&(part.len() as u64).to_be_bytes());
        text.extend_from_slice(part.as_bytes());
    }
    [&first_key(hour)[..], &Fingerprint::of(&[&text]).0].concat()
}

/// The beginning of the keys of an hour. Bytes compare as the hours do, those before 1970 as well.
fn first_key(hour: i64) -> [u8; 8] {
    (hour ^ i64::MIN).to_be_bytes()
}

/// The length of a step of a series.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// An hour.
    Hour,
    /// A day in UTC.
    Day,
}

impl Step {
    /// Returns its length in milliseconds.
    pub fn ms(self) -> i64 {
        match self {
            Self::Hour => HOUR_MS,
            Self::Day => 24 * HOUR_MS,
        }
    }
}

/// By what a series is divided, besides the meter.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Grouping {
    /// By the kind of the record that it was about.
    pub kind: bool,
    /// By the model.
    pub model: bool,
    /// By the principal.
    pub principal: bool,
}

/// A range of steps: from the beginning of one to the beginning of another, which is not in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Range {
    /// The first moment.
    pub from: Timestamp,
    /// The first moment behind it.
    pub to: Timestamp,
    /// The length of a step.
    pub step: Step,
}

/// What was used in one step, of one meter, for one purpose and by one principal, as far as it is divided by those.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UsageRow {
    /// The beginning of the step.
    pub at: Timestamp,
    /// The meter.
    pub meter: MeterName,
    /// The kind of the record that it was about, as the caller said.
    pub kind: Option<String>,
    /// The model, as the caller said.
    pub model: Option<String>,
    /// The principal.
    pub by: Option<CreatedBy>,
    /// The sum of the amounts.
    pub amount: AmountSum,
    /// The number of settlements and charges.
    pub uses: u64,
}

struct Row {
    at: OffsetDateTime,
    meter: String,
    kind: Option<String>,
    model: Option<String>,
    actor_type: Option<String>,
    actor_id: Option<String>,
    micros: String,
    uses: i64,
}

/// Whether a range has at most so many rows, of which each series is made. It reads no more than those.
pub async fn is_within(tx: &mut TenantTx, range: Range, most: u32) -> Result<bool, DbError> {
    let [from, to] = [range.from, range.to].map(|moment| first_key(moment.unix_ms().div_euclid(HOUR_MS)));
    let count = sqlx::query_scalar(
        "SELECT count(*) FROM (
            SELECT FROM rm.usage_hours WHERE org_id = $1 AND key >= $2 AND key < $3 LIMIT $4
        ) AS used",
    );
    let count = count.bind(tx.org().uuid()).bind(&from[..]).bind(&to[..]).bind(i64::from(most) + 1);
    let count: i64 = count.fetch_one(tx.connection()).await?;
    Ok(count <= i64::from(most))
}

/// Returns the rows of a series in order, at most `limit` of them.
pub async fn series(tx: &mut TenantTx, range: Range, grouping: Grouping, limit: u32) -> Result<Vec<UsageRow>, DbError> {
    let [from, to] = [range.from, range.to].map(|moment| first_key(moment.unix_ms().div_euclid(HOUR_MS)));
    let rows = sqlx::query_as!(
        Row,
        r#"SELECT CASE WHEN $4 THEN date_trunc('day', begins_at, 'UTC') ELSE begins_at END AS "at!", meter,
            CASE WHEN $5 THEN kind END AS kind,
            CASE WHEN $6 THEN model END AS model,
            CASE WHEN $7 THEN actor_type END AS actor_type,
            CASE WHEN $7 THEN actor_id END AS actor_id,
            sum(micros)::text AS "micros!", sum(uses)::bigint AS "uses!"
        FROM rm.usage_hours WHERE org_id = $1 AND key >= $2 AND key < $3
        GROUP BY 1, 2, 3, 4, 5, 6 ORDER BY 1, 2, 3, 4, 5, 6 LIMIT $8"#,
        tx.org().uuid(),
        &from[..],
        &to[..],
        range.step == Step::Day,
        grouping.kind,
        grouping.model,
        grouping.principal,
        i64::from(limit),
    );
    let rows = rows.fetch_all(tx.connection()).await?;
    let row = |row: Row| {
        let by = row.actor_type.zip(row.actor_id);
        Ok(UsageRow {
            at: row.at.into(),
            meter: parsed("a meter", row.meter)?,
            kind: row.kind,
            model: row.model,
            by: by.map(|(actor_type, id)| CreatedBy::stored(actor_type, id)).transpose()?,
            amount: AmountSum::from_micros(parsed("a sum of amounts", row.micros)?),
            uses: from_bigint(row.uses),
        })
    };
    rows.into_iter().map(row).collect()
}

#[cfg(test)]
mod tests {
    use orgstream_events::{ActorType, Amount, UsedBy, UsedFor};

    use super::*;

    fn settled(id: &str, model: Option<&str>) -> AccountSettled {
        let at = Timestamp::from_unix_ms(0);
        AccountSettled {
            at,
            hold: None,
            reserved_at: at,
            meter: "ecu".parse().unwrap(),
            amount: Amount::units(1),
            draws: vec![],
            returned: Amount::ZERO,
            used_for: UsedFor { kind: None, model: model.map(str::to_owned) },
            by: UsedBy { actor_type: ActorType::ApiKey, id: id.to_owned() },
        }
    }

    #[test]
    fn keys_are_in_the_order_of_hours_and_each_purpose_has_its_own() {
        let hours = [i64::MIN, -2, -1, 0, 1, 491_520, i64::MAX];
        assert!(hours.windows(2).all(|pair| first_key(pair[0]) < first_key(pair[1])));
        let keys: Vec<_> = hours.iter().map(|hour| key_of(*hour, &settled("z", Some("m")))).collect();
        assert!(keys.windows(2).all(|pair| pair[0] < pair[1]));
        // A text that moves from one name to the next is another key.
        let one = key_of(0, &settled("b", Some("a")));
        for other in [settled("ab", None), settled("b", None), settled("a", Some("b")), settled("", Some("ab"))] {
            assert_ne!(key_of(0, &other), one, "{other:?}");
        }
    }
}
