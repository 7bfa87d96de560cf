//! What a kind's schema says beyond JSON Schema: by which fields its records are listed and found, which values only one of
//! them has, what they refer to, and which of them are secrets.
//!
//! Each is one keyword on the schema of a property, so that a field is declared once: `x-filter`, `x-sort`, `x-search`,
//! `x-unique` and `x-secret` on the properties of the record itself, `x-ref` on any property or item inside it. Validators
//! ignore them.

use std::collections::{BTreeMap, BTreeSet};

use orgstream_events::{
    KindName, OrgId, RecordId, SearchRole, SearchedField, UniqueField, UniqueValueId, is_listed_name,
};
use serde_json::{Map, Value};

use crate::{
    FieldError,
    text::{Faults, under},
    unique_value::compared,
};

/// The maximum number of fields by which records of one kind are listed.
pub const MAX_LISTED: usize = 20;
/// The maximum length of a text by which records are listed, in characters.
pub const MAX_LISTED_TEXT: u64 = 256;
/// The maximum number of fields of one kind whose values are unique.
pub const MAX_UNIQUE: usize = 4;
/// The maximum number of places in a schema that refer to records.
pub const MAX_REFERENCES: usize = 16;
/// The maximum number of records that one record refers to.
pub const MAX_REFERRED: usize = 64;
/// The maximum number of secrets of one record.
pub const MAX_SECRETS: usize = 8;
/// Keywords by which a value would be shown, which a secret's is not.
const SHOWS: [&str; 6] = ["x-filter", "x-sort", "x-search", "x-ref", "enum", "const"];
/// The names by which listings are sorted whatever the kind.
const SORTED_BY_ALL: [&str; 2] = ["created", "updated"];
/// Formats whose texts are short.
const SHORT_FORMATS: [&str; 5] = ["date-time", "date", "time", "uuid", "ipv4"];
/// Keywords whose value is one schema, is a list of them, or has them by name.
const ONE: [&str; 10] = [
    "additionalProperties",
    "not",
    "if",
    "then",
    "else",
    "contains",
    "propertyNames",
    "unevaluatedItems",
    "unevaluatedProperties",
    "contentSchema",
];
const LISTS: [&str; 4] = ["allOf", "anyOf", "oneOf", "prefixItems"];
const NAMED: [&str; 3] = ["patternProperties", "$defs", "dependentSchemas"];

/// The declarations of one kind.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Annotations {
    /// The fields by which records are listed, by name.
    pub listed: BTreeMap<String, ListedField>,
    /// The fields that are searched, by name.
    pub searched: BTreeMap<String, SearchRole>,
    /// The fields whose values are unique: no two records of the kind that one organization has, and that are not archived,
    /// have the same.
    pub unique: BTreeSet<String>,
    /// The fields with one of a few values by which listings are filtered: hits of a search are filtered by them as well.
    pub facets: BTreeSet<String>,
    /// The places that refer to records.
    pub references: Vec<ReferencePlace>,
    /// The fields whose values are secrets.
    pub secrets: BTreeSet<String>,
}

/// A field by which records are listed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ListedField {
    /// The type of its values.
    pub field_type: FieldType,
    /// Whether listings are filtered by it.
    pub filter: bool,
    /// Whether listings are sorted by it.
    pub sort: bool,
}

/// The type of a field by which records are listed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FieldType {
    /// A text.
    Text,
    /// A moment: a text of the format `date-time`.
    Time,
    /// A number, whole or not.
    Number,
    /// True or false.
    Boolean,
}

/// Whose records a place refers to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ReferenceScope {
    /// The organization's own.
    Own,
    /// The platform's, which all organizations share.
    Global,
    /// The organization's own or the platform's.
    Either,
}

/// A place in a record that refers to another one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReferencePlace {
    /// The way to it; none is any item of an array.
    steps: Vec<Option<String>>,
    /// The JSON pointer to its declaration, which begins with `/schema`.
    pub declared_at: String,
    /// The kind of the records that it refers to.
    pub kind: KindName,
    /// Whose they are.
    pub scope: ReferenceScope,
}

/// A reference as a record has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamedReference {
    /// The JSON pointer to it, from the record's data.
    pub pointer: String,
    /// The record that is referred to.
    pub id: RecordId,
    /// The kind that it must have.
    pub kind: KindName,
    /// Whose it may be.
    pub scope: ReferenceScope,
}

impl Annotations {
    /// Reads the declarations of a schema, or returns its faults, with pointers that begin with `/schema`.
    pub fn read(schema: &Value) -> Result<Self, Vec<FieldError>> {
        let mut reader = Reader::default();
        reader.schema(schema, &mut "/schema".to_owned(), &Place::Record);
        let Reader { annotations, mut faults, .. } = reader;
        if annotations.listed.len() > MAX_LISTED {
            faults.add("/schema/properties", "too_many", format!("must not list by more than {MAX_LISTED} fields"));
        }
        if annotations.unique.len() > MAX_UNIQUE {
            let detail = format!("must not have more than {MAX_UNIQUE} fields with unique values");
            faults.add("/schema/properties", "too_many", detail);
        }
        if annotations.references.len() > MAX_REFERENCES {
            let detail = format!("must not refer to records in more than {MAX_REFERENCES} places");
            faults.add("/schema/properties", "too_many", detail);
        }
        if annotations.secrets.len() > MAX_SECRETS {
            faults.add("/schema/properties", "too_many", format!("must not have more than {MAX_SECRETS} secrets"));
        }
        faults.none_or(|faults| faults).map(|()| annotations)
    }

    /// Returns the unique values of a record's data, by field. A field that is missing or null has none.
    pub fn unique_in(&self, org: OrgId, kind: &KindName, data: &Value) -> Vec<UniqueField> {
        let value = |field: &String| {
            let text = data.get(field)?.as_str()?;
            let id = UniqueValueId::of(org, kind, field, &compared(text));
            Some(UniqueField { field: field.clone(), id })
        };
        self.unique.iter().filter_map(value).collect()
    }

    /// Returns the fields by which a record is found; none where nothing is searched.
    pub fn searched_fields(&self) -> Vec<SearchedField> {
        if self.searched.is_empty() {
            return Vec::new();
        }
        let texts = self.searched.iter().map(|(field, role)| (field, *role));
        let facets = self.facets.iter().map(|field| (field, SearchRole::Facet));
        texts.chain(facets).map(|(field, role)| SearchedField { field: field.clone(), role }).collect()
    }

    /// Returns the faults of a schema that comes after another one: a property that stays is a secret as before. Made a secret, it
    /// would have values in the log that everybody reads; made none, its masks would be values.
    pub fn faults_after(&self, before: &Self, schemas: [&Value; 2]) -> Vec<FieldError> {
        let mut faults = Faults::default();
        let has = |schema: &Value, name: &str| schema.get("properties").is_some_and(|all| all.get(name).is_some());
        for name in self.secrets.symmetric_difference(&before.secrets) {
            if schemas.iter().all(|schema| has(schema, name)) {
                let mut pointer = "/schema/properties".to_owned();
                under(&mut pointer, name, |pointer| {
                    let detail = "must be a secret, or none, as it was before: give the property another name";
                    faults.add(format!("{pointer}/x-secret"), "secret_stays", detail);
                });
            }
        }
        faults.into_vec()
    }

    /// Returns the references of a record's data, or faults with pointers that begin with `/data`.
    pub fn references_in(&self, data: &Value) -> Result<Vec<NamedReference>, Vec<FieldError>> {
        let mut faults = Faults::default();
        let mut found = Vec::new();
        for place in &self.references {
            place.find(&place.steps, data, &mut String::new(), &mut found, &mut faults);
        }
        if found.len() > MAX_REFERRED {
            let detail = format!("refers to {} records; the limit is {MAX_REFERRED}", found.len());
            faults.add("/data", "too_many_references", detail);
        }
        faults.none_or(|faults| faults).map(|()| found)
    }
}

impl ReferencePlace {
    fn find(
        &self,
        steps: &[Option<String>],
        value: &Value,
        path: &mut String,
        found: &mut Vec<NamedReference>,
        faults: &mut Faults,
    ) {
        match (steps.split_first(), value) {
            (None, Value::String(text)) => match text.parse() {
                Ok(id) => {
                    let (kind, scope) = (self.kind.clone(), self.scope);
                    found.push(NamedReference { pointer: path.clone(), id, kind, scope });
                }
                Err(_) => {
                    let detail =
                        format!("must be the id of a record of the kind {} (res_ and 26 characters)", self.kind);
                    faults.add(format!("/data{path}"), "record_id", detail);
                }
            },
            (Some((Some(name), rest)), Value::Object(fields)) => {
                if let Some(value) = fields.get(name) {
                    under(path, name, |path| self.find(rest, value, path, found, faults));
                }
            }
            (Some((None, rest)), Value::Array(items)) => {
                // One more than the limit shows that it is exceeded.
                for (index, item) in items.iter().enumerate().take(MAX_REFERRED + 1) {
                    under(path, &index.to_string(), |path| self.find(rest, item, path, found, faults));
                }
            }
            // The schema says whether it may be missing, or something else.
            _ => {}
        }
    }
}

/// The part of a record that a schema is about.
enum Place {
    /// The record itself.
    Record,
    /// One of its fields.
    Field(String),
    /// Something inside of a field, by its way.
    Inside(Vec<Option<String>>),
    /// A place without a fixed way to it, such as one of several alternatives.
    Elsewhere,
}

impl Place {
    fn way(&self) -> Option<Vec<Option<String>>> {
        match self {
            Self::Record => Some(Vec::new()),
            Self::Field(name) => Some(vec![Some(name.clone())]),
            Self::Inside(steps) => Some(steps.clone()),
            Self::Elsewhere => None,
        }
    }

    fn property(&self, name: &str) -> Self {
        match self {
            Self::Record => Self::Field(name.to_owned()),
            _ => self.step(Some(name.to_owned())),
        }
    }

    fn step(&self, step: Option<String>) -> Self {
        match self.way() {
            Some(mut steps) => {
                steps.push(step);
                Self::Inside(steps)
            }
            None => Self::Elsewhere,
        }
    }
}

/// The traversal of a schema. It follows the keywords whose values are schemas, and nothing else: a property may have the
/// name of a keyword.
#[derive(Default)]
struct Reader {
    annotations: Annotations,
    has_title: bool,
    faults: Faults,
}

impl Reader {
    fn schema(&mut self, schema: &Value, path: &mut String, place: &Place) {
        let Value::Object(keywords) = schema else { return };
        self.keywords(keywords, path, place);
        for (keyword, value) in keywords {
            under(path, keyword, |path| match keyword.as_str() {
                "properties" => {
                    for (name, property) in value.as_object().into_iter().flatten() {
                        under(path, name, |path| self.schema(property, path, &place.property(name)));
                    }
                }
                "items" => self.schema(value, path, &place.step(None)),
                one if ONE.contains(&one) => self.schema(value, path, &Place::Elsewhere),
                list if LISTS.contains(&list) => {
                    for (index, item) in value.as_array().into_iter().flatten().enumerate() {
                        under(path, &index.to_string(), |path| self.schema(item, path, &Place::Elsewhere));
                    }
                }
                named if NAMED.contains(&named) => {
                    for (name, item) in value.as_object().into_iter().flatten() {
                        under(path, name, |path| self.schema(item, path, &Place::Elsewhere));
                    }
                }
                _ => {}
            });
        }
    }

    fn keywords(&mut self, keywords: &Map<String, Value>, path: &mut String, place: &Place) {
        let field_type = field_type(keywords);
        let is_short = is_short(keywords);
        let (mut filter, mut sort) = (false, false);
        for (keyword, value) in keywords {
            let pointer = format!("{path}/{keyword}");
            match keyword.as_str() {
                "x-filter" | "x-sort" => {
                    let Some(is_on) = value.as_bool() else {
                        self.faults.add(pointer, "type", "must be true or false");
                        continue;
                    };
                    if self.field_name(place, &pointer).is_none() || !is_on {
                        continue;
                    }
                    match (keyword.as_str(), field_type) {
                        (_, None) => {
                            let detail = "must stand on one value: `type` string, number, integer or boolean, or one of these \
                                          and null";
                            self.faults.add(pointer, "not_a_scalar", detail);
                        }
                        (_, Some(FieldType::Text)) if !is_short => {
                            let detail = format!(
                                "must stand on a text of at most {MAX_LISTED_TEXT} characters: give it a `maxLength`, an \
                                 `enum` or a short `format`"
                            );
                            self.faults.add(pointer, "not_a_short_text", detail);
                        }
                        ("x-filter", Some(_)) => filter = true,
                        (_, Some(_)) => sort = true,
                    }
                }
                "x-search" => self.search(value, pointer, keywords, place),
                "x-unique" => self.unique(value, pointer, field_type, place),
                "x-ref" => self.reference(value, &pointer, field_type, place),
                "x-secret" => self.secret(value, &pointer, keywords, place),
                _ => {}
            }
        }
        if let (Place::Field(name), Some(field_type), true) = (place, field_type, filter || sort) {
            self.annotations.listed.insert(name.clone(), ListedField { field_type, filter, sort });
            if filter && keywords.contains_key("enum") {
                self.annotations.facets.insert(name.clone());
            }
        }
    }

    /// Returns the field, whose name must fit into a query.
    fn field_name(&mut self, place: &Place, pointer: &str) -> Option<String> {
        let Place::Field(name) = place else {
            self.faults.add(pointer, "place", "must stand on a property of the record itself, and not further inside");
            return None;
        };
        if pointer.ends_with("/x-sort") && SORTED_BY_ALL.contains(&name.as_str()) {
            let detail =
                "must stand on a property with another name: `sort` takes created and updated as times of the record";
            self.faults.add(pointer, "name", detail);
            return None;
        }
        if !is_listed_name(name) {
            let detail = "must stand on a property whose name has 1 to 63 of A-Z, a-z, 0-9, _ and -";
            self.faults.add(pointer, "name", detail);
            return None;
        }
        Some(name.clone())
    }

    fn search(&mut self, value: &Value, pointer: String, keywords: &Map<String, Value>, place: &Place) {
        let role = match value.as_str() {
            Some("title") => SearchRole::Title,
            Some("body") => SearchRole::Body,
            Some("keyword") => SearchRole::Keyword,
            _ => return self.faults.add(pointer, "unknown_value", "must be title, body or keyword"),
        };
        let Some(name) = self.field_name(place, &pointer) else { return };
        let is_text =
            |schema: &Map<String, Value>| matches!(field_type(schema), Some(FieldType::Text | FieldType::Time));
        let items = keywords.get("items").and_then(Value::as_object);
        if !is_text(keywords) && !items.is_some_and(is_text) {
            return self.faults.add(pointer, "not_a_text", "must stand on a text or an array of texts");
        }
        if role == SearchRole::Title && std::mem::replace(&mut self.has_title, true) {
            return self.faults.add(pointer, "too_many", "must be title on one field of a kind only");
        }
        self.annotations.searched.insert(name, role);
    }

    fn unique(&mut self, value: &Value, pointer: String, field_type: Option<FieldType>, place: &Place) {
        let Some(is_on) = value.as_bool() else {
            return self.faults.add(pointer, "type", "must be true or false");
        };
        let Some(name) = self.field_name(place, &pointer).filter(|_| is_on) else { return };
        if field_type != Some(FieldType::Text) {
            return self.faults.add(pointer, "not_a_text", "must stand on a text: `type` string, or string and null");
        }
        self.annotations.unique.insert(name);
    }

    fn secret(&mut self, value: &Value, pointer: &str, keywords: &Map<String, Value>, place: &Place) {
        let Some(is_on) = value.as_bool() else { return self.faults.add(pointer, "type", "must be true or false") };
        let Some(name) = self.field_name(place, pointer).filter(|_| is_on) else { return };
        if field_type(keywords) != Some(FieldType::Text) {
            let detail = "must stand on a text: `type` string, or string and null, without a `format` of a time";
            return self.faults.add(pointer, "not_a_text", detail);
        }
        if let Some(shows) = SHOWS.iter().find(|shows| keywords.contains_key(**shows)) {
            let detail = format!("must not stand beside `{shows}`: the value is not shown");
            return self.faults.add(pointer, "secret_is_shown", detail);
        }
        self.annotations.secrets.insert(name);
    }

    fn reference(&mut self, value: &Value, pointer: &str, field_type: Option<FieldType>, place: &Place) {
        let Some(steps) = place.way().filter(|steps| !steps.is_empty()) else {
            let detail = "must stand where `properties` and `items` lead from the record, and not in an alternative or a \
                          definition";
            return self.faults.add(pointer, "place", detail);
        };
        if field_type != Some(FieldType::Text) {
            self.faults.add(pointer, "not_a_text", "must stand on a text: `type` string, or string and null");
        }
        let Value::Object(fields) = value else {
            let detail = "must be an object with `kind`, and `scope` if that is not own";
            return self.faults.add(pointer, "type", detail);
        };
        if let Some(unknown) = fields.keys().find(|name| !matches!(name.as_str(), "kind" | "scope")) {
            self.faults.add(format!("{pointer}/{unknown}"), "unknown_field", "there are: kind, scope");
        }
        let kind = fields.get("kind").and_then(Value::as_str).map(str::parse::<KindName>);
        let scope = match fields.get("scope").map(Value::as_str) {
            None | Some(Some("own")) => Some(ReferenceScope::Own),
            Some(Some("global")) => Some(ReferenceScope::Global),
            Some(Some("either")) => Some(ReferenceScope::Either),
            Some(_) => {
                self.faults.add(format!("{pointer}/scope"), "unknown_value", "must be own, global or either");
                None
            }
        };
        match (kind, scope) {
            (Some(Ok(kind)), Some(scope)) => {
                let declared_at = pointer.to_owned();
                self.annotations.references.push(ReferencePlace { steps, declared_at, kind, scope });
            }
            (Some(Ok(_)), None) => {}
            (None | Some(Err(_)), _) => {
                self.faults.add(format!("{pointer}/kind"), "kind", "must be the name of a kind");
            }
        }
    }
}

/// The type of a field that has one value, or null.
pub(crate) fn field_type(schema: &Map<String, Value>) -> Option<FieldType> {
    let name = match schema.get("type")? {
        Value::String(name) => name.as_str(),
        Value::Array(names) => {
            let mut names = names.iter().filter_map(Value::as_str).filter(|name| *name != "null");
            let name = names.next()?;
            if names.next().is_some() {
                return None;
            }
            name
        }
        _ => return None,
    };
    match name {
        "string" if schema.get("format").and_then(Value::as_str) == Some("date-time") => Some(FieldType::Time),
        "string" => Some(FieldType::Text),
        "number" | "integer" => Some(FieldType::Number),
        "boolean" => Some(FieldType::Boolean),
        _ => None,
    }
}

/// Whether a text is bounded to a length by which records can be listed.
pub(crate) fn is_short(schema: &Map<String, Value>) -> bool {
    let has_limit = schema.get("maxLength").and_then(Value::as_u64).is_some_and(|limit| limit <= MAX_LISTED_TEXT);
    let has_format = schema.get("format").and_then(Value::as_str).is_some_and(|name| SHORT_FORMATS.contains(&name));
    let fits = |value: &Value| value.as_str().is_none_or(|text| text.chars().count() as u64 <= MAX_LISTED_TEXT);
    let has_values = schema.get("enum").and_then(Value::as_array).is_some_and(|values| values.iter().all(fits));
    has_limit || has_format || has_values || schema.get("const").is_some_and(fits) || schema.contains_key("x-ref")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(properties: &Value) -> Annotations {
        Annotations::read(&json!({"type": "object", "properties": properties})).unwrap()
    }

    fn faults(schema: &Value) -> Vec<(String, String)> {
        let faults = Annotations::read(schema).unwrap_err();
        faults.into_iter().map(|fault| (fault.pointer, fault.code.into_owned())).collect()
    }

    #[test]
    fn a_field_is_declared_where_it_is() {
        let found = read(&json!({
            "name": {"type": "string", "maxLength": 200, "x-filter": true, "x-sort": true, "x-search": "title"},
            "score": {"type": ["number", "null"], "x-sort": true},
            "at": {"type": "string", "format": "date-time", "x-filter": true},
            "state": {"enum": ["a", "b"], "type": "string", "x-filter": true},
            "on": {"type": "boolean", "x-filter": true},
            "off": {"type": "boolean", "x-filter": false},
            "tags": {"type": "array", "items": {"type": "string"}, "x-search": "keyword"},
            "notes": {"type": "string", "x-search": "body"},
        }));
        let field = |field_type, filter, sort| ListedField { field_type, filter, sort };
        let listed: Vec<_> = found.listed.iter().map(|(name, field)| (name.as_str(), *field)).collect();
        assert_eq!(
            listed,
            [
                ("at", field(FieldType::Time, true, false)),
                ("name", field(FieldType::Text, true, true)),
                ("on", field(FieldType::Boolean, true, false)),
                ("score", field(FieldType::Number, false, true)),
                ("state", field(FieldType::Text, true, false)),
            ]
        );
        let searched: Vec<_> = found.searched.iter().map(|(name, role)| (name.as_str(), *role)).collect();
        assert_eq!(searched, [("name", SearchRole::Title), ("notes", SearchRole::Body), ("tags", SearchRole::Keyword)]);
    }

    #[test]
    fn a_record_says_by_which_of_its_fields_it_is_found() {
        let state = json!({"enum": ["a", "b"], "type": "string", "x-filter": true});
        // A kind that searches nothing has no facets either.
        assert_eq!(read(&json!({"state": state})).searched_fields(), []);
        let name = json!({"type": "string", "maxLength": 9, "x-filter": true, "x-search": "title"});
        let found = read(&json!({"state": state, "name": name})).searched_fields();
        let named: Vec<_> = found.iter().map(|searched| (searched.field.as_str(), searched.role)).collect();
        assert_eq!(named, [("name", SearchRole::Title), ("state", SearchRole::Facet)]);
    }

    #[test]
    fn a_secret_is_a_text_of_the_record_itself_that_nothing_shows() {
        let found = read(&json!({
            "key": {"type": "string", "maxLength": 200, "x-secret": true},
            "token": {"type": ["string", "null"], "x-secret": true},
            "open": {"type": "string", "x-secret": false},
        }));
        assert_eq!(found.secrets.into_iter().collect::<Vec<_>>(), ["key", "token"]);
        for (property, code) in [
            (json!({"type": "string", "x-secret": 1}), "type"),
            (json!({"type": "number", "x-secret": true}), "not_a_text"),
            (json!({"x-secret": true}), "not_a_text"),
            (json!({"type": "string", "maxLength": 9, "x-secret": true, "x-filter": true}), "secret_is_shown"),
            (json!({"type": "string", "x-secret": true, "x-search": "body"}), "secret_is_shown"),
            (json!({"type": "string", "x-secret": true, "enum": ["a"]}), "secret_is_shown"),
        ] {
            let found = faults(&json!({"properties": {"a": property}}));
            assert_eq!(found, [("/schema/properties/a/x-secret".to_owned(), code.to_owned())]);
        }
        let inside = json!({"properties": {"a": {"properties": {"b": {"type": "string", "x-secret": true}}}}});
        assert_eq!(faults(&inside)[0].1, "place");
        let many: serde_json::Map<String, Value> =
            (0..=MAX_SECRETS).map(|n| (format!("s{n}"), json!({"type": "string", "x-secret": true}))).collect();
        assert_eq!(faults(&json!({"properties": many})), [("/schema/properties".to_owned(), "too_many".to_owned())]);
    }

    #[test]
    fn a_property_that_stays_is_a_secret_as_before() {
        let schema = |a: Value| json!({"properties": {"a": a}});
        let (open, secret) = (json!({"type": "string"}), json!({"type": "string", "x-secret": true}));
        let found = |before: Value, after: Value| {
            let [earlier, later] = [&before, &after].map(|schema| Annotations::read(schema).unwrap());
            later.faults_after(&earlier, [&before, &after]).into_iter().map(|fault| fault.pointer).collect::<Vec<_>>()
        };
        let stays = vec!["/schema/properties/a/x-secret".to_owned()];
        assert_eq!(found(schema(open.clone()), schema(secret.clone())), stays);
        assert_eq!(found(schema(secret.clone()), schema(open)), stays);
        assert!(found(schema(secret.clone()), schema(secret.clone())).is_empty());
        assert!(found(json!({}), schema(secret.clone())).is_empty() && found(schema(secret), json!({})).is_empty());
    }

    #[test]
    fn a_property_may_have_the_name_of_a_keyword() {
        let found = read(&json!({"x-filter": {"type": "object", "properties": {"x-ref": {"type": "string"}}}}));
        assert_eq!(found, Annotations::default());
        let defaults = json!({"properties": {"a": {"default": {"x-ref": 7}, "examples": [{"x-filter": 1}]}}});
        assert_eq!(Annotations::read(&defaults), Ok(Annotations::default()));
    }

    #[test]
    fn a_declaration_that_cannot_hold_is_pointed_at() {
        let long = json!({"type": "string"});
        for (property, keyword, value, code) in [
            (json!({"type": "object"}), "x-filter", json!(true), "not_a_scalar"),
            (json!({"type": "array", "items": {"type": "string"}}), "x-sort", json!(true), "not_a_scalar"),
            (json!({}), "x-filter", json!(true), "not_a_scalar"),
            (json!({"type": ["string", "number"]}), "x-filter", json!(true), "not_a_scalar"),
            (long.clone(), "x-filter", json!(true), "not_a_short_text"),
            (long.clone(), "x-filter", json!("yes"), "type"),
            (json!({"type": "number"}), "x-search", json!("body"), "not_a_text"),
            (long.clone(), "x-search", json!("loud"), "unknown_value"),
            (long.clone(), "x-unique", json!("yes"), "type"),
            (json!({"type": "number"}), "x-unique", json!(true), "not_a_text"),
            (long.clone(), "x-ref", json!("trace"), "type"),
            (json!({"type": "number"}), "x-ref", json!({"kind": "trace"}), "not_a_text"),
        ] {
            let mut property = property;
            property[keyword] = value;
            let schema = json!({"properties": {"a/b": {"type": "string"}, "field": property}});
            assert_eq!(faults(&schema), [(format!("/schema/properties/field/{keyword}"), code.to_owned())], "{schema}");
        }
        for (reference, at, code) in [
            (json!({"kind": "No Kind"}), "/kind", "kind"),
            (json!({}), "/kind", "kind"),
            (json!({"kind": "trace", "scope": "all"}), "/scope", "unknown_value"),
            (json!({"kind": "trace", "colour": "red"}), "/colour", "unknown_field"),
        ] {
            let schema = json!({"properties": {"a": {"type": "string", "x-ref": reference}}});
            assert_eq!(faults(&schema), [(format!("/schema/properties/a/x-ref{at}"), code.to_owned())]);
        }
        let title = json!({"type": "string", "x-search": "title"});
        let found = faults(&json!({"properties": {"a": title, "b": title}}));
        assert_eq!(found, [("/schema/properties/b/x-search".to_owned(), "too_many".to_owned())]);
        let odd = json!({"properties": {"a b": {"type": "number", "x-sort": true}}});
        assert_eq!(faults(&odd)[0].1, "name");
        let shadowed = json!({"properties": {"created": {"type": "number", "x-sort": true}}});
        assert_eq!(faults(&shadowed)[0].1, "name");
    }

    #[test]
    fn a_declaration_elsewhere_is_refused() {
        let filter = json!({"type": "number", "x-filter": true});
        let reference = json!({"type": "string", "x-ref": {"kind": "trace"}});
        let unique = json!({"type": "string", "x-unique": true});
        for schema in [
            json!({"properties": {"a": {"properties": {"b": filter}}}}),
            json!({"properties": {"a": {"properties": {"b": unique}}}}),
            json!({"$defs": {"a": unique}}),
            json!({"properties": {"a": {"items": filter}}}),
            json!({"allOf": [{"properties": {"a": filter}}]}),
            json!({"$defs": {"a": filter}}),
            json!({"patternProperties": {"^a": filter}}),
            json!({"additionalProperties": filter}),
            json!({"x-filter": true, "type": "number"}),
            json!({"anyOf": [{"properties": {"a": reference}}]}),
            json!({"$defs": {"a": reference}}),
            json!({"properties": {"a": {"additionalProperties": reference}}}),
            json!({"properties": {"a": {"prefixItems": [reference]}}}),
        ] {
            assert_eq!(faults(&schema)[0].1, "place", "{schema}");
        }
    }

    #[test]
    fn the_number_of_declarations_is_bounded() {
        let properties = |count: usize, schema: &Value| {
            let fields: Map<String, Value> = (0..count).map(|nth| (format!("f{nth}"), schema.clone())).collect();
            json!({"properties": fields})
        };
        let number = json!({"type": "number", "x-filter": true});
        assert!(Annotations::read(&properties(MAX_LISTED, &number)).is_ok());
        assert_eq!(faults(&properties(MAX_LISTED + 1, &number))[0].1, "too_many");
        let reference = json!({"type": "string", "x-ref": {"kind": "trace"}});
        assert!(Annotations::read(&properties(MAX_REFERENCES, &reference)).is_ok());
        assert_eq!(faults(&properties(MAX_REFERENCES + 1, &reference))[0].1, "too_many");
        let unique = json!({"type": "string", "x-unique": true});
        assert_eq!(Annotations::read(&properties(MAX_UNIQUE, &unique)).unwrap().unique.len(), MAX_UNIQUE);
        assert_eq!(faults(&properties(MAX_UNIQUE + 1, &unique))[0].1, "too_many");
    }

    #[test]
    fn unique_values_are_those_of_their_field_in_one_organization() {
        let annotations = read(&json!({
            "name": {"type": "string", "x-unique": true},
            "code": {"type": ["string", "null"], "x-unique": true},
            "other": {"type": "string", "x-unique": false},
        }));
        let (org, elsewhere) = (OrgId::fresh(1, [1; 10]), OrgId::fresh(1, [2; 10]));
        let (space, policy) = ("space".parse().unwrap(), "policy".parse().unwrap());
        let of = |data: Value| annotations.unique_in(org, &space, &data);
        let found = of(json!({"name": "Night", "code": null, "other": "x"}));
        assert_eq!(found.iter().map(|value| value.field.as_str()).collect::<Vec<_>>(), ["name"]);
        assert_eq!(found, of(json!({"name": " night "})));
        let again = json!({"name": "Night"});
        assert_ne!(found, annotations.unique_in(elsewhere, &space, &again));
        assert_ne!(found, annotations.unique_in(org, &policy, &again));
        let both = of(json!({"name": "Night", "code": "Night"}));
        assert_ne!(both[0].id, both[1].id);
    }

    #[test]
    fn references_are_found_wherever_they_may_be() {
        let reference = json!({"type": ["string", "null"], "x-ref": {"kind": "trace", "scope": "either"}});
        let annotations = read(&json!({
            "one": reference,
            "many": {"type": "array", "items": reference},
            "deep": {"type": "object", "properties": {"a/b": {"type": "array", "items": {"properties": {"it": reference}}}}},
        }));
        let id = RecordId::fresh(1, [7; 10]);
        let data = json!({"one": id, "many": [id, null], "deep": {"a/b": [{}, {"it": id}]}, "other": id});
        let mut found = annotations.references_in(&data).unwrap();
        found.sort_by(|one, other| one.pointer.cmp(&other.pointer));
        let pointers: Vec<_> = found.iter().map(|found| found.pointer.as_str()).collect();
        assert_eq!(pointers, ["/deep/a~1b/1/it", "/many/0", "/one"]);
        assert!(found.iter().all(|found| found.id == id && found.scope == ReferenceScope::Either));
        assert_eq!(annotations.references_in(&json!({"one": null})), Ok(vec![]));
        assert_eq!(annotations.references_in(&json!([1])), Ok(vec![]));

        let wrong = annotations.references_in(&json!({"one": "the trace", "many": ["x"]})).unwrap_err();
        let mut wrong: Vec<_> = wrong.iter().map(|fault| (fault.pointer.as_str(), &*fault.code)).collect();
        wrong.sort_unstable();
        assert_eq!(wrong, [("/data/many/0", "record_id"), ("/data/one", "record_id")]);
        let many = annotations.references_in(&json!({"many": vec![id; MAX_REFERRED + 1]})).unwrap_err();
        assert_eq!((many[0].pointer.as_str(), &*many[0].code), ("/data", "too_many_references"));
    }
}
