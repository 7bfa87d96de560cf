//! The views that a kind declares of its records: as a command has them, and what is checked of them.
//!
//! A view names values by JSON pointers. Each leads through `properties` of the kind's schema to one value of a type that the view
//! can use there, so that a mistake is found when the kind is registered and not by rows that stay empty.

use std::collections::BTreeSet;

use orgstream_events::{Bucket, Fold, KindName, Measure, Scalar, ViewCondition, ViewDefinition};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

use crate::{
    FieldError,
    annotations::{FieldType, field_type, is_short},
    text::Faults,
};

/// The maximum number of views of one kind.
pub const MAX_VIEWS: usize = 8;
/// The maximum number of values that one view groups by.
pub const MAX_GROUPS: usize = 4;
/// The maximum number of measures of one view.
pub const MAX_MEASURES: usize = 8;
/// The maximum number of conditions of one view.
pub const MAX_CONDITIONS: usize = 8;
/// The maximum number of values that one condition compares with.
pub const MAX_VALUES: usize = 100;
/// The maximum length of a text that is compared with, in characters.
const MAX_TEXT: usize = 256;

/// A view of the records of a kind.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct KindViewDefinition {
    /// Name in paths, unique within the kind: 1 to 63 characters of a-z, 0-9 and _, beginning with a letter.
    #[schema(example = "by_model_and_day")]
    pub name: String,
    /// JSON pointers to values in `data`, at most 4: records with the same values are one group. Without any, all records are.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(max_items = 4, example = json!(["/model"]))]
    pub group_by: Vec<String>,
    /// Length of time that a row is about, in UTC: `none` (the default), `hour`, `day` or `month`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = "day")]
    pub bucket: Option<BucketName>,
    /// JSON pointer to the time that decides about the bucket; the record's creation unless said otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = "/finished_at")]
    pub bucket_of: Option<String>,
    /// Measures of each row, 1 to 8.
    #[schema(min_items = 1, max_items = 8)]
    pub measures: Vec<MeasureDefinition>,
    /// Conditions that a record satisfies to be in the view, all of them, at most 8.
    #[serde(default, rename = "where", skip_serializing_if = "Vec::is_empty")]
    #[schema(max_items = 8)]
    pub conditions: Vec<ConditionDefinition>,
}

/// A length of time, in UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum BucketName {
    /// All time.
    None,
    /// An hour.
    Hour,
    /// A day.
    Day,
    /// A calendar month.
    Month,
}

/// A measure of the rows of a view.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct MeasureDefinition {
    /// Name in the rows, unique within the view: 1 to 63 characters of a-z, 0-9 and _, beginning with a letter.
    #[schema(example = "mean_score")]
    pub name: String,
    /// Combination of the values: `count`, `sum`, `min`, `max`, `avg` or `last`.
    pub fold: FoldName,
    /// JSON pointer to a number in `data`; every fold but `count` needs one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = "/score")]
    pub of: Option<String>,
}

/// A combination of values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum FoldName {
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

/// A condition on one value of a record: `eq` or `in`, or bounds. A record without the value does not satisfy it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ConditionDefinition {
    /// JSON pointer to the value in `data`.
    #[schema(example = "/status")]
    pub of: String,
    /// Value that it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = "completed")]
    pub eq: Option<Value>,
    /// Values of which it is one, 1 to 100.
    #[serde(default, rename = "in", skip_serializing_if = "Option::is_none")]
    #[schema(min_items = 1, max_items = 100)]
    pub any: Option<Vec<Value>>,
    /// Number or time that it is greater than.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gt: Option<Value>,
    /// Number or time that it is, or is greater than.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gte: Option<Value>,
    /// Number or time that it is less than.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lt: Option<Value>,
    /// Number or time that it is, or is less than.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lte: Option<Value>,
}

macro_rules! same_names {
    ($($one:ident = $other:ident { $($name:ident),* };)*) => {$(
        impl From<$one> for $other {
            fn from(one: $one) -> Self {
                match one {
                    $($one::$name => Self::$name,)*
                }
            }
        }

        impl From<$other> for $one {
            fn from(other: $other) -> Self {
                match other {
                    $($other::$name => Self::$name,)*
                }
            }
        }
    )*};
}

same_names! {
    BucketName = Bucket { None, Hour, Day, Month };
    FoldName = Fold { Count, Sum, Min, Max, Avg, Last };
}

impl From<ViewDefinition> for KindViewDefinition {
    fn from(view: ViewDefinition) -> Self {
        let ViewDefinition { name, group_by, bucket, bucket_of, measures, conditions } = view;
        let bucket = (bucket != Bucket::None).then(|| bucket.into());
        let measure = |Measure { name, fold, of }| MeasureDefinition { name, fold: fold.into(), of };
        let condition = |condition: ViewCondition| {
            let ViewCondition { of, eq, any, gt, gte, lt, lte } = condition;
            let one = |scalar: Option<Scalar>| scalar.map(value_of);
            let any = (!any.is_empty()).then(|| any.into_iter().map(value_of).collect());
            ConditionDefinition { of, eq: one(eq), any, gt: one(gt), gte: one(gte), lt: one(lt), lte: one(lte) }
        };
        let measures = measures.into_iter().map(measure).collect();
        let conditions = conditions.into_iter().map(condition).collect();
        Self { name, group_by, bucket, bucket_of, measures, conditions }
    }
}

fn value_of(scalar: Scalar) -> Value {
    match scalar {
        Scalar::Boolean(value) => Value::Bool(value),
        Scalar::Number(number) => Value::Number(number),
        Scalar::Text(text) => Value::String(text),
    }
}

/// Reads the views of a command, or returns their faults, with pointers that begin with `/views`.
pub fn read(views: Vec<KindViewDefinition>) -> Result<Vec<ViewDefinition>, Vec<FieldError>> {
    let mut faults = Faults::default();
    let mut read = Vec::with_capacity(views.len());
    for (nth, view) in views.into_iter().enumerate() {
        let KindViewDefinition { name, group_by, bucket, bucket_of, measures, conditions } = view;
        let bucket = bucket.map_or(Bucket::None, Bucket::from);
        let measure = |MeasureDefinition { name, fold, of }| Measure { name, fold: fold.into(), of };
        let measures = measures.into_iter().map(measure).collect();
        let mut as_read = Vec::with_capacity(conditions.len());
        for (place, condition) in conditions.into_iter().enumerate() {
            let ConditionDefinition { of, eq, any, gt, gte, lt, lte } = condition;
            let pointer = format!("/views/{nth}/where/{place}");
            if any.as_ref().is_some_and(Vec::is_empty) {
                faults.add(format!("{pointer}/in"), "too_short", "must have at least one value");
            }
            let mut one = |name: &str, value: Option<Value>| {
                value.and_then(|value| scalar(format!("{pointer}/{name}"), value, &mut faults))
            };
            let (eq, gt, gte) = (one("eq", eq), one("gt", gt), one("gte", gte));
            let (lt, lte) = (one("lt", lt), one("lte", lte));
            let any = any.into_iter().flatten().enumerate();
            let any = any.filter_map(|(item, value)| one(&format!("in/{item}"), Some(value))).collect();
            as_read.push(ViewCondition { of, eq, any, gt, gte, lt, lte });
        }
        read.push(ViewDefinition { name, group_by, bucket, bucket_of, measures, conditions: as_read });
    }
    faults.none_or(|faults| faults).map(|()| read)
}

fn scalar(pointer: String, value: Value, faults: &mut Faults) -> Option<Scalar> {
    match value {
        Value::Bool(value) => Some(Scalar::Boolean(value)),
        Value::Number(number) => Some(Scalar::Number(number)),
        Value::String(text) => {
            if text.chars().count() > MAX_TEXT || text.contains('\0') {
                let detail = format!("must be a text of at most {MAX_TEXT} characters, without U+0000");
                faults.add(pointer, "not_a_short_text", detail);
                return None;
            }
            Some(Scalar::Text(text))
        }
        Value::Null | Value::Array(_) | Value::Object(_) => {
            faults.add(pointer, "not_a_scalar", "must be a text, a number, true or false");
            None
        }
    }
}

/// Checks the views of a kind against its schema; the pointers of faults begin with `/views`.
pub(crate) fn check(views: &[ViewDefinition], schema: &Value) -> Result<(), Vec<FieldError>> {
    let mut checks = Checks { schema, faults: Faults::default() };
    if views.len() > MAX_VIEWS {
        checks.faults.add("/views", "too_many", format!("must not be more than {MAX_VIEWS} views"));
    }
    let mut names = BTreeSet::new();
    for (nth, view) in views.iter().enumerate() {
        let pointer = format!("/views/{nth}");
        checks.name(&format!("{pointer}/name"), &view.name, &mut names);
        checks.view(&pointer, view);
    }
    checks.faults.none_or(|faults| faults)
}

struct Checks<'a> {
    schema: &'a Value,
    faults: Faults,
}

impl<'a> Checks<'a> {
    fn name(&mut self, pointer: &str, name: &'a str, names: &mut BTreeSet<&'a str>) {
        if name.parse::<KindName>().is_err() {
            let detail = "must have 1 to 63 characters of a-z, 0-9 and _, beginning with a letter";
            self.faults.add(pointer, "name", detail);
        } else if !names.insert(name) {
            self.faults.add(pointer, "duplicate", "is the name of another one");
        }
    }

    fn view(&mut self, pointer: &str, view: &'a ViewDefinition) {
        let ViewDefinition { name: _, group_by, bucket, bucket_of, measures, conditions } = view;
        if group_by.len() > MAX_GROUPS {
            let detail = format!("must not group by more than {MAX_GROUPS} values");
            self.faults.add(format!("{pointer}/group_by"), "too_many", detail);
        }
        let mut seen = BTreeSet::new();
        for (nth, group) in group_by.iter().enumerate() {
            let at = format!("{pointer}/group_by/{nth}");
            if !seen.insert(group) {
                self.faults.add(at, "duplicate", "is grouped by already");
                continue;
            }
            let Some((declared, field_type)) = self.value(&at, group) else { continue };
            match field_type {
                FieldType::Time => {
                    self.faults.add(at, "not_a_group", "is a time: group by it with `bucket` and `bucket_of`");
                }
                FieldType::Text if !is_short(declared) => {
                    let detail = format!(
                        "must be a text of at most {MAX_TEXT} characters: give it a `maxLength`, an `enum` or a short `format`"
                    );
                    self.faults.add(at, "not_a_short_text", detail);
                }
                FieldType::Text | FieldType::Number | FieldType::Boolean => {}
            }
        }
        if let Some(of) = bucket_of {
            let at = format!("{pointer}/bucket_of");
            if *bucket == Bucket::None {
                self.faults.add(at, "without_bucket", "takes a `bucket`: hour, day or month");
            } else if let Some((_, field_type)) = self.value(&at, of)
                && field_type != FieldType::Time
            {
                self.faults.add(at, "not_a_time", "must lead to a text of the format `date-time`");
            }
        }
        self.measures(&format!("{pointer}/measures"), measures);
        if conditions.len() > MAX_CONDITIONS {
            let detail = format!("must not be more than {MAX_CONDITIONS} conditions");
            self.faults.add(format!("{pointer}/where"), "too_many", detail);
        }
        for (nth, condition) in conditions.iter().enumerate() {
            self.condition(&format!("{pointer}/where/{nth}"), condition);
        }
    }

    fn measures(&mut self, pointer: &str, measures: &'a [Measure]) {
        if !(1..=MAX_MEASURES).contains(&measures.len()) {
            let code = if measures.is_empty() { "too_few" } else { "too_many" };
            self.faults.add(pointer, code, format!("must be 1 to {MAX_MEASURES} measures"));
        }
        let mut names = BTreeSet::new();
        for (nth, Measure { name, fold, of }) in measures.iter().enumerate() {
            self.name(&format!("{pointer}/{nth}/name"), name, &mut names);
            let at = format!("{pointer}/{nth}/of");
            match (fold, of) {
                (Fold::Count, None) => {}
                (Fold::Count, Some(_)) => self.faults.add(at, "not_needed", "count is of records: leave it out"),
                (_, None) => self.faults.add(at, "required", "must lead to the numbers that are combined"),
                (_, Some(of)) => {
                    if let Some((_, field_type)) = self.value(&at, of)
                        && field_type != FieldType::Number
                    {
                        self.faults.add(at, "not_a_number", "must lead to a value of the type number or integer");
                    }
                }
            }
        }
    }

    fn condition(&mut self, pointer: &str, condition: &ViewCondition) {
        let ViewCondition { of, eq, any, gt, gte, lt, lte } = condition;
        let bounds = [("gt", gt), ("gte", gte), ("lt", lt), ("lte", lte)];
        let ways = usize::from(eq.is_some())
            + usize::from(!any.is_empty())
            + usize::from(bounds.iter().any(|(_, bound)| bound.is_some()));
        if ways != 1 || (gt.is_some() && gte.is_some()) || (lt.is_some() && lte.is_some()) {
            let detail = "must have eq, or in, or one lower and one upper bound at most";
            self.faults.add(pointer, "condition", detail);
        }
        if any.len() > MAX_VALUES {
            self.faults.add(format!("{pointer}/in"), "too_many", format!("must not be more than {MAX_VALUES} values"));
        }
        let Some((_, field_type)) = self.value(&format!("{pointer}/of"), of) else { return };
        let values = any.iter().enumerate().map(|(nth, value)| (format!("in/{nth}"), value));
        let bounds = bounds.into_iter().filter_map(|(name, bound)| Some((name.to_owned(), bound.as_ref()?)));
        let one = eq.iter().map(|value| ("eq".to_owned(), value));
        for (name, value) in one.chain(values).chain(bounds) {
            let at = format!("{pointer}/{name}");
            let is_bound = name.starts_with(['g', 'l']);
            let rule = match (field_type, value) {
                (FieldType::Boolean, Scalar::Boolean(_)) | (FieldType::Text, Scalar::Text(_)) if !is_bound => continue,
                (FieldType::Number, Scalar::Number(_)) => continue,
                (FieldType::Time, Scalar::Text(text)) if is_moment(text) => continue,
                (FieldType::Boolean | FieldType::Text, _) if is_bound => "compares numbers and times only",
                (FieldType::Boolean, _) => "must be true or false, as the value is",
                (FieldType::Text, _) => "must be a text, as the value is",
                (FieldType::Number, _) => "must be a number, as the value is",
                (FieldType::Time, _) => "must be a time in RFC 3339, such as 2026-03-01T12:00:00Z",
            };
            self.faults.add(at, "type", rule);
        }
    }

    /// Returns the declaration of the value that a pointer leads to, and its type.
    fn value(&mut self, at: &str, pointer: &str) -> Option<(&'a Map<String, Value>, FieldType)> {
        match declared(self.schema, pointer) {
            Ok(found) => Some(found),
            Err((code, detail)) => {
                self.faults.add(at, code, detail);
                None
            }
        }
    }
}

fn is_moment(text: &str) -> bool {
    text.parse::<orgstream_events::Timestamp>().is_ok()
}

type Refusal = (&'static str, String);

/// Follows a pointer through the properties of a schema, to one value.
fn declared<'a>(schema: &'a Value, pointer: &str) -> Result<(&'a Map<String, Value>, FieldType), Refusal> {
    let Some(steps) = pointer.strip_prefix('/') else {
        return Err(("pointer", "must be a JSON pointer, such as /score".to_owned()));
    };
    let mut at = schema;
    for step in steps.split('/') {
        let name = step.replace("~1", "/").replace("~0", "~");
        let properties = at.get("properties").and_then(Value::as_object);
        let Some(next) = properties.and_then(|properties| properties.get(&name)) else {
            let names: Vec<&str> = properties.into_iter().flatten().map(|(name, _)| name.as_str()).take(40).collect();
            let there_are = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
            let shown: String = name.chars().take(63).collect();
            let detail = format!("leads to {shown}, which the schema does not declare there; it declares: {there_are}");
            return Err(("unknown", detail));
        };
        at = next;
    }
    let keywords = at.as_object();
    keywords.and_then(|keywords| Some((keywords, field_type(keywords)?))).ok_or_else(|| {
        let detail = "must lead to one value: `type` string, number, integer or boolean, or one of these and null";
        ("not_a_scalar", detail.to_owned())
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn schema() -> Value {
        json!({"type": "object", "properties": {
            "model": {"type": "string", "maxLength": 80}, "notes": {"type": "string"}, "score": {"type": ["number", "null"]},
            "on": {"type": "boolean"}, "at": {"type": "string", "format": "date-time"}, "tags": {"type": "array"},
            "usage": {"type": "object", "properties": {"tokens": {"type": "integer"}}},
        }})
    }

    fn checked(views: Value) -> Result<Vec<ViewDefinition>, Vec<(String, String)>> {
        let told = |faults: Vec<FieldError>| {
            faults.into_iter().map(|fault| (fault.pointer, fault.code.into_owned())).collect::<Vec<_>>()
        };
        let views: Vec<KindViewDefinition> = serde_json::from_value(views).unwrap();
        let read = read(views).map_err(told)?;
        check(&read, &schema()).map_err(told)?;
        Ok(read)
    }

    fn fault(view: &Value) -> (String, String) {
        let mut whole = json!({"name": "v", "measures": [{"name": "n", "fold": "count"}]});
        whole.as_object_mut().unwrap().extend(view.as_object().unwrap().clone());
        checked(json!([whole])).unwrap_err().remove(0)
    }

    #[test]
    fn a_view_is_what_was_declared_and_is_shown_as_it_was() {
        let views = json!([{
            "name": "by_model", "group_by": ["/model", "/on"], "bucket": "day", "bucket_of": "/at",
            "measures": [{"name": "n", "fold": "count"}, {"name": "tokens", "fold": "sum", "of": "/usage/tokens"}],
            "where": [{"of": "/model", "in": ["a", "b"]}, {"of": "/score", "gte": 0.5, "lt": 1}, {"of": "/on", "eq": true}],
        }]);
        let read = checked(views.clone()).unwrap();
        let shown: Vec<KindViewDefinition> = read.into_iter().map(KindViewDefinition::from).collect();
        assert_eq!(serde_json::to_value(shown).unwrap(), views);
    }

    #[test]
    fn a_mistake_is_pointed_at() {
        let measure = |measure: Value| json!({"measures": [measure]});
        let condition = |condition: Value| json!({"where": [condition]});
        for (view, pointer, code) in [
            (json!({"name": "By Model"}), "/views/0/name", "name"),
            (json!({"group_by": ["/modle"]}), "/views/0/group_by/0", "unknown"),
            (json!({"group_by": ["model"]}), "/views/0/group_by/0", "pointer"),
            (json!({"group_by": ["/notes"]}), "/views/0/group_by/0", "not_a_short_text"),
            (json!({"group_by": ["/at"]}), "/views/0/group_by/0", "not_a_group"),
            (json!({"group_by": ["/tags"]}), "/views/0/group_by/0", "not_a_scalar"),
            (json!({"group_by": ["/tags/0"]}), "/views/0/group_by/0", "unknown"),
            (json!({"group_by": ["/on", "/on"]}), "/views/0/group_by/1", "duplicate"),
            (json!({"group_by": ["/on", "/model", "/score", "/usage/tokens", "/x"]}), "/views/0/group_by", "too_many"),
            (json!({"bucket": "day", "bucket_of": "/model"}), "/views/0/bucket_of", "not_a_time"),
            (json!({"bucket_of": "/at"}), "/views/0/bucket_of", "without_bucket"),
            (json!({"measures": []}), "/views/0/measures", "too_few"),
            (measure(json!({"name": "m", "fold": "sum", "of": "/model"})), "/views/0/measures/0/of", "not_a_number"),
            (measure(json!({"name": "m", "fold": "avg"})), "/views/0/measures/0/of", "required"),
            (measure(json!({"name": "m", "fold": "count", "of": "/score"})), "/views/0/measures/0/of", "not_needed"),
            (condition(json!({"of": "/score"})), "/views/0/where/0", "condition"),
            (condition(json!({"of": "/score", "eq": 1, "gt": 1})), "/views/0/where/0", "condition"),
            (condition(json!({"of": "/score", "eq": "1"})), "/views/0/where/0/eq", "type"),
            (condition(json!({"of": "/model", "gt": "a"})), "/views/0/where/0/gt", "type"),
            (condition(json!({"of": "/at", "gte": "yesterday"})), "/views/0/where/0/gte", "type"),
            (condition(json!({"of": "/model", "in": []})), "/views/0/where/0/in", "too_short"),
            (condition(json!({"of": "/model", "eq": {"a": 1}})), "/views/0/where/0/eq", "not_a_scalar"),
        ] {
            assert_eq!(fault(&view), (pointer.to_owned(), code.to_owned()), "{view}");
        }
    }

    #[test]
    fn a_kind_has_a_few_views_of_different_names() {
        let view = |name: String| json!({"name": name, "measures": [{"name": "n", "fold": "count"}]});
        let many: Vec<Value> = (0..=MAX_VIEWS).map(|nth| view(format!("v{nth}"))).collect();
        assert_eq!(checked(json!(many)).unwrap_err(), [("/views".to_owned(), "too_many".to_owned())]);
        let twice = json!([view("v".to_owned()), view("v".to_owned())]);
        assert_eq!(checked(twice).unwrap_err(), [("/views/1/name".to_owned(), "duplicate".to_owned())]);
        let measures =
            json!([{"name": "v", "measures": [{"name": "n", "fold": "count"}, {"name": "n", "fold": "count"}]}]);
        assert_eq!(checked(measures).unwrap_err(), [("/views/0/measures/1/name".to_owned(), "duplicate".to_owned())]);
    }
}
