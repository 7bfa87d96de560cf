//! Calendar months in UTC: the periods of allowances, caps and invoices.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use time::{Date, Month as MonthName, Time, UtcOffset};

use crate::Timestamp;

/// A calendar month in UTC, from its first millisecond to the one before the next month's: `2026-03`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Month {
    year: i32,
    month: u8,
}

/// The reason why a text is not a month.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("must be a month like 2026-03, from 0001-01 to 9999-12")]
pub struct MonthError;

impl Month {
    /// Returns the month that a moment is in.
    pub fn of(moment: Timestamp) -> Self {
        let date = moment.to_datetime().to_offset(UtcOffset::UTC).date();
        Self { year: date.year(), month: u8::from(date.month()) }
    }

    /// Returns its first millisecond.
    pub fn start(self) -> Timestamp {
        let month = MonthName::try_from(self.month).unwrap_or(MonthName::January);
        let first = Date::from_calendar_date(self.year, month, 1).unwrap_or(Date::MIN);
        first.with_time(Time::MIDNIGHT).assume_utc().into()
    }

    /// Returns the first millisecond of the next month.
    pub fn end(self) -> Timestamp {
        self.next().start()
    }

    /// Returns the month before. Before 0001-01 there is none, so that it is its own.
    pub fn previous(self) -> Self {
        match (self.year, self.month) {
            (..=1, 1) => self,
            (year, 1) => Self { year: year - 1, month: 12 },
            (year, month) => Self { year, month: month - 1 },
        }
    }

    /// Returns the next month. After 9999-12 there is none, so that it is its own.
    pub fn next(self) -> Self {
        match (self.year, self.month) {
            (9_999, 12) => self,
            (year, 12) => Self { year: year + 1, month: 1 },
            (year, month) => Self { year, month: month + 1 },
        }
    }
}

impl fmt::Display for Month {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04}-{:02}", self.year, self.month)
    }
}

impl From<Month> for String {
    fn from(month: Month) -> Self {
        month.to_string()
    }
}

impl TryFrom<String> for Month {
    type Error = MonthError;

    fn try_from(text: String) -> Result<Self, MonthError> {
        text.parse()
    }
}

impl FromStr for Month {
    type Err = MonthError;

    fn from_str(text: &str) -> Result<Self, MonthError> {
        let (year, month) = text.split_once('-').ok_or(MonthError)?;
        let is_number =
            |digits: &str, count| digits.len() == count && digits.bytes().all(|digit| digit.is_ascii_digit());
        if !is_number(year, 4) || !is_number(month, 2) {
            return Err(MonthError);
        }
        let (year, month) = (year.parse().map_err(|_| MonthError)?, month.parse().map_err(|_| MonthError)?);
        if year >= 1 && (1..=12).contains(&month) { Ok(Self { year, month }) } else { Err(MonthError) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn months_tile_the_time_and_contain_their_moments() {
        let mut month: Month = "2020-01".parse().unwrap();
        let last = "2030-12".parse().unwrap();
        while month < last {
            assert_eq!((month.end(), month.next().previous()), (month.next().start(), month));
            let before_the_end = Timestamp::from_unix_ms(month.end().unix_ms() - 1);
            assert_eq!((Month::of(month.start()), Month::of(before_the_end)), (month, month));
            assert_eq!(Month::of(month.end()), month.next());
            let days = (month.end().unix_ms() - month.start().unix_ms()) / 86_400_000;
            assert!((28..=31).contains(&days), "{month}: {days}");
            assert_eq!(month.start().to_string(), format!("{month}-01T00:00:00.000Z"));
            month = month.next();
        }
    }

    #[test]
    fn a_month_has_one_text() {
        assert_eq!("2024-02".parse::<Month>().unwrap().end().to_string(), "2024-03-01T00:00:00.000Z");
        for bad in ["", "2024", "2024-13", "2024-00", "24-01", "2024-1", "0000-01", "2024-02-01", "2024/02"] {
            assert_eq!(bad.parse::<Month>(), Err(MonthError), "{bad}");
        }
        let end: Month = "9999-12".parse().unwrap();
        assert_eq!(end.next(), end);
        let first: Month = "0001-01".parse().unwrap();
        assert_eq!(first.previous(), first);
    }
}
