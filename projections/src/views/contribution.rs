//! What one record adds to a view: its conditions, its bucket, its group and the values of its measures. Pure.

use std::ops::Bound;

use orgstream_events::{Bucket, Fingerprint, Fold, Scalar, ViewCondition, ViewDefinition};
use serde_json::Value;
use time::{Date, OffsetDateTime, UtcOffset, format_description::well_known::Rfc3339};

use crate::SortKey;

/// The most characters of a text that records are grouped by; a longer one counts as none.
const MAX_TEXT: usize = 256;
/// The most bytes of a group in a key; a longer one is in it by its hash.
const MAX_GROUP: usize = 512;

/// A record that is in the views of its kind.
pub(crate) struct InView<'a> {
    pub(crate) kind: &'a str,
    pub(crate) data: &'a Value,
    pub(crate) created_at: OffsetDateTime,
    /// The place of the event that wrote the content.
    pub(crate) place: i64,
}

/// A view, prepared for the records of a batch.
pub(super) struct View {
    pub(super) definition: ViewDefinition,
    pub(super) kind: String,
    conditions: Vec<Condition>,
}

struct Condition {
    of: String,
    test: Test,
}

enum Test {
    Any(Vec<SortKey>),
    Range(Bound<SortKey>, Bound<SortKey>),
}

impl Condition {
    fn new(condition: &ViewCondition) -> Self {
        let key = |scalar: &Scalar| match scalar {
            Scalar::Boolean(value) => Some(SortKey::boolean(*value)),
            Scalar::Number(number) => SortKey::number(&number.to_string()),
            Scalar::Text(text) => SortKey::text(text),
        };
        let ViewCondition { of, eq, any, gt, gte, lt, lte } = condition;
        let bound = |open: &Option<Scalar>, closed: &Option<Scalar>| match (open, closed) {
            (Some(scalar), _) => key(scalar).map(Bound::Excluded),
            (None, Some(scalar)) => key(scalar).map(Bound::Included),
            (None, None) => Some(Bound::Unbounded),
        };
        // What has no key is equal to nothing.
        let nothing = Test::Any(Vec::new());
        let test = if eq.is_some() || !any.is_empty() {
            Test::Any(eq.iter().chain(any).filter_map(key).collect())
        } else {
            bound(gt, gte).zip(bound(lt, lte)).map_or(nothing, |(low, high)| Test::Range(low, high))
        };
        Self { of: of.clone(), test }
    }

    fn holds(&self, data: &Value) -> bool {
        let Some(found) = data.pointer(&self.of).and_then(SortKey::of) else { return false };
        let is_same_type = |key: &SortKey| key.type_bounds() == found.type_bounds();
        match &self.test {
            Test::Any(keys) => keys.contains(&found),
            Test::Range(low, high) => {
                let above = match low {
                    Bound::Included(key) => is_same_type(key) && found >= *key,
                    Bound::Excluded(key) => is_same_type(key) && found > *key,
                    Bound::Unbounded => true,
                };
                let below = match high {
                    Bound::Included(key) => is_same_type(key) && found <= *key,
                    Bound::Excluded(key) => is_same_type(key) && found < *key,
                    Bound::Unbounded => true,
                };
                above && below
            }
        }
    }
}

/// What a record adds to one row of a view.
pub(super) struct Contribution {
    pub(super) key: Vec<u8>,
    pub(super) group_key: Vec<u8>,
    pub(super) bucket: Option<OffsetDateTime>,
    pub(super) groups: String,
    /// One for each measure: the digits of its value.
    pub(super) values: Vec<Option<String>>,
}

impl View {
    pub(super) fn new(kind: &str, definition: ViewDefinition) -> Self {
        let conditions = definition.conditions.iter().map(Condition::new).collect();
        Self { definition, kind: kind.to_owned(), conditions }
    }

    pub(super) fn contribution(&self, record: &InView<'_>) -> Option<Contribution> {
        let ViewDefinition { name, group_by, bucket, bucket_of, measures, .. } = &self.definition;
        if !self.conditions.iter().all(|condition| condition.holds(record.data)) {
            return None;
        }
        let start = match (bucket, bucket_of) {
            (Bucket::None, _) => None,
            (bucket, None) => Some(start_of(*bucket, record.created_at)?),
            (bucket, Some(of)) => Some(start_of(*bucket, moment(record.data.pointer(of)?)?)?),
        };
        let groups = group_text(group_by.iter().map(|of| record.data.pointer(of)));
        let prefix = prefix(&self.kind, name);
        let key = [&prefix[..], &start.map(bucket_bytes).unwrap_or_default(), &group_bytes(&groups)].concat();
        let group_key = [&prefix[..], &group_bytes(&groups)].concat();
        let values = measures.iter().map(|measure| match record.data.pointer(measure.of.as_deref()?)? {
            Value::Number(number) => Some(number.to_string()),
            _ => None,
        });
        Some(Contribution { key, group_key, bucket: start, groups, values: values.collect() })
    }
}

/// The first bytes of all keys of a view. No name has a zero byte.
pub(super) fn prefix(kind: &str, view: &str) -> Vec<u8> {
    [kind.as_bytes(), &[0], view.as_bytes(), &[0]].concat()
}

/// The start of a bucket in a key: flipping the sign puts those before 1970 first.
fn bucket_bytes(start: OffsetDateTime) -> Vec<u8> {
    second_bytes(start.unix_timestamp())
}

pub(super) fn second_bytes(second: i64) -> Vec<u8> {
    (second.cast_unsigned() ^ (1 << 63)).to_be_bytes().to_vec()
}

pub(super) fn group_bytes(groups: &str) -> Vec<u8> {
    if groups.len() <= MAX_GROUP {
        return groups.as_bytes().to_vec();
    }
    // No text in UTF-8 has this byte.
    [&[u8::MAX][..], &Fingerprint::of(&[groups.as_bytes()]).0].concat()
}

/// Returns the values of a group as a JSON array: the same text for the same values.
pub(super) fn group_text<'a>(values: impl Iterator<Item = Option<&'a Value>>) -> String {
    let values: Vec<String> = values.map(|value| value.map_or_else(|| "null".to_owned(), group_value)).collect();
    format!("[{}]", values.join(","))
}

fn group_value(value: &Value) -> String {
    match value {
        Value::Bool(value) => value.to_string(),
        Value::Number(number) => decimal(&number.to_string()),
        Value::String(text) if text.chars().count() <= MAX_TEXT => value.to_string(),
        Value::String(_) | Value::Null | Value::Array(_) | Value::Object(_) => "null".to_owned(),
    }
}

/// Returns the one way to write a decimal: without an exponent, and without zeros that say nothing.
fn decimal(text: &str) -> String {
    let (sign, text) = text.strip_prefix('-').map_or(("", text), |rest| ("-", rest));
    let (mantissa, power) = text.split_once(['e', 'E']).unwrap_or((text, "0"));
    let power: i64 = power.strip_prefix('+').unwrap_or(power).parse().unwrap_or_default();
    let (whole, part) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let digits = [whole, part].concat();
    let significant = digits.trim_start_matches('0');
    let leading = i64::try_from(digits.len() - significant.len()).unwrap_or_default();
    let point = i64::try_from(whole.len()).unwrap_or_default() + power - leading;
    let significant = significant.trim_end_matches('0');
    if significant.is_empty() {
        return "0".to_owned();
    }
    let zeros = |count: i64| "0".repeat(usize::try_from(count).unwrap_or_default());
    let size = i64::try_from(significant.len()).unwrap_or_default();
    if point <= 0 {
        return format!("{sign}0.{}{significant}", zeros(-point));
    }
    match usize::try_from(point).ok().and_then(|point| significant.split_at_checked(point)) {
        Some((whole, part)) if !part.is_empty() => format!("{sign}{whole}.{part}"),
        _ => format!("{sign}{significant}{}", zeros(point - size)),
    }
}

/// The moment that a value is; none if it is something else.
fn moment(value: &Value) -> Option<OffsetDateTime> {
    let text = value.as_str().filter(|text| text.len() <= 64)?;
    OffsetDateTime::parse(text, &Rfc3339).ok()
}

/// The start of the bucket that a moment is in.
fn start_of(bucket: Bucket, at: OffsetDateTime) -> Option<OffsetDateTime> {
    let whole = |seconds: i64| {
        let second = at.unix_timestamp().div_euclid(seconds) * seconds;
        OffsetDateTime::from_unix_timestamp(second).ok()
    };
    match bucket {
        Bucket::None => None,
        Bucket::Hour => whole(3_600),
        Bucket::Day => whole(86_400),
        Bucket::Month => {
            let at = at.checked_to_offset(UtcOffset::UTC)?;
            Some(Date::from_calendar_date(at.year(), at.month(), 1).ok()?.midnight().assume_utc())
        }
    }
}

/// Whether a view keeps the values of a measure in their order.
pub(super) fn has_edge(fold: Fold) -> bool {
    matches!(fold, Fold::Min | Fold::Max | Fold::Last)
}

/// The key of the ranked values of one measure in one row.
pub(super) fn cell(key: &[u8], slot: u8) -> Vec<u8> {
    [key, &[0, slot]].concat()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_decimal_is_written_in_one_way() {
        for (text, written) in [
            ("0", "0"),
            ("-0.0", "0"),
            ("1.0", "1"),
            ("100", "100"),
            ("1e2", "100"),
            ("1.50", "1.5"),
            ("-12.5e-3", "-0.0125"),
            ("0.001", "0.001"),
            ("1.25e+1", "12.5"),
            ("18446744073709551615", "18446744073709551615"),
        ] {
            assert_eq!(decimal(text), written, "{text}");
        }
        assert_eq!(decimal("5e-324").len(), 326);
    }

    #[test]
    fn groups_are_told_apart_by_value_and_type() {
        let text = |values: Value| {
            let values: Vec<Value> = serde_json::from_value(values).unwrap();
            group_text(values.iter().map(Some))
        };
        assert_eq!(text(json!(["a", 1, true, null])), r#"["a",1,true,null]"#);
        assert_eq!(text(json!([1.0])), text(json!([1])));
        assert_ne!(text(json!(["1"])), text(json!([1])));
        assert_ne!(text(json!(["a\",\"b"])), text(json!(["a", "b"])));
        assert_eq!(text(json!(["x".repeat(MAX_TEXT + 1)])), "[null]");
        assert_eq!(group_bytes(&"x".repeat(MAX_GROUP + 1)).len(), 33);
    }

    #[test]
    fn a_bucket_starts_in_utc() {
        let start = |bucket, at: &str| {
            let start = start_of(bucket, moment(&json!(at)).unwrap()).unwrap();
            start.format(&Rfc3339).unwrap()
        };
        assert_eq!(start(Bucket::Hour, "2026-03-01T00:30:00+05:45"), "2026-02-28T18:00:00Z");
        assert_eq!(start(Bucket::Day, "2026-03-01T00:30:00+01:00"), "2026-02-28T00:00:00Z");
        assert_eq!(start(Bucket::Month, "2026-03-01T00:30:00+01:00"), "2026-02-01T00:00:00Z");
        assert_eq!(start(Bucket::Day, "1969-12-31T23:59:59Z"), "1969-12-31T00:00:00Z");
        let early = bucket_bytes(moment(&json!("1969-12-31T00:00:00Z")).unwrap());
        assert!(early < bucket_bytes(moment(&json!("1970-01-01T00:00:00Z")).unwrap()));
    }

    #[test]
    fn conditions_compare_values_of_their_own_type() {
        let holds =
            |condition: Value, data: Value| Condition::new(&serde_json::from_value(condition).unwrap()).holds(&data);
        assert!(holds(json!({"of": "/a", "eq": 1}), json!({"a": 1.0})));
        assert!(!holds(json!({"of": "/a", "eq": 1}), json!({"a": "1"})));
        assert!(!holds(json!({"of": "/a", "lt": 1}), json!({"a": null})));
        assert!(!holds(json!({"of": "/a", "lt": 1}), json!({"a": false})), "another type is not less");
        assert!(holds(json!({"of": "/a/b", "gte": 0.5, "lt": 1}), json!({"a": {"b": 0.5}})));
        assert!(!holds(json!({"of": "/a", "gte": 0.5, "lt": 1}), json!({"a": 1})));
        let since = json!({"of": "/a", "gte": "2026-01-01T00:00:00Z"});
        assert!(holds(since.clone(), json!({"a": "2026-01-01T01:00:00+01:00"})));
        assert!(!holds(since, json!({"a": "2025-12-31T23:59:59Z"})));
        assert!(holds(json!({"of": "/a", "in": ["x", "y"]}), json!({"a": "y"})));
    }
}
