//! The rules for numbers that are kept exactly.
//!
//! Integers from -2^63 to 2^64 - 1 are kept as they are, all others as IEEE 754 doubles, which are formatted with the fewest
//! digits that distinguish them. A number is accepted if the formatted one denotes the same number.

use serde_json::Number;

/// Returns why a number in JSON is refused; `text` is the sender's text, `read` the decoder's value.
pub(super) fn fault_in_text(text: &str, read: f64) -> Option<String> {
    if read == 0.0 && read.is_sign_negative() {
        return Some(NEGATIVE_ZERO.to_owned());
    }
    if !text.contains(['.', 'e', 'E']) {
        return Some(OUT_OF_RANGE.to_owned());
    }
    let written = Number::from_f64(read)?.to_string();
    (decimal(text) != decimal(&written))
        .then(|| format!("cannot be kept exactly and would become {written}: send that, or send the number as text"))
}

/// Returns why a double that came as such is refused.
pub(super) fn fault_in_double(read: f64) -> Option<String> {
    if !read.is_finite() {
        return Some("must be a number that JSON has, which NaN and the infinities are not".to_owned());
    }
    (read == 0.0 && read.is_sign_negative()).then(|| NEGATIVE_ZERO.to_owned())
}

/// The fault of a number that no double comes near.
pub(super) const OUT_OF_RANGE: &str = "is out of range: whole numbers go from -9223372036854775808 to 18446744073709551615, \
                                       others to 1.7976931348623157e308; send it as text";
const NEGATIVE_ZERO: &str = "is a negative zero, which cannot be kept: send 0";

/// Normalizes a decimal number: its sign, its digits without zeros around them, and the power of ten of the last one.
fn decimal(text: &str) -> Option<(bool, String, i64)> {
    let (negative, text) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let (mantissa, exponent) = text.split_once(['e', 'E']).unwrap_or((text, "0"));
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let digits = [whole, fraction].concat();
    let digits = digits.trim_start_matches('0');
    let significant = digits.trim_end_matches('0');
    if significant.is_empty() {
        return Some((false, String::new(), 0));
    }
    let zeros = i64::try_from(digits.len() - significant.len()).ok()?;
    let behind_point = i64::try_from(fraction.len()).ok()?;
    let exponent = exponent.parse::<i64>().ok()?.checked_sub(behind_point)?.checked_add(zeros)?;
    Some((negative, significant.to_owned(), exponent))
}

/// Iterates over the numbers of a JSON text as they are written, in their order. Invalid JSON gives arbitrary ones.
pub(super) struct Numbers<'a>(pub(super) &'a str);

impl<'a> Iterator for Numbers<'a> {
    type Item = &'a str;

    fn next(&mut self) -> Option<&'a str> {
        loop {
            let start = self.0.find(|c: char| c == '"' || c == '-' || c.is_ascii_digit())?;
            let (_, rest) = self.0.split_at_checked(start)?;
            if let Some(text) = rest.strip_prefix('"') {
                self.0 = behind_string(text)?;
                continue;
            }
            let in_number = |c: char| c.is_ascii_digit() || matches!(c, '-' | '+' | '.' | 'e' | 'E');
            let end = rest.find(|c| !in_number(c)).unwrap_or(rest.len());
            let (number, behind) = rest.split_at_checked(end)?;
            self.0 = behind;
            return Some(number);
        }
    }
}

/// Returns the text after a string whose opening quote is gone.
fn behind_string(mut text: &str) -> Option<&str> {
    loop {
        let (_, rest) = text.split_at_checked(text.find(['"', '\\'])?)?;
        if let Some(behind) = rest.strip_prefix('"') {
            return Some(behind);
        }
        // A backslash, and the character that it escapes.
        let mut escaped = rest.chars();
        escaped.nth(1);
        text = escaped.as_str();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(text: &str) -> bool {
        fault_in_text(text, text.parse().unwrap()).is_none()
    }

    #[test]
    fn a_number_is_taken_if_what_is_written_denotes_the_same() {
        for exact in [
            "0.1",
            "1.0",
            "1.10",
            "100e-2",
            "1E+2",
            "1e16",
            "1.5e300",
            "5e-324",
            "1.7976931348623157e308",
            "0.0",
            "0e999999999999999999999",
            "0.30000000000000004",
            "123456789012345680000e0",
            "-2.50",
        ] {
            assert!(taken(exact), "{exact}");
        }
        for rounded in [
            "18446744073709551616",
            "-9223372036854775809",
            "100000000000000000000",
            "18446744073709551616.0",
            "3.14159265358979323846264338327950288",
            "1e-400",
            "0.1000000000000000055511151231257827",
            "9007199254740993.0",
            "-0",
            "-0.0",
            "-0e7",
        ] {
            assert!(!taken(rounded), "{rounded}");
        }
        assert!(fault_in_double(f64::NAN).is_some() && fault_in_double(f64::NEG_INFINITY).is_some());
        assert!(fault_in_double(-0.0).is_some() && fault_in_double(1e16).is_none());
    }

    #[test]
    fn numbers_are_found_outside_of_strings_only() {
        let text = r#"{"a1":[1,-2.5e+3,"7\"8\\",0],"\\":9,"ü\u0031":[true,null,1E5]}"#;
        assert_eq!(Numbers(text).collect::<Vec<_>>(), ["1", "-2.5e+3", "0", "9", "1E5"]);
    }
}
