//! Which records a listing has, and in which order: from the parameters of a query to conditions on fields that their kind
//! declares.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Bound,
};

use orgstream_domain::annotations::{Annotations, FieldType, ListedField};
use orgstream_events::Timestamp;
use orgstream_projections::{
    BoundOrg, SortKey,
    records::{Archived, FieldCondition, FieldValues, OrderBy, RecordFilter, RecordOrder},
};

use super::records::RecordQuery;
use crate::{
    api::http::{App, kit::extract::Member, platform::kinds},
    app::problem::Problem,
};

/// The maximum number of fields in one filter.
const MAX_FIELDS: usize = 8;
/// The maximum number of values for one field.
const MAX_VALUES: usize = 100;
const OPERATORS: &str = "eq, in, gt, gte, lt, lte";

/// A listing as it was asked for.
#[derive(Debug)]
pub struct AskedListing {
    /// Which records.
    pub filter: RecordFilter,
    /// In which order.
    pub order: RecordOrder,
}

impl AskedListing {
    /// Reads the parameters; the fields that they may name are those that the kind declares.
    pub async fn read(app: &App, org: BoundOrg, query: &RecordQuery, members: &[Member]) -> Result<Self, Problem> {
        let (sort, descending) = match query.sort.as_deref() {
            None => ("created", true),
            Some(sort) => sort.strip_prefix('-').map_or((sort, false), |field| (field, true)),
        };
        let needs_kind = match (members, sort) {
            ([_, ..], _) => Some("filter"),
            _ if query.updated_since.is_some() => Some("updated_since"),
            (_, "created") => None,
            _ => Some("sort"),
        };
        let annotations = match (&query.kind, needs_kind) {
            (None, Some(name)) => {
                return Err(Problem::invalid_parameter(name, "takes one kind of records: add kind=…"));
            }
            (Some(kind), Some(_)) => match kinds::known(app, org, kind).await? {
                Some(found) => Annotations::read(&found.definition.schema).unwrap_or_default(),
                None => {
                    kinds::must_be_known(app, org, kind).await?;
                    Annotations::default()
                }
            },
            (_, None) => Annotations::default(),
        };
        let by = match sort {
            "created" => OrderBy::Created,
            "updated" => OrderBy::Updated,
            field => {
                declared(&annotations, field, |listed| listed.sort).map_err(|there_are| {
                    let rule =
                        format!("{} is no field to sort by; there are: created, updated{there_are}", short(field));
                    Problem::invalid_parameter("sort", &rule)
                })?;
                OrderBy::Field(field.to_owned())
            }
        };
        let conditions = conditions(&annotations, members)?;
        let updated_since = query.updated_since.as_deref().map(str::parse::<Timestamp>).transpose().map_err(|_| {
            let rule = "must be a time in RFC 3339, such as 2026-03-01T12:00:00Z, with %2B for +";
            Problem::invalid_parameter("updated_since", rule)
        })?;
        let (kind, archived) = (query.kind.clone(), query.archived.unwrap_or_default().into());
        let filter = RecordFilter { kind, archived, updated_since, conditions };
        Ok(Self { filter, order: RecordOrder { by, descending } })
    }

    /// Whether it is the usual listing, which has a statement of its own.
    pub fn is_plain(&self) -> bool {
        let RecordFilter { kind: _, archived, updated_since, conditions } = &self.filter;
        self.order == RecordOrder { by: OrderBy::Created, descending: true }
            && *archived != Archived::Only
            && updated_since.is_none()
            && conditions.is_empty()
    }
}

/// Returns the declaration of a field that satisfies `is_it`, or the names of all that do, each after a comma.
fn declared(
    annotations: &Annotations,
    field: &str,
    is_it: impl Fn(&ListedField) -> bool,
) -> Result<ListedField, String> {
    if let Some(listed) = annotations.listed.get(field).filter(|listed| is_it(listed)) {
        return Ok(*listed);
    }
    let names = annotations.listed.iter().filter(|(_, listed)| is_it(listed));
    Err(names.map(|(name, _)| format!(", {name}")).collect())
}

/// What was asked of one field.
#[derive(Default)]
struct Wanted {
    values: Vec<SortKey>,
    low: Option<Bound<SortKey>>,
    high: Option<Bound<SortKey>>,
}

fn conditions(annotations: &Annotations, members: &[Member]) -> Result<Vec<FieldCondition>, Problem> {
    let mut wanted: BTreeMap<&str, Wanted> = BTreeMap::new();
    for Member { names, value } in members {
        let (field, operator) = match names.as_slice() {
            [field] => (field.as_str(), "eq"),
            [field, operator] => (field.as_str(), operator.as_str()),
            _ => {
                return Err(Problem::invalid_parameter(
                    "filter",
                    "takes a field, and an operator: filter[field][gte]=1",
                ));
            }
        };
        let name = format!("filter[{}]", short(field));
        let listed = declared(annotations, field, |listed| listed.filter).map_err(|there_are| {
            let there_are = there_are.strip_prefix(", ").unwrap_or("none");
            let rule = format!("the kind declares no such field to filter by; there are: {there_are}");
            Problem::invalid_parameter(&name, &rule)
        })?;
        let key = |text: &str| {
            key(listed.field_type, text).map_err(|rule| Problem::invalid_parameter(&name, format!("must be {rule}")))
        };
        let wanted = wanted.entry(field).or_default();
        let bound = match operator {
            "eq" => {
                wanted.values.push(key(value)?);
                continue;
            }
            "in" => {
                for text in value.split(',').take(MAX_VALUES + 1) {
                    wanted.values.push(key(text)?);
                }
                continue;
            }
            "gt" => wanted.low.replace(Bound::Excluded(key(value)?)),
            "gte" => wanted.low.replace(Bound::Included(key(value)?)),
            "lt" => wanted.high.replace(Bound::Excluded(key(value)?)),
            "lte" => wanted.high.replace(Bound::Included(key(value)?)),
            other => {
                let rule = format!("{} is no operator; there are: {OPERATORS}", short(other));
                return Err(Problem::invalid_parameter(&name, &rule));
            }
        };
        if bound.is_some() {
            return Err(Problem::invalid_parameter(&name, "takes one lower and one upper bound"));
        }
    }
    if wanted.len() > MAX_FIELDS {
        return Err(Problem::invalid_parameter("filter", format!("takes at most {MAX_FIELDS} fields")));
    }
    let condition = |(field, Wanted { values, low, high }): (&str, Wanted)| {
        let name = format!("filter[{field}]");
        let values = match (values.is_empty(), low, high) {
            (false, None, None) if values.len() > MAX_VALUES => {
                return Err(Problem::invalid_parameter(&name, format!("takes at most {MAX_VALUES} values")));
            }
            // The same value twice is one.
            (false, None, None) => FieldValues::Any(BTreeSet::from_iter(values).into_iter().collect()),
            (true, low, high) => FieldValues::Range(low.unwrap_or(Bound::Unbounded), high.unwrap_or(Bound::Unbounded)),
            (false, ..) => return Err(Problem::invalid_parameter(&name, "takes values or bounds, and not both")),
        };
        Ok(FieldCondition { field: field.to_owned(), values })
    };
    wanted.into_iter().map(condition).collect()
}

/// Reads a value as the type of its field has it, or returns what it must be.
fn key(field_type: FieldType, text: &str) -> Result<SortKey, &'static str> {
    match field_type {
        FieldType::Text => SortKey::text(text).ok_or("at most 256 characters"),
        FieldType::Time => {
            SortKey::moment(text).ok_or("a time in RFC 3339, such as 2026-03-01T12:00:00Z, with %2B for +")
        }
        FieldType::Number => SortKey::number(text).ok_or("a number, such as 0.5"),
        FieldType::Boolean => match text {
            "true" => Ok(SortKey::boolean(true)),
            "false" => Ok(SortKey::boolean(false)),
            _ => Err("true or false"),
        },
    }
}

fn short(name: &str) -> String {
    name.chars().take(63).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn annotations() -> Annotations {
        let schema = json!({"properties": {
            "name": {"type": "string", "maxLength": 9, "x-filter": true},
            "score": {"type": "number", "x-filter": true, "x-sort": true},
            "at": {"type": "string", "format": "date-time", "x-filter": true},
            "on": {"type": "boolean", "x-filter": true},
            "rank": {"type": "number", "x-sort": true},
        }});
        Annotations::read(&schema).unwrap()
    }

    fn asked(members: &[(&str, &str)]) -> Result<Vec<FieldCondition>, Problem> {
        let member = |(names, value): &(&str, &str)| {
            let names = names.split('.').map(str::to_owned).collect();
            Member { names, value: (*value).to_owned() }
        };
        conditions(&annotations(), &members.iter().map(member).collect::<Vec<_>>())
    }

    #[test]
    fn a_filter_has_values_or_a_range_of_a_field() {
        let number = |text| SortKey::number(text).unwrap();
        let found = asked(&[("score.gte", "0.50"), ("score.lt", "1e0"), ("name", "b"), ("name.in", "a,b")]).unwrap();
        let FieldValues::Any(names) = &found[0].values else { panic!("{found:?}") };
        assert_eq!(*names, ["a", "b"].map(|text| SortKey::text(text).unwrap()));
        let FieldValues::Range(low, high) = &found[1].values else { panic!("{found:?}") };
        assert_eq!((low, high), (&Bound::Included(number("0.5")), &Bound::Excluded(number("1"))));
        // A comma is a comma unless a list was asked for.
        let FieldValues::Any(names) = &asked(&[("name", "a,b")]).unwrap()[0].values else { panic!() };
        assert_eq!(*names, [SortKey::text("a,b").unwrap()]);
    }

    #[test]
    fn what_cannot_be_filtered_by_is_refused_with_what_can() {
        for (members, said) in [
            (
                vec![("colour", "red")],
                "filter[colour]: the kind declares no such field to filter by; there are: at, name, on, score",
            ),
            (vec![("rank", "1")], "there are: at, name, on, score"),
            (vec![("score", "high")], "filter[score]: must be a number"),
            (vec![("at.gt", "yesterday")], "filter[at]: must be a time in RFC 3339"),
            (vec![("on", "yes")], "must be true or false"),
            (vec![("score.near", "1")], "near is no operator; there are: eq, in, gt"),
            (vec![("score.gt", "1"), ("score.gte", "2")], "takes one lower and one upper bound"),
            (vec![("score.gt", "1"), ("score", "2")], "takes values or bounds, and not both"),
            (vec![("score.gt.x", "1")], "takes a field, and an operator"),
        ] {
            let refused = asked(&members).unwrap_err();
            assert_eq!((refused.status, refused.code), (400, "invalid_parameter"), "{members:?}");
            assert!(refused.detail.contains(said), "{members:?}: {}", refused.detail);
        }
        let long = "x".repeat(257);
        assert!(asked(&[("name", &long)]).unwrap_err().detail.contains("at most 256 characters"));
        let many = vec!["1"; MAX_VALUES + 1].join(",");
        assert!(asked(&[("score.in", &many)]).unwrap_err().detail.contains("at most 100 values"));
    }
}
