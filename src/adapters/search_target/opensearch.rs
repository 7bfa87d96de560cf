//! OpenSearch as a search target: an index for each version of each placed organization, over HTTP.
//!
//! Every document has the position of its content as its external version, so that a write that comes too late, or twice, is refused
//! by OpenSearch with a version conflict, which is a success here. What is found no more is a document without words and not a deletion:
//! a deleted document's version is forgotten after a while. Writes name an alias that only the version's own index has, and must name
//! one, so that a write to a dropped version makes no index.
//!
//! Words are made by the program, as for PostgreSQL; OpenSearch splits them at spaces and does nothing else to them. Queries are
//! `term` and `prefix` of them: no text of a caller is parsed there.

use std::{
    collections::{BTreeMap, HashSet},
    fmt::{self, Write as _},
    path::PathBuf,
    time::Duration,
};

use anyhow::Context;
use futures_util::future::BoxFuture;
use orgstream_events::{KindName, RecordId, SearchedField, cause};
use orgstream_projections::search::{
    Asked, FEW_HITS, Kinds, MAX_HITS, MAX_KINDS, MAX_NEIGHBOURS, Match, Matched, Ranked, distance_of,
    document::facet_term,
    query::{Clause, SearchQuery, TermRange},
    target::{Change, IndexVersion, IndexedRecord, SearchTarget, TargetError, Writer},
};
use reqwest::{
    Certificate, Method, StatusCode, Url,
    header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue},
    redirect::Policy,
};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Map, Value, json};
use zeroize::Zeroizing;

/// Timeout of a request, and how long OpenSearch may search.
const TIMEOUT: Duration = Duration::from_secs(5);
const SEARCHING: &str = "4s";
/// The largest answer.
const MAX_ANSWER: usize = 32 << 20;
/// The size from which on a bulk request gets no more documents.
const BULK: usize = 4 << 20;
/// How often a word is written into a document at most, however much it counts there.
const MAX_REPEATED: i16 = 64;
/// The largest file with a value of `Authorization`.
const MAX_AUTHORIZATION: usize = 8 << 10;
/// The longest beginning of the names of indexes.
const MAX_PREFIX: usize = 64;
/// The longest name of an error that is repeated.
const MAX_ERROR: usize = 64;
const JSON: &str = "application/json";
const NDJSON: &str = "application/x-ndjson";

/// The settings of an OpenSearch.
#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OpenSearchOptions {
    /// Its address.
    pub url: String,
    /// How the names of all indexes begin.
    #[serde(default = "usual_prefix")]
    pub prefix: String,
    /// Who may have signed its certificate, in PEM, besides those that this machine knows.
    pub ca: Option<PathBuf>,
    /// The file with the value of `Authorization`, which is read for every request.
    pub authorization_file: Option<PathBuf>,
}

fn usual_prefix() -> String {
    "orgstream-".to_owned()
}

/// An OpenSearch at one address.
pub struct OpenSearch {
    http: reqwest::Client,
    url: Url,
    prefix: String,
    authorization: Option<PathBuf>,
}

impl fmt::Debug for OpenSearch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The address may have a login.
        f.debug_struct("OpenSearch")
            .field("address", &self.address())
            .field("prefix", &self.prefix)
            .finish_non_exhaustive()
    }
}

/// The reason why a request was in vain.
#[derive(Debug, thiserror::Error)]
enum OpenSearchError {
    #[error("OpenSearch answers {status}{}", named(.kind.as_deref()))]
    Refused { status: StatusCode, kind: Option<String> },
    #[error("OpenSearch did not take {failed} of {all} documents: {status}{}", named(.kind.as_deref()))]
    NotTaken { failed: usize, all: usize, status: u16, kind: Option<String> },
    #[error("the answer of OpenSearch has more than {MAX_ANSWER} bytes")]
    TooLong,
    #[error("the answer of OpenSearch is not as it must be: {0}")]
    Malformed(&'static str),
    #[error("the file with the value of Authorization has none")]
    NoAuthorization,
}

fn named(kind: Option<&str>) -> String {
    kind.map(|kind| format!(" ({kind})")).unwrap_or_default()
}

impl From<OpenSearchError> for TargetError {
    fn from(error: OpenSearchError) -> Self {
        // Who may not come in, comes too often, or meets a fault of the server, does so with every index.
        let is_of_all = |status: u16| matches!(status, 401 | 403 | 429) || !(400..500).contains(&status);
        let is_away = match &error {
            OpenSearchError::Refused { status, .. } => is_of_all(status.as_u16()),
            OpenSearchError::NotTaken { status, .. } => is_of_all(*status),
            OpenSearchError::NoAuthorization => true,
            OpenSearchError::TooLong | OpenSearchError::Malformed(_) => false,
        };
        if is_away { Self::Away(cause(error)) } else { Self::OfIndex(cause(error)) }
    }
}

/// Returns the error of a request that has no answer.
fn unanswered(error: reqwest::Error) -> TargetError {
    TargetError::Away(cause(error.without_url()))
}

/// A body, with its type.
enum Body {
    None,
    Json(Value),
    Lines(String),
}

#[derive(Deserialize)]
struct BulkAnswer {
    #[serde(default)]
    items: Vec<BulkItem>,
}

#[derive(Deserialize)]
struct BulkItem {
    index: BulkResult,
}

#[derive(Deserialize)]
struct BulkResult {
    status: u16,
    error: Option<ErrorType>,
}

#[derive(Deserialize)]
struct ErrorType {
    #[serde(rename = "type")]
    kind: Option<String>,
}

#[derive(Deserialize)]
struct ErrorAnswer {
    error: ErrorType,
}

#[derive(Deserialize)]
struct SearchAnswer {
    timed_out: bool,
    #[serde(rename = "_shards")]
    shards: Shards,
    hits: Hits,
    #[serde(default)]
    aggregations: Map<String, Value>,
    #[serde(default)]
    suggest: BTreeMap<String, Vec<Suggestion>>,
}

#[derive(Deserialize)]
struct Shards {
    failed: u32,
}

#[derive(Deserialize)]
struct Hits {
    total: Option<Total>,
    #[serde(default)]
    hits: Vec<FoundDocument>,
}

#[derive(Deserialize)]
struct Total {
    value: u64,
}

#[derive(Deserialize)]
struct FoundDocument {
    #[serde(rename = "_id")]
    id: String,
    #[serde(rename = "_score")]
    score: Option<f64>,
    #[serde(rename = "_source")]
    source: Source,
}

#[derive(Deserialize)]
struct Source {
    org: String,
    kind: String,
    title: Option<String>,
    #[serde(default)]
    truncated: bool,
    #[serde(default)]
    fields: Vec<SearchedField>,
    #[serde(default)]
    facets: Map<String, Value>,
    #[serde(default)]
    seq: u64,
}

#[derive(Deserialize)]
struct Suggestion {
    #[serde(default)]
    options: Vec<SuggestedWord>,
}

#[derive(Deserialize)]
struct SuggestedWord {
    text: String,
}

impl OpenSearch {
    /// Creates the adapter. It connects with its first use.
    pub fn new(options: OpenSearchOptions) -> anyhow::Result<Self> {
        let OpenSearchOptions { url, prefix, ca, authorization_file } = options;
        let is_plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-_".contains(&byte);
        let begins = prefix.bytes().next().is_some_and(|byte| byte.is_ascii_lowercase());
        anyhow::ensure!(
            begins && prefix.len() <= MAX_PREFIX && prefix.bytes().all(is_plain),
            "prefix: 1 to {MAX_PREFIX} characters a-z, 0-9, - and _, the first one a letter"
        );
        // The parser's error may repeat the address, which may have a login.
        let mut url: Url = format!("{}/", url.trim_end_matches('/'))
            .parse()
            .map_err(|_| anyhow::anyhow!("url: this is no address"))?;
        let is_local = matches!(url.host_str(), Some("localhost" | "127.0.0.1" | "[::1]"));
        let has_secret = authorization_file.is_some() || !url.username().is_empty() || url.password().is_some();
        match url.scheme() {
            "https" => {}
            "http" if is_local || !has_secret => {}
            "http" => anyhow::bail!("url: credentials are sent over https only"),
            _ => anyhow::bail!("url: it must begin with https:// or http://"),
        }
        url.set_query(None);
        // Neither a redirect nor a proxy is given the credentials.
        let http = reqwest::Client::builder().timeout(TIMEOUT).redirect(Policy::none()).no_proxy();
        let http = match ca {
            None => http,
            Some(path) => {
                let pem = std::fs::read(&path).with_context(|| format!("ca: {} cannot be read", path.display()))?;
                let certificates = Certificate::from_pem_bundle(&pem)
                    .with_context(|| format!("ca: {} has no certificates", path.display()))?;
                http.tls_certs_merge(certificates)
            }
        };
        Ok(Self { http: http.build()?, url, prefix, authorization: authorization_file })
    }

    /// Returns its address, without a login.
    pub fn address(&self) -> String {
        crate::secret::Address::from(self.url.as_str().trim_end_matches('/').to_owned()).to_string()
    }

    /// The name that the organization's shown index has.
    fn alias(&self, at: IndexVersion) -> String {
        format!("{}{}", self.prefix, at.org.org())
    }

    /// The name of a version.
    fn index(&self, at: IndexVersion) -> String {
        format!("{}-v{}", self.alias(at), at.version)
    }

    /// The name that a version is written by.
    fn written(&self, at: IndexVersion) -> String {
        format!("{}-write", self.index(at))
    }

    async fn authorization(&self) -> Result<Option<HeaderValue>, TargetError> {
        let Some(path) = &self.authorization else { return Ok(None) };
        let content = tokio::fs::read(path).await.map(Zeroizing::new);
        let content = content.map_err(|error| TargetError::Away(cause(error)))?;
        let text = std::str::from_utf8(&content).ok().map(str::trim);
        let text = text.filter(|text| !text.is_empty() && text.len() <= MAX_AUTHORIZATION);
        let value = text.and_then(|text| HeaderValue::from_str(text).ok());
        let mut value = value.ok_or(OpenSearchError::NoAuthorization)?;
        value.set_sensitive(true);
        Ok(Some(value))
    }

    /// Sends a request, and reads the whole answer.
    async fn send(&self, method: Method, path: &str, body: Body) -> Result<(StatusCode, Vec<u8>), TargetError> {
        let url = self.url.join(path).map_err(|error| TargetError::OfIndex(cause(error)))?;
        let request = self.http.request(method, url);
        let request = match body {
            Body::None => request,
            Body::Json(body) => request.header(CONTENT_TYPE, JSON).body(body.to_string()),
            Body::Lines(lines) => request.header(CONTENT_TYPE, NDJSON).body(lines),
        };
        let request = match self.authorization().await? {
            Some(value) => request.header(AUTHORIZATION, value),
            None => request,
        };
        let mut answer = request.send().await.map_err(unanswered)?;
        let (status, mut content) = (answer.status(), Vec::new());
        while let Some(chunk) = answer.chunk().await.map_err(unanswered)? {
            if content.len() + chunk.len() > MAX_ANSWER {
                return Err(OpenSearchError::TooLong.into());
            }
            content.extend_from_slice(&chunk);
        }
        Ok((status, content))
    }

    /// Sends a request that must succeed, and reads the answer as JSON.
    async fn ask<T: DeserializeOwned>(&self, method: Method, path: &str, body: Body) -> Result<T, TargetError> {
        let (status, content) = self.send(method, path, body).await?;
        if !status.is_success() {
            return Err(refused(status, &content).into());
        }
        read(&content)
    }

    async fn write_changes(&self, at: IndexVersion, writer: Writer, changes: &[Change]) -> Result<(), TargetError> {
        let mut requests: Vec<(String, usize)> = Vec::new();
        for change in changes {
            let line = lines_of(at, change);
            match requests.last_mut() {
                Some((lines, documents)) if lines.len() + line.len() <= BULK => {
                    lines.push_str(&line);
                    *documents += 1;
                }
                _ => requests.push((line, 1)),
            }
        }
        let (mut were_there, last) = (false, requests.len());
        for (number, (lines, documents)) in (1..).zip(requests) {
            // All documents of the version are in one shard, so the last request refreshes what all of them wrote.
            let refresh = writer.is_shown && number == last;
            let path = format!("{}/_bulk?require_alias=true&refresh={refresh}", self.written(at));
            let answer: BulkAnswer = self.ask(Method::POST, &path, Body::Lines(lines)).await?;
            were_there |= taken(&answer, documents)?;
        }
        if were_there && writer.is_shown {
            // Of an earlier try that wrote them, it is not known whether it came to its refresh.
            self.refresh(at).await?;
        }
        Ok(())
    }

    async fn refresh(&self, at: IndexVersion) -> Result<(), TargetError> {
        let answer: Value = self.ask(Method::POST, &format!("{}/_refresh", self.index(at)), Body::None).await?;
        match answer.pointer("/_shards/failed").and_then(Value::as_u64) {
            Some(0) => Ok(()),
            _ => Err(OpenSearchError::Malformed("not all shards were refreshed").into()),
        }
    }

    async fn create_index(&self, at: IndexVersion) -> Result<(), TargetError> {
        let (status, content) =
            self.send(Method::PUT, &self.index(at), Body::Json(index_body(&self.written(at)))).await?;
        let error = refused(status, &content);
        match &error {
            _ if status.is_success() => Ok(()),
            OpenSearchError::Refused { kind: Some(kind), .. } if kind == "resource_already_exists_exception" => Ok(()),
            _ => Err(error.into()),
        }
    }

    async fn show_index(&self, at: IndexVersion) -> Result<(), TargetError> {
        self.refresh(at).await?;
        let (alias, index) = (self.alias(at), self.index(at));
        let actions = json!({"actions": [
            {"remove": {"index": format!("{alias}-v*"), "alias": alias}},
            {"add": {"index": index, "alias": alias}},
        ]});
        let _: Value = self.ask(Method::POST, "_aliases", Body::Json(actions)).await?;
        Ok(())
    }

    async fn delete_index(&self, at: IndexVersion) -> Result<bool, TargetError> {
        let (status, content) = self.send(Method::DELETE, &self.index(at), Body::None).await?;
        match status {
            StatusCode::NOT_FOUND => Ok(true),
            _ if status.is_success() => Ok(true),
            _ => Err(refused(status, &content).into()),
        }
    }

    async fn search(&self, at: IndexVersion, body: Value) -> Result<SearchAnswer, TargetError> {
        let path = format!("{}/_search", self.index(at));
        let answer: SearchAnswer = self.ask(Method::POST, &path, Body::Json(body)).await?;
        if answer.timed_out || answer.shards.failed > 0 {
            return Err(OpenSearchError::Malformed("it is not complete").into());
        }
        // Whatever a name stands for: nothing of another organization is passed on.
        let own = at.org.org().to_string();
        if answer.hits.hits.iter().any(|hit| hit.source.org != own) {
            return Err(OpenSearchError::Malformed("it has documents of another organization").into());
        }
        Ok(answer)
    }

    async fn find(&self, at: IndexVersion, asked: Asked<'_>) -> Result<Matched, TargetError> {
        let is_empty = matches!(asked.kinds, Kinds::These([])) || asked.query.clauses.is_empty();
        if is_empty {
            return Ok(Matched { is_complete: true, ..Matched::default() });
        }
        let mut matched = Matched { is_complete: true, query: asked.query.clone(), ..Matched::default() };
        let mut answer = self.search(at, query_body(at, asked, &matched.query)).await?;
        if total(&answer)? < FEW_HITS {
            matched.neighbours = self.respell(at, asked, &mut matched.query).await?;
            if !matched.neighbours.is_empty() {
                answer = self.search(at, query_body(at, asked, &matched.query)).await?;
            }
        }
        matched.total = total(&answer)?;
        for bucket in buckets(&answer.aggregations) {
            let (Some(kind), Some(count)) = (bucket.get("key"), bucket.get("doc_count").and_then(Value::as_u64)) else {
                return Err(OpenSearchError::Malformed("it counts no kinds").into());
            };
            matched.kinds.insert(kind_of(kind.as_str().unwrap_or_default())?, count);
        }
        for hit in answer.hits.hits {
            let score = (hit.score.unwrap_or_default() * 1e6).round() as i64;
            let ranked = Ranked { id: id_of(&hit.id)?, score };
            matched.best.push(Match { ranked, kind: kind_of(&hit.source.kind)? });
        }
        Ok(matched)
    }

    /// Adds words that are written alike to the conditions that no record fulfils. Returns them by the word that was asked for.
    async fn respell(
        &self,
        at: IndexVersion,
        asked: Asked<'_>,
        query: &mut SearchQuery,
    ) -> Result<BTreeMap<String, Vec<String>>, TargetError> {
        let candidates: Vec<(usize, String, usize)> = (0..)
            .zip(&query.clauses)
            .filter(|(_, clause)| clause.may_be_misspelt)
            .filter_map(|(place, clause)| {
                let term = clause.ranges.first()?.term.clone();
                let most = distance_of(&term)?;
                Some((place, term, most))
            })
            .collect();
        if candidates.is_empty() {
            return Ok(BTreeMap::new());
        }
        let (mut counts, mut words) = (Map::new(), Map::new());
        for (place, term, most) in &candidates {
            let clause = query.clauses.get(*place).map(clause_query).unwrap_or_default();
            counts.insert(place.to_string(), json!({"filter": clause}));
            let alike = json!({
                "field": "terms", "suggest_mode": "always", "max_edits": most, "prefix_length": 1, "min_word_length": 3,
                "size": MAX_NEIGHBOURS,
            });
            words.insert(place.to_string(), json!({"text": term, "term": alike}));
        }
        let body = json!({
            "size": 0, "timeout": SEARCHING, "query": {"bool": {"filter": scope(at, asked.kinds)}}, "aggs": counts,
            "suggest": words,
        });
        let mut answer = self.search(at, body).await?;
        let mut neighbours = BTreeMap::new();
        for (place, term, _) in candidates {
            let key = place.to_string();
            let count = answer.aggregations.get(&key).and_then(|count| count.get("doc_count")).and_then(Value::as_u64);
            if count.ok_or(OpenSearchError::Malformed("it counts no conditions"))? > 0 {
                continue;
            }
            let options = answer.suggest.remove(&key).unwrap_or_default().into_iter().flat_map(|one| one.options);
            let mut seen = HashSet::from([term.clone()]);
            let found: Vec<String> =
                options.map(|one| one.text).filter(|text| seen.insert(text.clone())).take(MAX_NEIGHBOURS).collect();
            let (Some(clause), false) = (query.clauses.get_mut(place), found.is_empty()) else { continue };
            let range = |term: &String| TermRange { term: term.clone(), is_prefix: false };
            clause.ranges.extend(found.iter().map(range));
            neighbours.insert(term, found);
        }
        Ok(neighbours)
    }

    async fn read_records(&self, at: IndexVersion, ids: &[RecordId]) -> Result<Vec<IndexedRecord>, TargetError> {
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        let texts: Vec<String> = ids.iter().map(ToString::to_string).collect();
        let mut filter = scope(at, Kinds::All);
        filter.push(json!({"terms": {"id": texts}}));
        let body = json!({
            "size": ids.len(), "timeout": SEARCHING, "query": {"bool": {"filter": filter}},
            "_source": ["org", "kind", "title", "truncated", "fields", "facets", "seq"],
        });
        let answer = self.search(at, body).await?;
        let record = |hit: FoundDocument| {
            let Source { kind, title, truncated, fields, facets, seq, .. } = hit.source;
            let (id, kind) = (id_of(&hit.id)?, kind_of(&kind)?);
            Ok(IndexedRecord { id, kind, title, is_truncated: truncated, fields, facets, seq })
        };
        answer.hits.hits.into_iter().map(record).collect()
    }
}

/// Returns what an answer that is no success says.
fn refused(status: StatusCode, content: &[u8]) -> OpenSearchError {
    let kind = serde_json::from_slice::<ErrorAnswer>(content).ok().and_then(|answer| answer.error.kind);
    OpenSearchError::Refused { status, kind: kind.and_then(plain) }
}

/// Returns the name of an error, if it is one: reasons may repeat a document.
fn plain(kind: String) -> Option<String> {
    let is_plain = |byte: u8| byte.is_ascii_lowercase() || byte == b'_';
    (kind.len() <= MAX_ERROR && kind.bytes().all(is_plain)).then_some(kind)
}

fn read<T: DeserializeOwned>(content: &[u8]) -> Result<T, TargetError> {
    // Errors of the parser may repeat what they have read.
    serde_json::from_slice(content).map_err(|_| OpenSearchError::Malformed("it cannot be read").into())
}

/// Fails unless all documents of a bulk request are there now. Returns whether some were there before, or newer ones.
fn taken(answer: &BulkAnswer, documents: usize) -> Result<bool, TargetError> {
    if answer.items.len() != documents {
        return Err(OpenSearchError::Malformed("it does not name every document").into());
    }
    let is_there = |one: &BulkResult| one.status == StatusCode::CONFLICT.as_u16();
    let failed: Vec<&BulkResult> = answer
        .items
        .iter()
        .map(|item| &item.index)
        .filter(|one| !(200..300).contains(&one.status) && !is_there(one))
        .collect();
    if let Some(first) = failed.first() {
        let kind = first.error.as_ref().and_then(|error| error.kind.clone()).and_then(plain);
        let error = OpenSearchError::NotTaken { failed: failed.len(), all: documents, status: first.status, kind };
        return Err(error.into());
    }
    Ok(answer.items.iter().any(|item| is_there(&item.index)))
}

fn total(answer: &SearchAnswer) -> Result<u64, TargetError> {
    let total = answer.hits.total.as_ref().map(|total| total.value);
    total.ok_or_else(|| OpenSearchError::Malformed("it has no number of hits").into())
}

fn buckets(aggregations: &Map<String, Value>) -> &[Value] {
    let buckets = aggregations.get("kinds").and_then(|kinds| kinds.get("buckets")).and_then(Value::as_array);
    buckets.map_or(&[], Vec::as_slice)
}

fn id_of(text: &str) -> Result<RecordId, TargetError> {
    text.parse().map_err(|_| OpenSearchError::Malformed("it has a document that is no record").into())
}

fn kind_of(text: &str) -> Result<KindName, TargetError> {
    text.parse().map_err(|_| OpenSearchError::Malformed("it has a document of no kind").into())
}

/// The settings of an index, and how its documents are read.
fn index_body(written: &str) -> Value {
    let stored = json!({"type": "object", "enabled": false});
    json!({
        "settings": {
            "index": {"number_of_shards": 1},
            "analysis": {
                "tokenizer": {"spaces": {"type": "pattern", "pattern": " "}},
                "analyzer": {"terms": {"type": "custom", "tokenizer": "spaces"}},
            },
        },
        "mappings": {"dynamic": false, "properties": {
            "org": {"type": "keyword"},
            "id": {"type": "keyword"},
            "kind": {"type": "keyword"},
            "removed": {"type": "boolean"},
            "terms": {"type": "text", "analyzer": "terms", "index_options": "freqs"},
            "title": {"type": "keyword", "index": false, "doc_values": false},
            "truncated": {"type": "boolean", "index": false, "doc_values": false},
            "seq": {"type": "long", "index": false, "doc_values": false},
            "fields": stored,
            "facets": stored,
        }},
        "aliases": {written: {}},
    })
}

/// Returns the two lines of a change in a bulk request.
fn lines_of(at: IndexVersion, change: &Change) -> String {
    let Change { id, seq, found } = change;
    let action = json!({"index": {"_id": id.to_string(), "version": seq, "version_type": "external"}});
    let org = at.org.org().to_string();
    let document = match found {
        None => json!({"org": org, "id": id.to_string(), "removed": true, "seq": seq}),
        Some(found) => {
            let document = &found.document;
            let mut terms = String::new();
            for (term, weight) in &document.terms {
                for _ in 0..(*weight).clamp(1, MAX_REPEATED) {
                    terms.push_str(if terms.is_empty() { "" } else { " " });
                    terms.push_str(term);
                }
            }
            json!({
                "org": org, "id": id.to_string(), "removed": false, "seq": seq, "kind": found.kind.as_str(),
                "terms": terms, "title": document.title, "truncated": document.is_truncated, "fields": found.fields,
                "facets": document.facets,
            })
        }
    };
    let mut lines = String::new();
    // Writing to a text does not fail.
    let _ = writeln!(lines, "{action}\n{document}");
    lines
}

/// The conditions that every query has: the organization's own documents that are found, of these kinds.
fn scope(at: IndexVersion, kinds: Kinds<'_>) -> Vec<Value> {
    let mut scope = vec![
        json!({"term": {"org": {"value": at.org.org().to_string()}}}),
        json!({"term": {"removed": {"value": false}}}),
    ];
    if let Kinds::These(kinds) = kinds {
        let kinds: Vec<&str> = kinds.iter().map(KindName::as_str).collect();
        scope.push(json!({"terms": {"kind": kinds}}));
    }
    scope
}

fn range_query(TermRange { term, is_prefix }: &TermRange) -> Value {
    let condition = json!({"terms": {"value": term}});
    if *is_prefix { json!({"prefix": condition}) } else { json!({"term": condition}) }
}

/// A record has a term of one of the ranges, and is as good as its best.
fn clause_query(clause: &Clause) -> Value {
    let ranges: Vec<Value> = clause.ranges.iter().map(range_query).collect();
    json!({"dis_max": {"queries": ranges}})
}

fn term_query(term: &str) -> Value {
    range_query(&TermRange { term: term.to_owned(), is_prefix: false })
}

fn query_body(at: IndexVersion, asked: Asked<'_>, query: &SearchQuery) -> Value {
    let must: Vec<Value> = query.clauses.iter().map(clause_query).collect();
    let mut filter = scope(at, asked.kinds);
    for (field, values) in asked.facets {
        let terms: Vec<String> = values.iter().map(|value| facet_term(field, value)).collect();
        filter.push(json!({"terms": {"terms": terms}}));
    }
    let without = |terms: &Vec<String>| {
        let all: Vec<Value> = terms.iter().map(|term| term_query(term)).collect();
        json!({"bool": {"filter": all}})
    };
    let must_not: Vec<Value> = query.without.iter().map(without).collect();
    json!({
        "size": MAX_HITS,
        "timeout": SEARCHING,
        "track_total_hits": true,
        "track_scores": true,
        "sort": [{"_score": "desc"}, {"id": "desc"}],
        "_source": ["org", "kind"],
        "query": {"bool": {"must": must, "filter": filter, "must_not": must_not}},
        "aggs": {"kinds": {"terms": {"field": "kind", "size": MAX_KINDS}}},
    })
}

impl SearchTarget for OpenSearch {
    fn check(&self) -> BoxFuture<'_, Result<(), TargetError>> {
        Box::pin(async {
            let answer: Value = self.ask(Method::GET, "", Body::None).await?;
            match answer.pointer("/version/number").and_then(Value::as_str) {
                Some(_) => Ok(()),
                None => Err(OpenSearchError::Malformed("it names no version").into()),
            }
        })
    }

    fn create(&self, at: IndexVersion) -> BoxFuture<'_, Result<(), TargetError>> {
        Box::pin(self.create_index(at))
    }

    fn write<'a>(
        &'a self,
        at: IndexVersion,
        writer: Writer,
        changes: &'a [Change],
    ) -> BoxFuture<'a, Result<(), TargetError>> {
        Box::pin(self.write_changes(at, writer, changes))
    }

    fn show(&self, at: IndexVersion) -> BoxFuture<'_, Result<(), TargetError>> {
        Box::pin(self.show_index(at))
    }

    fn drop_version(&self, at: IndexVersion, _: u32) -> BoxFuture<'_, Result<bool, TargetError>> {
        Box::pin(self.delete_index(at))
    }

    fn matching<'a>(&'a self, at: IndexVersion, asked: Asked<'a>) -> BoxFuture<'a, Result<Matched, TargetError>> {
        Box::pin(self.find(at, asked))
    }

    fn records<'a>(
        &'a self,
        at: IndexVersion,
        ids: &'a [RecordId],
    ) -> BoxFuture<'a, Result<Vec<IndexedRecord>, TargetError>> {
        Box::pin(self.read_records(at, ids))
    }
}
