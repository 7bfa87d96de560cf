//! An OpenSearch in memory, as far as the program speaks to one: it refuses every other form of a request, keeps what it was asked,
//! and fails as a test tells it.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard},
};

use axum::{
    Router,
    body::{Body, Bytes},
    extract::State,
    http::{HeaderMap, Method, StatusCode, Uri},
    response::Response,
};
use serde_json::{Map, Value, json};
use tokio::net::TcpListener;

/// How it answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// As it must.
    Answer,
    /// Never.
    Hang,
    /// With this status, and without doing anything.
    Refuse(u16),
    /// It takes each second document of a bulk request.
    TakeHalf,
    /// It does what it is asked, and says that it failed.
    LoseAnswers,
    /// It sends its callers elsewhere.
    Redirect,
}

/// A request, as it came.
#[derive(Debug, Clone)]
pub(crate) struct Asked {
    pub(crate) line: String,
    pub(crate) body: String,
    pub(crate) authorization: Option<String>,
}

#[derive(Debug, Default)]
struct Index {
    /// The documents with their versions, and those that searches see.
    stored: BTreeMap<String, (u64, Value)>,
    visible: BTreeMap<String, Value>,
}

#[derive(Debug)]
struct Inside {
    mode: Mode,
    asked: Vec<Asked>,
    indexes: BTreeMap<String, Index>,
    aliases: BTreeMap<String, BTreeSet<String>>,
}

/// The server. It ends with the test's runtime.
#[derive(Debug, Clone)]
pub(crate) struct FakeOpenSearch {
    pub(crate) url: String,
    inside: Arc<Mutex<Inside>>,
}

impl FakeOpenSearch {
    pub(crate) async fn start() -> Self {
        let inside =
            Inside { mode: Mode::Answer, asked: Vec::new(), indexes: BTreeMap::new(), aliases: BTreeMap::new() };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let fake = Self { url, inside: Arc::new(Mutex::new(inside)) };
        let router = Router::new().fallback(answer).with_state(fake.clone());
        tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        fake
    }

    fn inside(&self) -> MutexGuard<'_, Inside> {
        self.inside.lock().unwrap()
    }

    pub(crate) fn turn(&self, mode: Mode) {
        self.inside().mode = mode;
    }

    /// The requests since the last call.
    pub(crate) fn asked(&self) -> Vec<Asked> {
        std::mem::take(&mut self.inside().asked)
    }

    /// The names of the indexes.
    pub(crate) fn indexes(&self) -> Vec<String> {
        self.inside().indexes.keys().cloned().collect()
    }

    /// The indexes that an alias stands for.
    pub(crate) fn alias(&self, name: &str) -> Vec<String> {
        self.inside().aliases.get(name).into_iter().flatten().cloned().collect()
    }

    /// The documents of an index, with their versions.
    pub(crate) fn documents(&self, index: &str) -> Vec<(u64, Value)> {
        self.inside().indexes.get(index).into_iter().flat_map(|index| index.stored.values().cloned()).collect()
    }
}

fn reply(status: u16, body: &Value) -> Response {
    Response::builder()
        .status(status)
        .header("content-type", "application/json")
        .body(Body::from(body.to_string()))
        .unwrap()
}

fn failed(status: u16, kind: &str) -> Response {
    reply(status, &json!({"error": {"type": kind, "reason": "secret-reason"}, "status": status}))
}

async fn answer(
    State(fake): State<FakeOpenSearch>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let text = String::from_utf8(body.to_vec()).unwrap();
    let header = |name: &str| headers.get(name).map(|value| value.to_str().unwrap().to_owned());
    let mode = {
        let mut inside = fake.inside();
        let (line, authorization) = (format!("{method} {uri}"), header("authorization"));
        inside.asked.push(Asked { line, body: text.clone(), authorization });
        inside.mode
    };
    match mode {
        Mode::Hang => std::future::pending().await,
        Mode::Refuse(status) => return failed(status, "es_rejected_execution_exception"),
        Mode::Redirect => {
            return Response::builder()
                .status(StatusCode::FOUND)
                .header("location", "/elsewhere")
                .body(Body::empty())
                .unwrap();
        }
        Mode::Answer | Mode::TakeHalf | Mode::LoseAnswers => {}
    }
    let done = fake.inside().carry_out(&method, &uri, header("content-type").as_deref(), &text);
    if mode == Mode::LoseAnswers { failed(503, "lost") } else { done }
}

impl Inside {
    fn carry_out(&mut self, method: &Method, uri: &Uri, content_type: Option<&str>, body: &str) -> Response {
        let parts: Vec<&str> = uri.path().split('/').filter(|part| !part.is_empty()).collect();
        let is_lines = uri.path().ends_with("/_bulk");
        let expected = match () {
            () if is_lines => Some("application/x-ndjson"),
            () if body.is_empty() => None,
            () => Some("application/json"),
        };
        if content_type != expected {
            return failed(415, "media_type_header_exception");
        }
        let json = || serde_json::from_str::<Value>(body).unwrap_or_default();
        match (method.as_str(), parts.as_slice()) {
            ("GET", []) => reply(200, &json!({"version": {"number": "2.19.0", "distribution": "opensearch"}})),
            ("PUT", [index]) => self.create(index, &json()),
            ("DELETE", [index]) => self.delete(index),
            ("POST", ["_aliases"]) => self.switch(&json()),
            ("POST", [index, "_refresh"]) => self.refresh(index),
            ("POST", [index, "_search"]) => self.search(index, &json()),
            ("POST", [alias, "_bulk"]) => self.bulk(alias, uri.query().unwrap_or_default(), body),
            _ => failed(405, "no_such_request"),
        }
    }

    fn create(&mut self, index: &str, body: &Value) -> Response {
        if self.indexes.contains_key(index) {
            return failed(400, "resource_already_exists_exception");
        }
        self.indexes.insert(index.to_owned(), Index::default());
        for alias in body["aliases"].as_object().into_iter().flat_map(Map::keys) {
            self.aliases.entry(alias.clone()).or_default().insert(index.to_owned());
        }
        reply(200, &json!({"acknowledged": true, "index": index}))
    }

    fn delete(&mut self, index: &str) -> Response {
        if self.indexes.remove(index).is_none() {
            return failed(404, "index_not_found_exception");
        }
        for names in self.aliases.values_mut() {
            names.remove(index);
        }
        self.aliases.retain(|_, names| !names.is_empty());
        reply(200, &json!({"acknowledged": true}))
    }

    fn switch(&mut self, body: &Value) -> Response {
        for action in body["actions"].as_array().unwrap() {
            let (action, what) = action.as_object().unwrap().iter().next().unwrap();
            let (index, alias) = (what["index"].as_str().unwrap(), what["alias"].as_str().unwrap());
            match action.as_str() {
                "remove" => {
                    let prefix = index.strip_suffix('*').unwrap();
                    if let Some(names) = self.aliases.get_mut(alias) {
                        names.retain(|name| !name.starts_with(prefix));
                    }
                }
                "add" => {
                    self.aliases.entry(alias.to_owned()).or_default().insert(index.to_owned());
                }
                other => return failed(400, other),
            }
        }
        reply(200, &json!({"acknowledged": true}))
    }

    fn refresh(&mut self, index: &str) -> Response {
        match self.indexes.get_mut(index) {
            Some(index) => {
                index.refresh();
                reply(200, &json!({"_shards": {"total": 1, "successful": 1, "failed": 0}}))
            }
            None => failed(404, "index_not_found_exception"),
        }
    }

    fn bulk(&mut self, alias: &str, query: &str, body: &str) -> Response {
        let refresh = match query {
            "require_alias=true&refresh=true" => true,
            "require_alias=true&refresh=false" => false,
            other => return failed(400, other),
        };
        assert!(body.ends_with('\n'), "the last line has an end");
        let lines: Vec<Value> = body.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let half = self.mode == Mode::TakeHalf;
        let index = self.aliases.get(alias).and_then(|names| names.first()).cloned();
        let mut index = index.and_then(|index| self.indexes.get_mut(&index));
        let mut items = Vec::new();
        for (number, pair) in lines.chunks(2).enumerate() {
            let [action, document] = pair else { return failed(400, "odd_lines") };
            let (id, version) =
                (action["index"]["_id"].as_str().unwrap(), action["index"]["version"].as_u64().unwrap());
            assert_eq!(action["index"]["version_type"], "external");
            let status = match &mut index {
                None => 404,
                Some(_) if half && number % 2 == 0 => 429,
                Some(index) if index.stored.get(id).is_some_and(|(known, _)| *known >= version) => 409,
                Some(index) => {
                    index.stored.insert(id.to_owned(), (version, document.clone()));
                    201
                }
            };
            let mut result = json!({"_id": id, "status": status});
            if status != 201 {
                result["error"] = json!({"type": "an_exception", "reason": "secret-reason"});
            }
            items.push(json!({"index": result}));
        }
        if let (Some(index), true) = (index, refresh) {
            index.refresh();
        }
        reply(200, &json!({"took": 1, "errors": false, "items": items}))
    }

    fn search(&mut self, index: &str, body: &Value) -> Response {
        let Some(index) = self.indexes.get(index) else { return failed(404, "index_not_found_exception") };
        let mut hits: Vec<(u64, &String, &Value)> = Vec::new();
        for (id, document) in &index.visible {
            if fulfils(&body["query"], document) {
                hits.push((score(&body["query"]["bool"]["must"], document), id, document));
            }
        }
        hits.sort_by(|one, other| (other.0, other.1).cmp(&(one.0, one.1)));
        let mut aggregations = Map::new();
        for (name, asked) in body["aggs"].as_object().into_iter().flatten() {
            let found = if asked.get("filter").is_some() {
                json!({"doc_count": hits.iter().filter(|(.., one)| fulfils(&asked["filter"], one)).count()})
            } else {
                let mut kinds: BTreeMap<&str, u64> = BTreeMap::new();
                for (.., document) in &hits {
                    *kinds.entry(document[asked["terms"]["field"].as_str().unwrap()].as_str().unwrap()).or_default() +=
                        1;
                }
                let buckets: Vec<Value> =
                    kinds.into_iter().map(|(key, count)| json!({"key": key, "doc_count": count})).collect();
                json!({"buckets": buckets})
            };
            aggregations.insert(name.clone(), found);
        }
        let mut suggest = Map::new();
        for (name, asked) in body["suggest"].as_object().into_iter().flatten() {
            let (word, most) = (asked["text"].as_str().unwrap(), asked["term"]["max_edits"].as_u64().unwrap());
            let vocabulary: BTreeSet<&str> = index.visible.values().flat_map(words).collect();
            let near = |other: &&str| {
                other.chars().next() == word.chars().next() && (1..=most).contains(&distance(word, other))
            };
            let options: Vec<Value> = vocabulary.into_iter().filter(near).map(|text| json!({"text": text})).collect();
            suggest.insert(name.clone(), json!([{"text": word, "options": options}]));
        }
        let (total, size) = (hits.len(), usize::try_from(body["size"].as_u64().unwrap()).unwrap());
        let listed: Vec<Value> = hits
            .into_iter()
            .take(size)
            .map(|(score, id, document)| {
                let wanted = body["_source"].as_array().unwrap();
                let source: Map<String, Value> = document
                    .as_object()
                    .unwrap()
                    .iter()
                    .filter(|(name, _)| wanted.contains(&Value::String((*name).clone())))
                    .map(|(name, value)| (name.clone(), value.clone()))
                    .collect();
                json!({"_id": id, "_score": score, "_source": source})
            })
            .collect();
        reply(
            200,
            &json!({
                "timed_out": false, "_shards": {"failed": 0}, "hits": {"total": {"value": total, "relation": "eq"}, "hits": listed},
                "aggregations": aggregations, "suggest": suggest,
            }),
        )
    }
}

impl Index {
    fn refresh(&mut self) {
        self.visible = self.stored.iter().map(|(id, (_, document))| (id.clone(), document.clone())).collect();
    }
}

fn words(document: &Value) -> impl Iterator<Item = &str> {
    document["terms"].as_str().into_iter().flat_map(|terms| terms.split(' '))
}

/// How often a document has a word of a range.
fn occurrences(range: &Value, document: &Value) -> u64 {
    let (kind, condition) = range.as_object().unwrap().iter().next().unwrap();
    let (field, value) = condition.as_object().unwrap().iter().next().unwrap();
    let value = &value["value"];
    if field != "terms" {
        return u64::from(document[field] == *value);
    }
    let value = value.as_str().unwrap();
    let has = |word: &&str| if kind == "prefix" { word.starts_with(value) } else { *word == value };
    words(document).filter(has).count() as u64
}

fn fulfils(query: &Value, document: &Value) -> bool {
    let (kind, inside) = query.as_object().unwrap().iter().next().unwrap();
    let all = |name: &str| inside[name].as_array().into_iter().flatten().all(|one| fulfils(one, document));
    match kind.as_str() {
        "bool" => {
            let none = !inside["must_not"].as_array().into_iter().flatten().any(|one| fulfils(one, document));
            all("must") && all("filter") && none
        }
        "dis_max" => inside["queries"].as_array().unwrap().iter().any(|one| fulfils(one, document)),
        "terms" => {
            let (field, values) = inside.as_object().unwrap().iter().next().unwrap();
            let values = values.as_array().unwrap();
            if field == "terms" {
                return words(document).any(|word| values.iter().any(|value| value == word));
            }
            values.contains(&document[field])
        }
        "term" | "prefix" => occurrences(query, document) > 0,
        other => panic!("{other} is asked for"),
    }
}

fn score(must: &Value, document: &Value) -> u64 {
    let best = |clause: &Value| {
        let ranges = clause["dis_max"]["queries"].as_array().unwrap().iter();
        ranges.map(|range| occurrences(range, document)).max().unwrap_or_default()
    };
    must.as_array().into_iter().flatten().map(best).sum()
}

/// The number of letters that differ, with neighbours exchanged counted as one.
fn distance(one: &str, other: &str) -> u64 {
    let (one, other): (Vec<char>, Vec<char>) = (one.chars().collect(), other.chars().collect());
    let mut rows = vec![vec![0_u64; other.len() + 1]; one.len() + 1];
    for i in 0..=one.len() {
        for j in 0..=other.len() {
            rows[i][j] = if i == 0 || j == 0 {
                (i + j) as u64
            } else {
                let change = rows[i - 1][j - 1] + u64::from(one[i - 1] != other[j - 1]);
                let mut least = change.min(rows[i - 1][j] + 1).min(rows[i][j - 1] + 1);
                if i > 1 && j > 1 && one[i - 1] == other[j - 2] && one[i - 2] == other[j - 1] {
                    least = least.min(rows[i - 2][j - 2] + 1);
                }
                least
            };
        }
    }
    rows[one.len()][other.len()]
}
