//! Views that a kind declares of its records: what they are grouped by, and what is counted and summed of each group.

use serde::{Deserialize, Serialize};
use serde_json::Number;

/// A view of the records of a kind.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ViewDefinition {
    /// The name, unique within the kind.
    pub name: String,
    /// JSON pointers into the data: records with the same values there are one group. Without any, all are.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub group_by: Vec<String>,
    /// The length of time that a row is about.
    #[serde(default, skip_serializing_if = "is_default")]
    pub bucket: Bucket,
    /// The JSON pointer to the time that decides about the bucket; the record's creation without one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bucket_of: Option<String>,
    /// What is known of each group and bucket.
    pub measures: Vec<Measure>,
    /// The conditions that records satisfy, all of them, to be in the view.
    #[serde(default, rename = "where", skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<ViewCondition>,
}

/// The length of time that a row of a view is about, in UTC.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Bucket {
    /// All time.
    #[default]
    None,
    /// An hour.
    Hour,
    /// A day.
    Day,
    /// A calendar month.
    Month,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// Something that is known of each row of a view.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Measure {
    /// The name, unique within the view.
    pub name: String,
    /// How values are combined.
    pub fold: Fold,
    /// The JSON pointer to the values; none for a count of records.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub of: Option<String>,
}

/// How the values of a group are combined.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fold {
    /// The number of records.
    Count,
    /// The sum.
    Sum,
    /// The least value.
    Min,
    /// The greatest value.
    Max,
    /// The mean.
    Avg,
    /// The value of the record that was written last.
    Last,
}

/// A condition on one value of a record. A record without the value does not satisfy it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ViewCondition {
    /// The JSON pointer to the value.
    pub of: String,
    /// The value is this one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub eq: Option<Scalar>,
    /// The value is one of these.
    #[serde(default, rename = "in", skip_serializing_if = "Vec::is_empty")]
    pub any: Vec<Scalar>,
    /// The value is greater.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gt: Option<Scalar>,
    /// The value is this one or greater.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gte: Option<Scalar>,
    /// The value is less.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lt: Option<Scalar>,
    /// The value is this one or less.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lte: Option<Scalar>,
}

/// One value that a condition compares with.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Scalar {
    /// True or false.
    Boolean(bool),
    /// A number.
    Number(Number),
    /// A text.
    Text(String),
}
