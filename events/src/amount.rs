//! Amounts of what a meter counts, and of money, in whole millionths of the unit: an integer on the wire, a decimal text for
//! people.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Millionths in a unit.
const UNIT: u64 = 1_000_000;
/// The digits after the point.
const DIGITS: usize = 6;

/// An amount of a meter or of money, in millionths of its unit. Sums and differences are checked: none wraps, and none is rounded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Amount(u64);

/// The reason why a text is not an amount.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AmountError {
    /// It is malformed.
    #[error(
        "must be a decimal number as text, like \"100\" or \"12.5\": digits, and at most six of them after a point"
    )]
    Form,
    /// It is over the limit.
    #[error("must be at most {}", Amount::MAX)]
    TooLarge,
}

impl Amount {
    /// Nothing.
    pub const ZERO: Self = Self(0);
    /// The largest amount: a million million units, so that sums of several fit into 64 bits.
    pub const MAX: Self = Self(1_000_000_000_000 * UNIT);

    /// Wraps millionths; none above [`Amount::MAX`].
    pub fn from_micros(micros: u64) -> Option<Self> {
        (micros <= Self::MAX.0).then_some(Self(micros))
    }

    /// Returns whole units.
    pub fn units(units: u32) -> Self {
        Self(u64::from(units) * UNIT)
    }

    /// Returns millionths.
    pub fn micros(self) -> u64 {
        self.0
    }

    /// Returns the money for this amount at a price for a million units, rounded to a millionth, half of one up; none if it is
    /// above [`Amount::MAX`].
    pub fn priced(self, price_per_million: Self) -> Option<Self> {
        const SCALE: u128 = 1_000_000 * UNIT as u128;
        let product = u128::from(self.0) * u128::from(price_per_million.0);
        u64::try_from((product + SCALE / 2) / SCALE).ok().and_then(Self::from_micros)
    }

    /// Whether it is nothing.
    pub fn is_zero(&self) -> bool {
        self.0 == 0
    }

    /// Returns the sum; none if it is above [`Amount::MAX`].
    pub fn plus(self, other: Self) -> Option<Self> {
        self.0.checked_add(other.0).and_then(Self::from_micros)
    }

    /// Returns the difference; none if it is negative.
    pub fn minus(self, other: Self) -> Option<Self> {
        self.0.checked_sub(other.0).map(Self)
    }

    /// Returns the difference, and nothing where it is negative.
    pub fn less(self, other: Self) -> Self {
        Self(self.0.saturating_sub(other.0))
    }
}

impl fmt::Display for Amount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        AmountSum::from(*self).fmt(f)
    }
}

/// The sum of any number of amounts, in millionths of a unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct AmountSum(u128);

impl AmountSum {
    /// Wraps millionths.
    pub fn from_micros(micros: u128) -> Self {
        Self(micros)
    }

    /// Returns millionths.
    pub fn micros(self) -> u128 {
        self.0
    }

    /// Returns the sum. No number of amounts that there can be reaches the end of the range.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }
}

impl From<Amount> for AmountSum {
    fn from(amount: Amount) -> Self {
        Self(amount.0.into())
    }
}

impl fmt::Display for AmountSum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unit = u128::from(UNIT);
        let (whole, part) = (self.0 / unit, self.0 % unit);
        if part == 0 {
            return write!(f, "{whole}");
        }
        let part = format!("{part:0DIGITS$}");
        write!(f, "{whole}.{}", part.trim_end_matches('0'))
    }
}

impl Serialize for AmountSum {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl FromStr for Amount {
    type Err = AmountError;

    fn from_str(text: &str) -> Result<Self, AmountError> {
        let (whole, part) = text.split_once('.').map_or((text, None), |(whole, part)| (whole, Some(part)));
        let is_number = |digits: &str| !digits.is_empty() && digits.bytes().all(|digit| digit.is_ascii_digit());
        let has_zero_in_front = whole.len() > 1 && whole.starts_with('0');
        if !is_number(whole) || has_zero_in_front || part.is_some_and(|part| !is_number(part) || part.len() > DIGITS) {
            return Err(AmountError::Form);
        }
        let micros = format!("{whole}{:0<DIGITS$}", part.unwrap_or_default());
        micros.parse().ok().and_then(Self::from_micros).ok_or(AmountError::TooLarge)
    }
}

impl Serialize for Amount {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() { serializer.collect_str(self) } else { self.0.serialize(serializer) }
    }
}

impl<'de> Deserialize<'de> for Amount {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        use serde::de::Error;
        if deserializer.is_human_readable() {
            String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
        } else {
            Self::from_micros(u64::deserialize(deserializer)?).ok_or_else(|| D::Error::custom(AmountError::TooLarge))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_amount_has_one_text_and_reads_back() {
        for (text, micros) in [("0", 0), ("1", UNIT), ("12.5", 12_500_000), ("0.000001", 1), ("100000", 100_000 * UNIT)]
        {
            let amount: Amount = text.parse().unwrap();
            assert_eq!((amount.micros(), amount.to_string().as_str()), (micros, text));
            assert_eq!(serde_json::to_value(amount).unwrap(), text);
            let packed = rmp_serde::to_vec_named(&amount).unwrap();
            assert_eq!(rmp_serde::from_slice::<Amount>(&packed).unwrap(), amount);
        }
        assert_eq!("12.500".parse::<Amount>().unwrap().to_string(), "12.5");
        assert_eq!(Amount::MAX.to_string().parse(), Ok(Amount::MAX));
    }

    #[test]
    fn what_is_no_amount_is_refused_with_its_form() {
        for bad in ["", "-1", "+1", "1e3", "1.", ".5", "1.0000001", "1,5", " 1", "01", "NaN", "0x1", "1.2.3", "١"] {
            assert_eq!(bad.parse::<Amount>(), Err(AmountError::Form), "{bad:?}");
        }
        for large in ["1000000000000.000001", "99999999999999999999999999"] {
            assert_eq!(large.parse::<Amount>(), Err(AmountError::TooLarge), "{large}");
        }
        for number in ["1", "1.5", "null"] {
            assert!(serde_json::from_str::<Amount>(number).is_err(), "{number}");
        }
        assert!(rmp_serde::from_slice::<Amount>(&rmp_serde::to_vec_named(&u64::MAX).unwrap()).is_err());
    }

    #[test]
    fn a_sum_is_larger_than_any_amount_and_exact() {
        let most = AmountSum::from(Amount::MAX);
        let sum = (0..1_000).fold(AmountSum::from(Amount(1)), |sum, _| sum.plus(most));
        assert_eq!(sum.to_string(), "1000000000000000.000001");
        assert_eq!(serde_json::to_value(sum).unwrap(), "1000000000000000.000001");
    }

    #[test]
    fn money_is_rounded_once_and_half_up() {
        let amount = |text: &str| text.parse::<Amount>().unwrap();
        for (quantity, price, money) in [
            ("1000000", "0.15", "0.15"),
            ("1", "0.15", "0"),
            ("1", "0.5", "0.000001"),
            ("3.333333", "1000000", "3.333333"),
            ("12500", "2.4", "0.03"),
            ("0", "99", "0"),
        ] {
            assert_eq!(amount(quantity).priced(amount(price)), Some(amount(money)), "{quantity} at {price}");
        }
        assert_eq!(Amount::MAX.priced(amount("1000000.000001")), None);
        assert_eq!(Amount::MAX.priced(Amount::MAX), None);
    }

    #[test]
    fn nothing_wraps() {
        assert_eq!(Amount::MAX.plus(Amount(1)), None);
        assert_eq!(Amount::ZERO.minus(Amount(1)), None);
        assert_eq!(Amount::ZERO.less(Amount(1)), Amount::ZERO);
    }
}
