//! Parsing of bytes to a value that is kept exactly, wherever it goes from here; anything that could not be is reported with
//! a pointer.

use std::{
    cell::{Cell, RefCell},
    fmt,
};

use orgstream_domain::{FieldError, Rejection};
use serde::{
    Deserializer,
    de::{DeserializeSeed, Error, MapAccess, SeqAccess, Visitor},
};
use serde_json::{Map, Number, Value};

use super::{
    Format,
    number::{Numbers, OUT_OF_RANGE, fault_in_double, fault_in_text},
};
use crate::app::problem::Problem;

/// The maximum depth of JSON; MessagePack counts every level twice.
const MAX_DEPTH: usize = 256;
/// The fault of anything deeper.
const TOO_DEEP: &str = "is nested too deeply";
/// The maximum number of faults that one body, or one of the commands in it, reports.
const MAX_FAULTS: usize = 20;
/// The maximum number of faults of all commands of one body together. No body that is carried out comes near it.
const MAX_FAULTS_OF_ALL: usize = 50_000;
/// The longest pointer to a fault, in bytes.
const MAX_POINTER: usize = 1_000;
/// The prefix of the JSON decoder's own names. For other programs that use it they are not names of fields.
const RESERVED: &str = "$serde_json::private::";

/// The content of a body, and the parts of it that cannot be kept.
pub struct Reading {
    /// The value; none when it could not be parsed to its end.
    pub value: Option<Value>,
    /// The parts that cannot be kept.
    pub faults: Vec<FieldError>,
}

impl Reading {
    /// Returns the value, if all of it can be kept.
    pub fn whole(self) -> Result<Value, Problem> {
        match self.value {
            Some(value) if self.faults.is_empty() => Ok(value),
            _ => Err(refused(self.faults)),
        }
    }
}

/// Returns the answer to a value that cannot be kept.
pub fn refused(mut faults: Vec<FieldError>) -> Problem {
    faults.truncate(MAX_FAULTS);
    Rejection::invalid(faults).into()
}

/// Returns the answer to a malformed body of this format: 400.
pub fn malformed(detail: impl Into<String>) -> Problem {
    Problem::new(400, "malformed_body", "Malformed body", detail)
}

/// Parses a body.
pub fn read(body: &[u8], format: Format) -> Result<Reading, Problem> {
    match format {
        Format::Json => read_json(body),
        Format::MessagePack => read_message_pack(body),
    }
}

fn read_json(body: &[u8]) -> Result<Reading, Problem> {
    let text = std::str::from_utf8(body)
        .map_err(|error| malformed(format!("the body is not UTF-8: byte {} is wrong", error.valid_up_to() + 1)))?;
    if text.bytes().all(|byte| byte.is_ascii_whitespace()) {
        return Err(malformed("the body is empty: send JSON"));
    }
    let walk = Walk::new(Some(Numbers(text)));
    let mut decoder = serde_json::Deserializer::from_str(text);
    let read = Node(&walk).deserialize(&mut decoder).and_then(|value| decoder.end().map(|()| value));
    let error = match read {
        Ok(value) => return Ok(walk.with(value)),
        Err(error) => error.to_string(),
    };
    // The decoder stops at these three, which are JSON but cannot be kept.
    if error.starts_with("number out of range") {
        walk.fault("inexact_number", OUT_OF_RANGE);
    } else if error.starts_with("lone leading surrogate") || error.starts_with("unexpected end of hex escape") {
        walk.fault("lone_surrogate", "must not have half of a surrogate pair, which is no character");
    } else if error.starts_with("recursion limit exceeded") {
        walk.fault("too_deep", TOO_DEEP);
    } else {
        return Err(malformed(format!("the body is not JSON: {error}")));
    }
    Ok(walk.without_value())
}

fn read_message_pack(body: &[u8]) -> Result<Reading, Problem> {
    let walk = Walk::new(None);
    let mut decoder = rmp_serde::Deserializer::new(body);
    decoder.set_max_depth(MAX_DEPTH);
    match Node(&walk).deserialize(&mut decoder) {
        Ok(value) => match decoder.get_ref().len() {
            0 => Ok(walk.with(value)),
            more => Err(malformed(format!("the body has {more} bytes behind its MessagePack value"))),
        },
        Err(_) if walk.stopped.get() => Ok(walk.without_value()),
        Err(rmp_serde::decode::Error::DepthLimitExceeded) => {
            walk.fault("too_deep", TOO_DEEP);
            Ok(walk.without_value())
        }
        Err(error) => Err(malformed(format!("the body is not MessagePack: {error}"))),
    }
}

/// The position of the parser, and its findings.
struct Walk<'a> {
    path: RefCell<String>,
    faults: RefCell<Vec<FieldError>>,
    /// The number of faults in the item of the body that is being parsed.
    in_item: Cell<usize>,
    /// Whether parsing ended at a fault.
    stopped: Cell<bool>,
    /// The numbers as the sender wrote them; MessagePack has them in one form only.
    numbers: RefCell<Option<Numbers<'a>>>,
}

impl<'a> Walk<'a> {
    fn new(numbers: Option<Numbers<'a>>) -> Self {
        Self {
            path: RefCell::default(),
            faults: RefCell::default(),
            in_item: Cell::new(0),
            stopped: Cell::new(false),
            numbers: RefCell::new(numbers),
        }
    }

    fn with(self, value: Value) -> Reading {
        Reading { value: Some(value), faults: self.faults.into_inner() }
    }

    fn without_value(self) -> Reading {
        Reading { value: None, faults: self.faults.into_inner() }
    }

    /// Goes one step down; [`Walk::leave`] takes the result.
    fn enter(&self, step: &str) -> usize {
        let mut path = self.path.borrow_mut();
        let length = path.len();
        if length == 0 {
            self.in_item.set(0);
        }
        path.push('/');
        path.push_str(&step.replace('~', "~0").replace('/', "~1"));
        length
    }

    fn leave(&self, length: usize) {
        self.path.borrow_mut().truncate(length);
    }

    fn fault(&self, code: &'static str, detail: impl Into<String>) {
        let mut faults = self.faults.borrow_mut();
        let in_item = self.in_item.get();
        self.in_item.set(in_item + 1);
        if in_item < MAX_FAULTS && faults.len() < MAX_FAULTS_OF_ALL {
            let path = self.path.borrow();
            let pointer = path.get(..path.floor_char_boundary(MAX_POINTER)).unwrap_or_default().to_owned();
            faults.push(FieldError { pointer, code: code.into(), detail: detail.into() });
        }
    }

    /// Reports a fault behind which nothing can be parsed.
    fn stop<E: Error>(&self, code: &'static str, detail: &str) -> E {
        if !self.stopped.replace(true) {
            self.fault(code, detail);
        }
        E::custom(detail)
    }

    fn number_text(&self) -> Option<&'a str> {
        self.numbers.borrow_mut().as_mut().and_then(Iterator::next)
    }

    fn text(&self, text: String) -> Value {
        if text.contains('\0') {
            self.fault("nul_character", "must not contain the character U+0000");
        }
        Value::String(text)
    }
}

/// One value in the traversal.
#[derive(Clone, Copy)]
struct Node<'w, 'a>(&'w Walk<'a>);

impl<'de> DeserializeSeed<'de> for Node<'_, '_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Node<'_, '_> {
    type Value = Value;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a value that JSON has")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        self.0.number_text();
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        self.0.number_text();
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        let fault = match self.0.number_text() {
            Some(text) => fault_in_text(text, value),
            None => fault_in_double(value),
        };
        if let Some(fault) = fault {
            self.0.fault("inexact_number", fault);
        }
        Ok(Number::from_f64(value).map_or(Value::Null, Value::Number))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(self.0.text(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(self.0.text(value))
    }

    // A text whose bytes are not UTF-8 comes here as well.
    fn visit_bytes<E: Error>(self, _: &[u8]) -> Result<Value, E> {
        Err(self.0.stop("not_json", "must be a value that JSON has: no binary data, and no text that is not UTF-8"))
    }

    fn visit_newtype_struct<D: Deserializer<'de>>(self, _: D) -> Result<Value, D::Error> {
        Err(self.0.stop("not_json", "must be a value that JSON has, which MessagePack's extension types are not"))
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        self.deserialize(deserializer)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut array = Vec::new();
        loop {
            let length = self.0.enter(&array.len().to_string());
            let Some(item) = items.next_element_seed(self)? else {
                self.0.leave(length);
                return Ok(Value::Array(array));
            };
            array.push(item);
            self.0.leave(length);
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Value, A::Error> {
        let mut object = Map::new();
        while let Some(name) = fields.next_key_seed(Name(self.0))? {
            if name.contains('\0') {
                self.0.fault("nul_character", "must not have the character U+0000 in the name of a field");
            }
            let length = self.0.enter(&name);
            if name.starts_with(RESERVED) {
                self.0.fault("reserved_field", format!("must have another name: those with {RESERVED} are reserved"));
            }
            if object.contains_key(&name) {
                self.0.fault("duplicate_field", "must come once in its object");
            }
            let value = fields.next_value_seed(self)?;
            object.insert(name, value);
            self.0.leave(length);
        }
        Ok(Value::Object(object))
    }
}

/// The name of a field.
struct Name<'w, 'a>(&'w Walk<'a>);

impl<'de> DeserializeSeed<'de> for Name<'_, '_> {
    type Value = String;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<String, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl Name<'_, '_> {
    fn refuse<E: Error>(self) -> Result<String, E> {
        Err(self.0.stop("not_json", "must have texts as the names of its fields, in UTF-8"))
    }
}

impl<'de> Visitor<'de> for Name<'_, '_> {
    type Value = String;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("the name of a field")
    }

    fn visit_str<E>(self, value: &str) -> Result<String, E> {
        Ok(value.to_owned())
    }

    fn visit_string<E>(self, value: String) -> Result<String, E> {
        Ok(value)
    }

    fn visit_bool<E: Error>(self, _: bool) -> Result<String, E> {
        self.refuse()
    }

    fn visit_i64<E: Error>(self, _: i64) -> Result<String, E> {
        self.refuse()
    }

    fn visit_u64<E: Error>(self, _: u64) -> Result<String, E> {
        self.refuse()
    }

    fn visit_f64<E: Error>(self, _: f64) -> Result<String, E> {
        self.refuse()
    }

    fn visit_bytes<E: Error>(self, _: &[u8]) -> Result<String, E> {
        self.refuse()
    }

    fn visit_unit<E: Error>(self) -> Result<String, E> {
        self.refuse()
    }

    fn visit_newtype_struct<D: Deserializer<'de>>(self, _: D) -> Result<String, D::Error> {
        self.refuse()
    }

    fn visit_seq<A: SeqAccess<'de>>(self, _: A) -> Result<String, A::Error> {
        self.refuse()
    }

    fn visit_map<A: MapAccess<'de>>(self, _: A) -> Result<String, A::Error> {
        self.refuse()
    }
}
