//! Moments, as whole milliseconds: an integer on the wire, RFC 3339 in UTC for people.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use time::{
    OffsetDateTime,
    format_description::{BorrowedFormatItem, well_known::Rfc3339},
    macros::format_description,
};

const MILLIS: &[BorrowedFormatItem<'static>] =
    format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:3]Z");

/// Milliseconds since 1970-01-01T00:00:00Z.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Timestamp(i64);

impl Timestamp {
    /// Wraps Unix milliseconds. Values outside the years 1 to 9999 are clamped to the nearer end.
    pub fn from_unix_ms(ms: i64) -> Self {
        const FIRST: i64 = -62_135_596_800_000;
        const LAST: i64 = 253_402_300_799_999;
        Self(ms.clamp(FIRST, LAST))
    }

    /// Returns Unix milliseconds.
    pub fn unix_ms(self) -> i64 {
        self.0
    }

    /// Returns the same moment as a `time` value (for the database driver).
    pub fn to_datetime(self) -> OffsetDateTime {
        OffsetDateTime::from_unix_timestamp_nanos(i128::from(self.0) * 1_000_000).unwrap_or(OffsetDateTime::UNIX_EPOCH)
    }
}

impl From<OffsetDateTime> for Timestamp {
    fn from(moment: OffsetDateTime) -> Self {
        let ms = moment.unix_timestamp_nanos().div_euclid(1_000_000);
        Self::from_unix_ms(i64::try_from(ms).unwrap_or(i64::MAX))
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.to_datetime().format(MILLIS).map_err(|_| fmt::Error)?)
    }
}

/// The reason why a text is not a valid moment: it would not be preserved as given.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TimestampError {
    /// It is malformed.
    #[error("must be an RFC 3339 time like 2026-01-31T09:30:00.125Z or 2026-01-31T10:30:00+01:00")]
    Form,
    /// It is well-formed, and there is no such moment.
    #[error("there is no such moment, or it is a leap second (:60), which times here do not have")]
    NoMoment,
    /// Digits would be lost.
    #[error("must not be finer than milliseconds: three digits after the point")]
    TooFine,
    /// It is too long ago or too far ahead.
    #[error("must be in the years 1 to 9999, in UTC")]
    Year,
}

/// Parses RFC 3339, as far as whole milliseconds represent it.
impl FromStr for Timestamp {
    type Err = TimestampError;

    fn from_str(text: &str) -> Result<Self, TimestampError> {
        const FORM: &str = "0000-00-00T00:00:00";
        let has_form = |text: &str| {
            text.len() == FORM.len()
                && text.bytes().zip(FORM.bytes()).all(|(byte, form)| match form {
                    b'0' => byte.is_ascii_digit(),
                    form => byte.eq_ignore_ascii_case(&form),
                })
        };
        let (moment, rest) = text.split_at_checked(FORM.len()).ok_or(TimestampError::Form)?;
        if !has_form(moment) {
            return Err(TimestampError::Form);
        }
        if let Some(fraction) = rest.strip_prefix('.') {
            let digits = fraction.bytes().take_while(u8::is_ascii_digit).count();
            let (digits, _) = fraction.split_at_checked(digits).ok_or(TimestampError::Form)?;
            if digits.is_empty() {
                return Err(TimestampError::Form);
            }
            if digits.bytes().skip(3).any(|digit| digit != b'0') {
                return Err(TimestampError::TooFine);
            }
        }
        // The library reads a leap second as the moment before it.
        if moment.ends_with("60") {
            return Err(TimestampError::NoMoment);
        }
        let moment = OffsetDateTime::parse(&text.to_ascii_uppercase(), &Rfc3339).map_err(|error| match error {
            time::error::Parse::TryFromParsed(_) => TimestampError::NoMoment,
            _ => TimestampError::Form,
        })?;
        let exact = i64::try_from(moment.unix_timestamp_nanos().div_euclid(1_000_000));
        exact.ok().map(Self).filter(|exact| *exact == Self::from_unix_ms(exact.0)).ok_or(TimestampError::Year)
    }
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() { serializer.collect_str(self) } else { serializer.serialize_i64(self.0) }
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        if deserializer.is_human_readable() {
            let text = String::deserialize(deserializer)?;
            text.parse().map_err(serde::de::Error::custom)
        } else {
            i64::deserialize(deserializer).map(Self::from_unix_ms)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_has_milliseconds_and_reads_back() {
        let moment = Timestamp::from_unix_ms(1_700_000_000_123);
        assert_eq!(moment.to_string(), "2023-11-14T22:13:20.123Z");
        assert_eq!("2023-11-14T23:13:20.123+01:00".parse::<Timestamp>().unwrap(), moment);
    }

    #[test]
    fn hostile_numbers_become_the_nearest_moment() {
        assert_eq!(Timestamp::from_unix_ms(i64::MAX).to_string(), "9999-12-31T23:59:59.999Z");
        assert_eq!(Timestamp::from_unix_ms(i64::MIN).to_string(), "0001-01-01T00:00:00.000Z");
    }

    #[test]
    fn what_is_read_is_what_was_said_or_nothing_is() {
        for (text, moment) in [
            ("2023-11-14T22:13:20Z", "2023-11-14T22:13:20.000Z"),
            ("2023-11-14t22:13:20.1z", "2023-11-14T22:13:20.100Z"),
            ("2023-11-14T22:13:20.120000000Z", "2023-11-14T22:13:20.120Z"),
            ("2023-11-14T22:13:20.123-00:00", "2023-11-14T22:13:20.123Z"),
            ("2024-02-29T23:59:59.999+23:59", "2024-02-29T00:00:59.999Z"),
            ("0001-01-01T00:00:00Z", "0001-01-01T00:00:00.000Z"),
            ("9999-12-31T23:59:59.999Z", "9999-12-31T23:59:59.999Z"),
        ] {
            assert_eq!(text.parse::<Timestamp>().map(|read| read.to_string()).as_deref(), Ok(moment), "{text}");
        }
        for (text, why) in [
            ("0000-01-01T00:00:00Z", TimestampError::Year),
            ("0001-01-01T00:00:00+23:00", TimestampError::Year),
            ("9999-12-31T23:59:59-00:01", TimestampError::Year),
            ("2020-12-31T23:59:60Z", TimestampError::NoMoment),
            ("2023-02-29T00:00:00Z", TimestampError::NoMoment),
            ("2023-11-14T22:13:20.1234Z", TimestampError::TooFine),
            ("1900-01-01T00:00:00.0000001Z", TimestampError::TooFine),
            ("2020-01-01 00:00:00Z", TimestampError::Form),
            ("2020-01-01_00:00:00Z", TimestampError::Form),
            ("2020-01-01T00:00:00.Z", TimestampError::Form),
            ("2020-01-01T00:00:00", TimestampError::Form),
            ("2020-01-01", TimestampError::Form),
            ("-2020-01-01T00:00:00Z", TimestampError::Form),
            ("+012345-01-01T00:00:00Z", TimestampError::Form),
            ("2020-01-01T00:00:00+18:30[Europe/Berlin]", TimestampError::Form),
            ("2020-01-01T00:00:00+1:00", TimestampError::Form),
            ("2020-01-0\u{661}T00:00:00Z", TimestampError::Form),
            ("", TimestampError::Form),
        ] {
            assert_eq!(text.parse::<Timestamp>(), Err(why), "{text}");
        }
        for none in
            ["2020-01-01T24:00:00Z", "2020-13-01T00:00:00Z", "2020-01-01T00:60:00Z", "2020-01-01T00:00:00+99:99"]
        {
            assert!(none.parse::<Timestamp>().is_err(), "{none}");
        }
    }
}
