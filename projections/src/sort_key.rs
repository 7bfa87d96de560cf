//! Values of fields as bytes that compare as the values do, so that a plain index over bytes lists by them.
//!
//! The first byte is the type: false and true, then numbers, then moments, then texts. Numbers compare as decimals, exactly
//! and whatever their size, and moments as moments, whatever their time zone and the digits of their seconds. Texts compare by
//! their characters' code points.

use serde_json::Value;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

/// The longest text that has a key, in characters.
const MAX_TEXT: usize = 256;
/// The largest power of ten of a number that has a key.
const MAX_POWER: i64 = 10_000;
/// The most digits of a number that has a key: more than the shortest form of any double has.
const MAX_DIGITS: usize = 400;

const BOOLEAN: u8 = 1;
const NUMBER: u8 = 2;
const MOMENT: u8 = 3;
const TEXT: u8 = 4;

const NEGATIVE: u8 = 1;
const ZERO: u8 = 2;
const POSITIVE: u8 = 3;

/// The key of a value.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct SortKey(pub(crate) Vec<u8>);

impl SortKey {
    /// Returns the key of a value; none for null, for what has several values, and for a text that is too long.
    pub fn of(value: &Value) -> Option<Self> {
        match value {
            Value::Bool(value) => Some(Self::boolean(*value)),
            Value::Number(number) => Self::number(&number.to_string()),
            Value::String(text) => Self::text(text),
            Value::Null | Value::Array(_) | Value::Object(_) => None,
        }
    }

    /// Returns the key of false or true.
    pub fn boolean(value: bool) -> Self {
        Self(vec![BOOLEAN, u8::from(value)])
    }

    /// Returns the key of a text; of a moment if it is one.
    pub fn text(text: &str) -> Option<Self> {
        if let Some(moment) = Self::moment(text) {
            return Some(moment);
        }
        let is_short = text.len() <= MAX_TEXT || text.chars().nth(MAX_TEXT).is_none();
        is_short.then(|| Self([&[TEXT], text.as_bytes()].concat()))
    }

    /// Returns the key of a moment in RFC 3339.
    pub fn moment(text: &str) -> Option<Self> {
        // The shortest one, such as 2026-01-01T00:00:00Z; and nothing that is parsed for long.
        if !(20..=64).contains(&text.len()) {
            return None;
        }
        let moment = OffsetDateTime::parse(text, &Rfc3339).ok()?;
        // Flipping the sign puts those before 1970 first.
        let seconds = moment.unix_timestamp().cast_unsigned() ^ (1 << 63);
        Some(Self([&[MOMENT][..], &seconds.to_be_bytes(), &moment.nanosecond().to_be_bytes()].concat()))
    }

    /// Returns the key of a decimal number, such as `-12.5` or `1e9`.
    pub fn number(text: &str) -> Option<Self> {
        let (is_negative, text) = text.strip_prefix('-').map_or((false, text), |rest| (true, rest));
        let (mantissa, power) = match text.split_once(['e', 'E']) {
            Some((mantissa, power)) => {
                let digits = power.strip_prefix(['+', '-']).unwrap_or(power);
                is_digits(digits).then_some(())?;
                (mantissa, power.parse::<i64>().ok()?)
            }
            None => (text, 0),
        };
        let (whole, part) = mantissa.split_once('.').map_or((mantissa, None), |(whole, part)| (whole, Some(part)));
        if !is_digits(whole) || !part.is_none_or(is_digits) || !(-MAX_POWER..=MAX_POWER).contains(&power) {
            return None;
        }
        let digits = [whole, part.unwrap_or_default()].concat();
        let significant = digits.trim_start_matches('0');
        // The number is 0.DIGITS times ten to this power.
        let power = i64::try_from(whole.len()).ok()? - i64::try_from(digits.len() - significant.len()).ok()? + power;
        let significant = significant.trim_end_matches('0');
        if significant.is_empty() {
            return Some(Self(vec![NUMBER, ZERO]));
        }
        if significant.len() > MAX_DIGITS {
            return None;
        }
        let power = u16::try_from(power + (1 << 15)).ok()?;
        let size = [&power.to_be_bytes()[..], significant.as_bytes()].concat();
        if !is_negative {
            return Some(Self([&[NUMBER, POSITIVE][..], &size].concat()));
        }
        // Of negative ones the larger comes first; of two that begin alike, the longer.
        let size: Vec<u8> = size.into_iter().map(|byte| !byte).chain([u8::MAX]).collect();
        Some(Self([&[NUMBER, NEGATIVE][..], &size].concat()))
    }

    /// Returns the bytes before all keys of the same type, and those after them.
    pub(crate) fn type_bounds(&self) -> (Vec<u8>, Vec<u8>) {
        let first = self.0.first().copied().unwrap_or_default();
        (vec![first], vec![first + 1])
    }
}

fn is_digits(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn key(value: &Value) -> SortKey {
        SortKey::of(value).unwrap_or_else(|| panic!("{value} has no key"))
    }

    #[test]
    fn numbers_compare_as_decimals_whatever_their_size() {
        let ascending = [
            json!(-1.797_693_134_862_315_7e308),
            json!(i64::MIN),
            json!(-9_007_199_254_740_993_i64),
            json!(-9_007_199_254_740_992_i64),
            json!(-123),
            json!(-12.5),
            json!(-12),
            json!(-1.5),
            json!(-1),
            json!(-0.125),
            json!(-0.12),
            json!(-5e-324),
            json!(0),
            json!(5e-324),
            json!(0.1),
            json!(0.12),
            json!(0.125),
            json!(1),
            json!(1.5),
            json!(2),
            json!(9),
            json!(10),
            json!(12),
            json!(12.5),
            json!(99),
            json!(100),
            json!(9_007_199_254_740_992_i64),
            json!(9_007_199_254_740_993_i64),
            json!(u64::MAX),
            json!(1e300),
        ];
        for pair in ascending.windows(2) {
            assert!(key(&pair[0]) < key(&pair[1]), "{pair:?}");
        }
    }

    #[test]
    fn one_number_has_one_key_however_it_is_written() {
        for same in
            [["100", "1e2", "100.00"], ["0.5", "5e-1", "00.50"], ["-12.5", "-125E-1", "-12.50"], ["0", "-0", "0e9"]]
        {
            let keys = same.map(|text| SortKey::number(text).unwrap());
            assert!(keys.iter().all(|key| *key == keys[0]), "{same:?}");
        }
        assert_eq!(SortKey::number("1.0"), Some(key(&json!(1))));
        for no in
            ["", "-", ".5", "5.", "1e", "1e99999", "0x10", "1_000", "NaN", "inf", "+1", "1e+-5", "1e++5", " 1", "1,5"]
        {
            assert_eq!(SortKey::number(no), None, "{no}");
        }
    }

    #[test]
    fn moments_compare_as_moments() {
        let ascending = [
            "0001-01-01T00:00:00Z",
            "1969-12-31T23:59:59.999Z",
            "1970-01-01T00:00:00Z",
            "2026-03-01T12:00:00Z",
            "2026-03-01T12:00:00.5Z",
            "2026-03-01T12:00:00.51Z",
            "2026-03-01T11:30:01-00:30",
        ];
        for pair in ascending.windows(2) {
            assert!(key(&json!(pair[0])) < key(&json!(pair[1])), "{pair:?}");
        }
        assert_eq!(key(&json!("2026-03-01T12:00:00Z")), key(&json!("2026-03-01T14:00:00.000+02:00")));
        assert_eq!(SortKey::moment("2026-03-01"), None);
    }

    #[test]
    fn texts_compare_by_code_point_and_types_apart() {
        let ascending = [
            json!(false),
            json!(true),
            json!(-1),
            json!(7),
            json!("2026-03-01T12:00:00Z"),
            json!(""),
            json!("A"),
            json!("Z"),
            json!("a"),
            json!("ab"),
            json!("ä"),
            json!("日本"),
        ];
        for pair in ascending.windows(2) {
            assert!(key(&pair[0]) < key(&pair[1]), "{pair:?}");
        }
        for (value, first) in [(json!(true), BOOLEAN), (json!(0), NUMBER), (json!("x"), TEXT)] {
            let (low, high) = key(&value).type_bounds();
            assert!(low < key(&value).0 && key(&value).0 < high, "{value} {first}");
        }
    }

    #[test]
    fn what_has_no_order_has_no_key() {
        for none in [json!(null), json!([1]), json!({"a": 1}), json!("ä".repeat(MAX_TEXT + 1))] {
            assert_eq!(SortKey::of(&none), None);
        }
        assert!(SortKey::of(&json!("ä".repeat(MAX_TEXT))).is_some());
    }
}
