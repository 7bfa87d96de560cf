//! The work of validating: what a schema costs once its references are followed, and what data costs under it.
//!
//! A short schema can be a long one: a reference that stands twice in what it leads to doubles it at each step, and a pattern is
//! matched against every text in its place. So the parts of a schema are counted as a validator meets them, and the product with
//! the size of the data is bounded before anything is validated.

use serde_json::Value;

use crate::{FieldError, text::under};

/// The maximum number of parts of the schema of a kind of an organization's own.
pub const MAX_OWN_PARTS: u64 = 10_000;
/// The maximum nesting depth of such a schema, through its references.
const MAX_OWN_DEPTH: usize = 64;
/// The number up to which the parts of any schema are counted.
const MAX_COUNTED: u64 = 100_000;
/// The nesting depth up to which they are.
const MAX_DEPTH: usize = 128;
/// The maximum work of validating one record: parts of the schema times values of the data, and checks of texts times their
/// quarters of bytes. A schema of 150 parts takes whatever a request can hold.
pub const MAX_WORK: u64 = 80_000_000;

/// What describes and does not validate.
const DESCRIBES: [&str; 9] =
    ["title", "description", "examples", "default", "$comment", "$schema", "deprecated", "readOnly", "writeOnly"];
/// What reads the whole of a text.
const READS_TEXT: [&str; 4] = ["pattern", "format", "minLength", "maxLength"];
/// What evaluates its neighbours again.
const AGAIN: [&str; 2] = ["unevaluatedProperties", "unevaluatedItems"];
/// What gives places of a schema other names, or leads to them by these.
const NAMES_PLACES: [&str; 5] = ["$id", "$anchor", "$dynamicAnchor", "$dynamicRef", "$recursiveRef"];

/// The parts of a schema, each as often as references lead to it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Parts {
    /// All of them.
    pub all: u64,
    /// Those that read texts.
    pub texts: u64,
    /// The patterns.
    pub patterns: u64,
}

impl Parts {
    /// Counts the parts of any schema, up to a limit. A reference that leads back to itself counts once.
    pub fn of(schema: &Value) -> Self {
        let mut walk = Walk { root: schema, parts: Self::default(), open: Vec::new(), is_own: false };
        // What is not followed is no fault here.
        let _ = walk.schema(schema, &mut "/schema".to_owned(), 0);
        walk.parts
    }

    /// Counts the parts of the schema of a kind of an organization's own, or returns its fault: its references lead to places by
    /// their pointers, and never back.
    pub fn of_own(schema: &Value) -> Result<Self, FieldError> {
        let mut walk = Walk { root: schema, parts: Self::default(), open: Vec::new(), is_own: true };
        walk.schema(schema, &mut "/schema".to_owned(), 0)?;
        Ok(walk.parts)
    }

    /// Returns the work of validating `data`.
    pub fn work(self, data: &Value) -> u64 {
        let (values, bytes) = size_of(data);
        self.all.saturating_mul(values).saturating_add(self.texts.saturating_mul(bytes / 4))
    }
}

/// Returns the number of values of `data`, and of bytes of its texts.
fn size_of(data: &Value) -> (u64, u64) {
    let sum = |(values, bytes), (more, others)| (values + more, bytes + others);
    match data {
        Value::Null | Value::Bool(_) | Value::Number(_) => (1, 0),
        Value::String(text) => (1, text.len() as u64),
        Value::Array(items) => items.iter().map(size_of).fold((1, 0), sum),
        Value::Object(fields) => {
            let names = fields.keys().map(|name| (0, name.len() as u64));
            names.chain(fields.values().map(size_of)).fold((1, 0), sum)
        }
    }
}

struct Walk<'a> {
    root: &'a Value,
    parts: Parts,
    /// The references that are being followed.
    open: Vec<&'a str>,
    is_own: bool,
}

impl<'a> Walk<'a> {
    fn fault(path: &str, code: &'static str, detail: String) -> Result<(), FieldError> {
        Err(FieldError { pointer: path.to_owned(), code: code.into(), detail })
    }

    fn schema(&mut self, schema: &'a Value, path: &mut String, depth: usize) -> Result<(), FieldError> {
        self.parts.all += 1;
        let (most, deepest) = if self.is_own { (MAX_OWN_PARTS, MAX_OWN_DEPTH) } else { (MAX_COUNTED, MAX_DEPTH) };
        if self.parts.all > most {
            let detail = format!(
                "has more than {most} parts once its references are followed, each counted as often as it is led to: make it \
                 smaller, or refer to fewer places"
            );
            return Self::fault("/schema", "too_complex", detail);
        }
        if depth > deepest {
            if !self.is_own {
                return Ok(());
            }
            let detail = format!("is nested more than {deepest} deep once its references are followed");
            return Self::fault(path, "too_deep", detail);
        }
        match schema {
            Value::Object(keywords) => {
                let times = if AGAIN.iter().any(|keyword| keywords.contains_key(*keyword)) { 2 } else { 1 };
                for _ in 0..times {
                    for (keyword, value) in keywords {
                        under(path, keyword, |path| self.keyword(keyword, value, path, depth))?;
                    }
                }
            }
            Value::Array(items) => {
                for (index, item) in items.iter().enumerate() {
                    under(path, &index.to_string(), |path| self.schema(item, path, depth + 1))?;
                }
            }
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
        }
        Ok(())
    }

    fn keyword(&mut self, keyword: &str, value: &'a Value, path: &mut String, depth: usize) -> Result<(), FieldError> {
        // A property may have the name of a keyword, but its value is a schema.
        match (keyword, value) {
            (name, Value::String(_) | Value::Array(_) | Value::Bool(_)) if DESCRIBES.contains(&name) => Ok(()),
            ("$ref", Value::String(target)) => self.reference(target, path, depth),
            (name, Value::String(_)) if self.is_own && NAMES_PLACES.contains(&name) => {
                let detail = "must not stand in a kind of an organization's own: refer to places with $ref and a pointer, like \
                              #/$defs/name";
                Self::fault(path, "named_place", detail.to_owned())
            }
            (name, Value::String(_) | Value::Number(_)) if READS_TEXT.contains(&name) => {
                self.parts.texts += 1;
                self.parts.patterns += u64::from(name == "pattern");
                self.schema(value, path, depth + 1)
            }
            ("patternProperties", Value::Object(patterns)) => {
                self.parts.texts += patterns.len() as u64;
                self.parts.patterns += patterns.len() as u64;
                self.schema(value, path, depth + 1)
            }
            _ => self.schema(value, path, depth + 1),
        }
    }

    fn reference(&mut self, target: &'a str, path: &mut String, depth: usize) -> Result<(), FieldError> {
        if self.open.contains(&target) {
            if !self.is_own {
                return Ok(());
            }
            let detail = "leads back to itself, which a kind of an organization's own must not: say how deep it may be";
            return Self::fault(path, "recursive_reference", detail.to_owned());
        }
        let pointer = target.strip_prefix('#').filter(|pointer| pointer.is_empty() || pointer.starts_with('/'));
        let Some(pointer) = pointer else {
            if !self.is_own {
                return Ok(());
            }
            return Self::fault(
                path,
                "remote_reference",
                "must begin with #/: a schema refers only to itself".to_owned(),
            );
        };
        // Where it leads nowhere, compiling says so.
        let Some(place) = self.root.pointer(pointer) else { return Ok(()) };
        self.open.push(target);
        let followed = if pointer.is_empty() && self.is_own && self.open.len() == 1 {
            Self::fault(
                path,
                "recursive_reference",
                "leads back to itself, which a kind of an organization's own must not: say how deep it may be"
                    .to_owned(),
            )
        } else {
            self.schema(place, path, depth + 1)
        };
        self.open.pop();
        followed
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn refused(schema: &Value) -> (String, String) {
        let fault = Parts::of_own(schema).unwrap_err();
        (fault.pointer, fault.code.into_owned())
    }

    /// A schema with `steps` definitions, each of which stands twice in the one before.
    fn doubling(steps: usize) -> Value {
        let mut schema = json!({"$defs": {}, "properties": {"a": {"$ref": "#/$defs/d0"}}});
        for step in 0..steps {
            let next = format!("#/$defs/d{}", step + 1);
            schema["$defs"][format!("d{step}")] = json!({"allOf": [{"$ref": next}, {"$ref": next}]});
        }
        schema["$defs"][format!("d{steps}")] = json!({"type": "string"});
        schema
    }

    #[test]
    fn what_doubles_at_each_step_is_counted_as_often() {
        assert!(Parts::of_own(&doubling(3)).is_ok());
        assert_eq!(refused(&doubling(15)), ("/schema".to_owned(), "too_complex".to_owned()));
        assert!(Parts::of(&doubling(60)).all > MAX_COUNTED);
        let mut again = json!({"type": "object"});
        for _ in 0..14 {
            again = json!({"allOf": [again], "unevaluatedProperties": false});
        }
        assert_eq!(refused(&again).1, "too_complex");
    }

    #[test]
    fn a_reference_of_an_own_kind_never_leads_back_and_has_a_pointer() {
        for (schema, pointer, code) in [
            (json!({"properties": {"next": {"$ref": "#"}}}), "/schema/properties/next/$ref", "recursive_reference"),
            (
                json!({"$defs": {"a": {"not": {"$ref": "#/$defs/a"}}}}),
                "/schema/$defs/a/not/$ref",
                "recursive_reference",
            ),
            (json!({"$dynamicRef": "#a"}), "/schema/$dynamicRef", "named_place"),
            (json!({"properties": {"a": {"$anchor": "b"}}}), "/schema/properties/a/$anchor", "named_place"),
            (json!({"$ref": "#name"}), "/schema/$ref", "remote_reference"),
        ] {
            let found = refused(&schema);
            assert_eq!(found.1, code, "{schema}");
            assert!(found.0.starts_with(pointer), "{schema}: {found:?}");
            assert!(Parts::of(&schema).all > 0);
        }
        // A chain is as deep as its references make it.
        let mut chain = json!({"$defs": {"d100": {}}, "$ref": "#/$defs/d0"});
        for step in 0..100 {
            chain["$defs"][format!("d{step}")] = json!({"$ref": format!("#/$defs/d{}", step + 1)});
        }
        assert_eq!(refused(&chain).1, "too_deep");
        assert!(
            Parts::of_own(&json!({"properties": {"$id": {"type": "string"}, "pattern": {"type": "object"}}})).is_ok()
        );
    }

    #[test]
    fn the_work_grows_with_the_schema_and_the_data() {
        let parts = Parts::of_own(&json!({"properties": {"a": {"pattern": "^x"}, "b": {"enum": [1, 2, 3]}}})).unwrap();
        assert_eq!((parts.texts, parts.patterns), (1, 1));
        let small = parts.work(&json!({"a": "x", "b": 1}));
        assert!(small < 100, "{small}");
        assert!(parts.work(&json!({"a": "x".repeat(1_000)})) > 250);
        assert!(parts.work(&json!({"a": vec![1; 1_000]})) > 1_000 * parts.all);
    }
}
