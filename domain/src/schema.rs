//! JSON Schemas: which ones a kind may have, and the validation of data against them.
//!
//! A schema is data of one party that is run on data of another. So it is bounded in size and depth, its references stay
//! inside it, and its patterns are matched by an engine whose time is linear in the text.

use jsonschema::{PatternOptions, ValidationError, Validator};
use orgstream_events::{KindDefinition, MAX_LISTED_FIELDS};
use serde_json::Value;

use crate::{
    FieldError,
    annotations::Annotations,
    schema_work::{MAX_WORK, Parts},
    text::{Faults, storable, under},
};

/// The largest schema, in bytes of JSON.
pub const MAX_SCHEMA_BYTES: usize = 65_536;
/// The maximum nesting depth of a schema.
pub const MAX_SCHEMA_DEPTH: usize = 32;
/// The maximum nesting depth of a record's data.
pub const MAX_DATA_DEPTH: usize = 100;
/// The maximum number of reported faults of one record.
pub const MAX_REPORTED: usize = 20;

const DIALECT: &str = "https://json-schema.org/draft/2020-12/schema";
/// The largest pattern, in bytes of its compiled form.
const PATTERN_BYTES: usize = 1 << 20;
/// The largest sum of the patterns of one schema, each as often as references lead to it.
const PATTERNS_BYTES: usize = 8 << 20;
/// The same for the schema of a kind of an organization's own.
const OWN_PATTERNS_BYTES: usize = 1 << 20;
/// The longest text of one reported fault, in characters.
const MAX_DETAIL: usize = 300;

/// A kind with a compiled schema: an input of a record's decision.
#[derive(Debug)]
pub struct ValidatedKind {
    /// Its definition.
    pub definition: KindDefinition,
    /// The version of the definition.
    pub version: u64,
    /// Whether the kind accepts no new records.
    pub retired: bool,
    /// The declarations in its schema; none in one that an earlier program took and this one would not.
    pub annotations: Annotations,
    /// What its schema costs.
    parts: Parts,
    /// The compiled schema. A registered schema compiles; should a later program disagree, then no data satisfies it.
    validators: Result<Validators, Vec<FieldError>>,
}

/// A compiled schema.
#[derive(Debug)]
pub struct Validators {
    /// For data as it is kept, with masks in place of secrets.
    kept: Validator,
    /// For the values of secrets, before they are sealed; none if there are no secrets.
    secrets: Option<Validator>,
}

impl ValidatedKind {
    /// Compiles the schema of `definition`.
    pub fn new(definition: KindDefinition, version: u64, retired: bool) -> Self {
        let annotations = Annotations::read(&definition.schema).unwrap_or_default();
        let validators = Validators::of(&definition.schema, &annotations);
        let parts = Parts::of(&definition.schema);
        Self { definition, version, retired, annotations, parts, validators }
    }

    /// Returns the work of validating `data`, of which [`MAX_WORK`] is the most for one record.
    pub fn work(&self, data: &Value) -> u64 {
        self.parts.work(data)
    }

    /// Validates the texts that stand in `data` in place of secrets: returns at most [`MAX_REPORTED`] faults, which do not repeat
    /// them.
    pub fn check_secrets(&self, data: &Value) -> Result<(), Vec<FieldError>> {
        let validators = self.validators.as_ref().map_err(Clone::clone)?;
        let Some(validator) = &validators.secrets else { return Ok(()) };
        let is_new = |pointer: &str| {
            let field = pointer.trim_start_matches('/');
            self.annotations.secrets.contains(field) && data.get(field).is_some_and(Value::is_string)
        };
        let found = validator.iter_errors(data).filter(|error| is_new(&error.instance_path().to_string()));
        let faults: Vec<FieldError> = found.take(MAX_REPORTED).map(|error| fault_of(&error)).collect();
        if faults.is_empty() { Ok(()) } else { Err(faults) }
    }

    /// Validates `data`: returns at most [`MAX_REPORTED`] faults, each with a pointer that begins with `/data`.
    pub fn check(&self, data: &Value) -> Result<(), Vec<FieldError>> {
        let validator = &self.validators.as_ref().map_err(Clone::clone)?.kept;
        let mut faults = Faults::default();
        storable(data, &mut "/data".to_owned(), MAX_DATA_DEPTH, &mut faults);
        let fields = data.as_object().map_or(0, serde_json::Map::len);
        if fields > MAX_LISTED_FIELDS && !self.annotations.listed.is_empty() {
            let detail =
                format!("has {fields} fields; the limit is {MAX_LISTED_FIELDS}, so that all of them can be listed by");
            faults.add("/data", "too_many_fields", detail);
        }
        if self.parts.work(data) > MAX_WORK {
            let detail = format!(
                "has more values and longer texts than the {} parts of its kind's schema can be held against at once: make the record \
                 smaller, or the schema simpler",
                self.parts.all
            );
            faults.add("/data", "too_complex", detail);
        }
        let mut faults = faults.into_vec();
        // Data that is too deep is not validated, since the schema may recurse with it.
        if faults.is_empty() {
            let found = validator.iter_errors(data).take(MAX_REPORTED);
            faults.extend(found.map(|error| fault_of(&error)));
        }
        faults.truncate(MAX_REPORTED);
        if faults.is_empty() { Ok(()) } else { Err(faults) }
    }
}

impl Validators {
    /// Compiles `schema`, or returns its faults, with pointers that begin with `/schema`.
    pub fn of(schema: &Value, annotations: &Annotations) -> Result<Self, Vec<FieldError>> {
        if annotations.secrets.is_empty() {
            return Ok(Self { kept: compile(schema)?, secrets: None });
        }
        let mut kept = schema.clone();
        for name in &annotations.secrets {
            if let Some(property) = kept.get_mut("properties").and_then(|properties| properties.get_mut(name)) {
                *property = Value::Bool(true);
            }
        }
        // References inside of it still lead somewhere.
        let parts = ["$schema", "$defs", "properties"];
        let parts = parts.iter().filter_map(|name| Some(((*name).to_owned(), schema.get(name)?.clone())));
        let secrets = compile(&Value::Object(parts.collect()))?;
        Ok(Self { kept: compile(&kept)?, secrets: Some(secrets) })
    }
}

fn fault_of(error: &ValidationError<'_>) -> FieldError {
    FieldError {
        pointer: format!("/data{}", error.instance_path()),
        code: error.kind().keyword().to_owned().into(),
        // Without the value: it may be large, and it may not belong in a log.
        detail: shortened(&error.masked().to_string()),
    }
}

/// Compiles `schema`, or returns its faults, with pointers that begin with `/schema`.
pub fn compile(schema: &Value) -> Result<Validator, Vec<FieldError>> {
    compile_within(schema, PATTERNS_BYTES)
}

/// Compiles the schema of a kind of an organization's own, or returns its faults. Such a schema is another party's, so all that it
/// can cost is bounded before it is compiled.
pub fn compile_own(schema: &Value) -> Result<Validator, Vec<FieldError>> {
    check_form(schema)?;
    Parts::of_own(schema).map_err(|fault| vec![fault])?;
    compile_within(schema, OWN_PATTERNS_BYTES)
}

fn compile_within(schema: &Value, patterns_bytes: usize) -> Result<Validator, Vec<FieldError>> {
    check_form(schema)?;
    let patterns = usize::try_from(Parts::of(schema).patterns).unwrap_or(usize::MAX).max(1);
    let bytes = PATTERN_BYTES.min(patterns_bytes / patterns);
    jsonschema::draft202012::options()
        .offline()
        .should_validate_formats(true)
        .with_pattern_options(PatternOptions::regex().size_limit(bytes).dfa_size_limit(bytes))
        .build(schema)
        .map_err(|error| {
            vec![FieldError {
                pointer: format!("/schema{}", error.instance_path()),
                code: error.kind().keyword().to_owned().into(),
                detail: shortened(&error.to_string()),
            }]
        })
}

/// Checks what a schema looks like, without compiling it.
fn check_form(schema: &Value) -> Result<(), Vec<FieldError>> {
    let mut faults = Faults::default();
    storable(schema, &mut "/schema".to_owned(), MAX_SCHEMA_DEPTH, &mut faults);
    let bytes = schema.to_string().len();
    if bytes > MAX_SCHEMA_BYTES {
        faults.add("/schema", "too_long", format!("is {bytes} bytes long; the limit is {MAX_SCHEMA_BYTES}"));
    }
    match schema {
        Value::Object(fields) if fields.get("$schema").is_some_and(|dialect| dialect != DIALECT) => {
            faults.add("/schema/$schema", "dialect", format!("must be {DIALECT} or missing"));
        }
        Value::Object(_) => {}
        _ => faults.add("/schema", "type", "must be a JSON object"),
    }
    if faults.is_empty() {
        only_refers_to_itself(schema, &mut "/schema".to_owned(), &mut faults);
    }
    faults.none_or(|faults| faults)
}

/// Checks that references stay inside the schema, so that its meaning cannot change from outside.
fn only_refers_to_itself(schema: &Value, path: &mut String, faults: &mut Faults) {
    match schema {
        Value::Object(fields) => {
            for (name, value) in fields {
                under(path, name, |path| {
                    let outside = value.as_str().is_some_and(|target| !target.starts_with('#'));
                    if outside && matches!(name.as_str(), "$ref" | "$dynamicRef") {
                        let detail = "must begin with #: a schema refers only to itself";
                        faults.add(path.clone(), "remote_reference", detail);
                    }
                    only_refers_to_itself(value, path, faults);
                });
            }
        }
        Value::Array(items) => {
            for (index, item) in items.iter().enumerate() {
                under(path, &index.to_string(), |path| only_refers_to_itself(item, path, faults));
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

fn shortened(text: &str) -> String {
    if text.chars().count() <= MAX_DETAIL {
        return text.to_owned();
    }
    text.chars().take(MAX_DETAIL).chain(['…']).collect()
}

#[cfg(test)]
mod tests {
    use orgstream_events::Visibility;
    use serde_json::json;

    use super::*;

    fn kind(schema: Value) -> ValidatedKind {
        let definition = KindDefinition {
            title: "X".to_owned(),
            schema,
            visibility: Visibility::Private,
            cost: 1,
            views: vec![],
            append_only: false,
        };
        ValidatedKind::new(definition, 1, false)
    }

    fn faults(schema: &Value) -> Vec<(String, String)> {
        let faults = compile(schema).map(|_| ()).unwrap_err();
        faults.into_iter().map(|fault| (fault.pointer, fault.code.into_owned())).collect()
    }

    #[test]
    fn a_schema_is_valid_2020_12() {
        assert!(compile(&json!({"type": "object", "$schema": DIALECT})).is_ok());
        assert_eq!(faults(&json!({"type": "objekt"}))[0].0, "/schema/type");
        assert_eq!(faults(&json!({"properties": {"a": {"minimum": "1"}}}))[0].0, "/schema/properties/a/minimum");
        assert_eq!(faults(&json!(true)), [("/schema".to_owned(), "type".to_owned())]);
        let old = json!({"$schema": "http://json-schema.org/draft-07/schema#"});
        assert_eq!(faults(&old), [("/schema/$schema".to_owned(), "dialect".to_owned())]);
    }

    #[test]
    fn a_kind_whose_schema_does_not_compile_takes_nothing() {
        let found = kind(json!({"type": "objekt"})).check(&json!({})).unwrap_err();
        assert_eq!(found[0].pointer, "/schema/type");
    }

    #[test]
    fn a_schema_refers_only_to_itself() {
        assert!(
            compile(&json!({"$defs": {"a": {"type": "string"}}, "properties": {"x": {"$ref": "#/$defs/a"}}})).is_ok()
        );
        for target in ["https://example.com/a.json", "file:///etc/passwd", "other.json"] {
            let found = faults(&json!({"properties": {"x": {"$ref": target}}}));
            assert_eq!(found, [("/schema/properties/x/$ref".to_owned(), "remote_reference".to_owned())]);
        }
        assert!(compile(&json!({"$ref": "#/$defs/missing"})).is_err());
    }

    #[test]
    fn a_schema_is_bounded() {
        assert_eq!(faults(&json!({"description": "x".repeat(MAX_SCHEMA_BYTES)}))[0].1, "too_long");
        let deep = (0..MAX_SCHEMA_DEPTH).fold(json!({}), |inner, _| json!({"not": inner}));
        assert_eq!(faults(&deep)[0].1, "too_deep");
        assert!(compile(&json!({"pattern": "(?:a{1000}){1000}"})).is_err());
    }

    #[test]
    fn a_schema_that_circles_ends_nothing() {
        for schema in [
            json!({"$ref": "#"}),
            json!({"allOf": [{"$ref": "#"}]}),
            json!({"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}),
            json!({"$defs": {"a": {"not": {"$ref": "#/$defs/a"}}}, "$ref": "#/$defs/a"}),
            json!({"anyOf": [{"$dynamicRef": "#"}]}),
        ] {
            let _ = compile(&schema).map(|validator| validator.is_valid(&json!({"a": 1})));
        }
    }

    #[test]
    fn a_pattern_takes_linear_time() {
        let slow = kind(json!({"properties": {"a": {"pattern": "^(a+)+$"}}}));
        let text = "a".repeat(50_000) + "!";
        assert_eq!(slow.check(&json!({"a": text})).unwrap_err()[0].code, "pattern");
        assert!(compile(&json!({"pattern": "(?=a)b"})).is_err(), "look-around needs backtracking");
    }

    #[test]
    fn faults_point_into_the_data_and_do_not_repeat_it() {
        let kind =
            kind(json!({"properties": {"score": {"maximum": 1}, "a/b": {"type": "string"}}, "required": ["id"]}));
        let faults = kind.check(&json!({"score": 1234, "a/b": 5678})).unwrap_err();
        let mut found: Vec<_> = faults.iter().map(|fault| (fault.pointer.as_str(), &*fault.code)).collect();
        found.sort_unstable();
        assert_eq!(found, [("/data", "required"), ("/data/a~1b", "type"), ("/data/score", "maximum")]);
        assert!(!format!("{faults:?}").contains("1234"), "{faults:?}");
    }

    #[test]
    fn a_secret_is_checked_before_it_is_sealed_and_its_mask_after() {
        let kind = kind(json!({
            "required": ["key"], "additionalProperties": false, "$defs": {"short": {"maxLength": 8}},
            "properties": {"key": {"type": "string", "pattern": "^k-", "$ref": "#/$defs/short", "x-secret": true},
                "score": {"maximum": 1}},
        }));
        let mask = json!({"key": {"masked": "********"}, "score": 1});
        assert_eq!((kind.check(&mask), kind.check_secrets(&mask)), (Ok(()), Ok(())));
        // What else is wrong is found when the mask is there.
        assert_eq!(kind.check_secrets(&json!({"key": "k-1", "score": 2})), Ok(()));
        let found = kind.check_secrets(&json!({"key": "hidden and long"})).unwrap_err();
        let mut codes: Vec<_> = found.iter().map(|fault| (fault.pointer.as_str(), &*fault.code)).collect();
        codes.sort_unstable();
        assert_eq!(codes, [("/data/key", "maxLength"), ("/data/key", "pattern")]);
        assert!(!format!("{found:?}").contains("hidden"), "{found:?}");
        assert_eq!(kind.check(&json!({})).unwrap_err()[0].code, "required");
    }

    #[test]
    fn at_most_twenty_faults_are_reported() {
        let kind = kind(json!({"items": {"type": "string"}}));
        assert_eq!(kind.check(&json!(vec![1; 100])).unwrap_err().len(), MAX_REPORTED);
        assert_eq!(kind.check(&json!(vec!["\0"; 100])).unwrap_err().len(), MAX_REPORTED);
    }

    #[test]
    fn data_that_recurses_with_its_schema_is_bounded() {
        let kind = kind(json!({"properties": {"next": {"$ref": "#"}}}));
        let deep = |depth| (0..depth).fold(json!({}), |inner, _| json!({"next": inner}));
        assert!(kind.check(&deep(MAX_DATA_DEPTH - 1)).is_ok());
        assert_eq!(kind.check(&deep(MAX_DATA_DEPTH)).unwrap_err()[0].code, "too_deep");
    }
}
