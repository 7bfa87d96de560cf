//! How a query finds records: by ranges of one organization's postings, ranked by that organization's figures alone.
//!
//! What a query reads is bounded, however many records there are: at most [`MAX_MATCHES`] postings of each condition. The rarest
//! conditions choose the candidates, and the others are looked up for each of these by the whole key.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
};

use orgstream_events::{KindName, PLATFORM_ORG, RecordId, SearchRole, SearchedField};
use serde_json::{Map, Value};
use sqlx::{AssertSqlSafe, FromRow, postgres::PgRow, types::Json};
use uuid::Uuid;

use super::{
    SEPARATOR,
    document::{MAX_TEXT, beginning, facet_term, texts},
    key_of,
    query::{Clause, SearchQuery, TermRange},
    snippet::{Snippet, snippet},
    target::IndexedRecord,
};
use crate::{
    DbError, TenantTx,
    convert::{Document, column, from_bigint, parsed},
};

/// The most postings of a condition that are read. A term with more counts as one that every record has.
pub const MAX_MATCHES: u32 = 10_000;
/// The most hits that are listed.
pub const MAX_HITS: u16 = 1_000;
/// The most kinds that are searched at once.
pub const MAX_KINDS: u16 = 200;
/// A condition is looked up for each candidate if it has so many more postings than the rarest one.
const COMMON: u64 = 8;
/// Below this number of postings a condition is read and not looked up.
const FEW: u64 = 500;
/// With fewer hits, words that are written alike stand for those that no record has.
pub const FEW_HITS: u64 = 5;
/// The most words that stand for one.
pub const MAX_NEIGHBOURS: usize = 5;
/// The most words that are compared with one.
const MAX_COMPARED: i64 = 2_000;
/// The length of a word from which two letters may differ, in characters.
const LONG: usize = 8;
/// The shortest word that may be misspelt.
const SHORT: usize = 3;
/// The parameters of BM25.
const K1: f64 = 1.2;
const B: f64 = 0.75;
/// The hits whose phrases are looked for at a time: the fewest and the most, and their text in bytes, about. And the most text that
/// is looked through.
const AT_ONCE: (usize, usize) = (20, 250);
const TEXT_AT_ONCE: usize = 1 << 20;
const MAX_PHRASE_TEXT: usize = 8 << 20;

/// Which kinds are searched.
#[derive(Debug, Clone, Copy)]
pub enum Kinds<'a> {
    /// All.
    All,
    /// These.
    These(&'a [KindName]),
}

/// A search.
#[derive(Debug, Clone, Copy)]
pub struct Asked<'a> {
    /// What for.
    pub query: &'a SearchQuery,
    /// In which kinds.
    pub kinds: Kinds<'a>,
    /// The values that facets must have, by field: one of each list.
    pub facets: &'a BTreeMap<String, Vec<String>>,
    /// Whether the values of facets are counted.
    pub count_facets: bool,
}

/// The result of a search.
#[derive(Debug, Default)]
pub struct Found {
    /// The best hits, at most [`MAX_HITS`], the best first.
    pub ranked: Vec<Ranked>,
    /// The number of hits.
    pub total: u64,
    /// Whether all that may match was looked at.
    pub is_complete: bool,
    /// The number of hits of each kind.
    pub kinds: BTreeMap<KindName, u64>,
    /// The number of the best hits with each value, by facet.
    pub facets: BTreeMap<String, BTreeMap<String, u64>>,
    /// The words that stood for others, by the word that was asked for.
    pub neighbours: BTreeMap<String, Vec<String>>,
    /// The query with these words.
    pub query: SearchQuery,
}

/// A hit before it is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ranked {
    /// Its id.
    pub id: RecordId,
    /// How well it fits, in millionths.
    pub score: i64,
}

/// A record that was found.
#[derive(Debug, Clone, PartialEq)]
pub struct Hit {
    /// Its id.
    pub id: RecordId,
    /// Its kind.
    pub kind: KindName,
    /// Its title, if it has one.
    pub title: Option<String>,
    /// How well it fits, in millionths.
    pub score: i64,
    /// The pieces of its texts.
    pub pieces: Vec<Piece>,
    /// Whether it has more text than is searched.
    pub is_truncated: bool,
    /// The stream sequence of its content.
    pub seq: u64,
}

/// A piece of a field's text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    /// The field.
    pub field: String,
    /// The piece.
    pub snippet: Snippet,
}

/// A condition, as it is looked for.
struct Condition {
    ranges: Vec<Range>,
}

struct Range {
    terms: TermRange,
    /// The number of its postings.
    count: u64,
    /// What each occurrence counts for. Nothing, for a condition that only filters.
    idf: f64,
}

/// What is searched.
struct Corpus {
    kinds: Vec<String>,
    documents: u64,
    average: f64,
    is_complete: bool,
}

/// The records that fulfil all conditions but the phrases.
#[derive(Debug, Default)]
pub struct Matched {
    /// The best, at most [`MAX_HITS`], the best first.
    pub best: Vec<Match>,
    /// The number of all.
    pub total: u64,
    /// The number of those of each kind.
    pub kinds: BTreeMap<KindName, u64>,
    /// Whether all that may match was looked at.
    pub is_complete: bool,
    /// The words that stood for others, by the word that was asked for.
    pub neighbours: BTreeMap<String, Vec<String>>,
    /// The query with these words.
    pub query: SearchQuery,
}

/// A record that fulfils all conditions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Match {
    /// The record, and how well it fits.
    pub ranked: Ranked,
    /// Its kind.
    pub kind: KindName,
}

/// Finds records of the organization of `tx`, where its index is. A query that asks for nothing finds nothing.
pub async fn find(tx: &mut TenantTx, asked: Asked<'_>) -> Result<Found, DbError> {
    let matched = match tx.search_index().await? {
        Some(index) => index.matching(asked).await?,
        None => matching_here(tx, asked).await?,
    };
    let Matched { mut best, total, kinds, is_complete, neighbours, query } = matched;
    let mut found = Found { total, is_complete, kinds, neighbours, query, ..Found::default() };
    if !found.query.phrases.is_empty() {
        let (kept, is_all) = with_phrases(tx, best, &found.query).await?;
        best = kept;
        found.is_complete &= is_all && total <= u64::from(MAX_HITS);
        found.total = best.len() as u64;
        found.kinds = BTreeMap::new();
        for one in &best {
            *found.kinds.entry(one.kind.clone()).or_default() += 1;
        }
    }
    found.ranked = best.iter().map(|one| one.ranked).collect();
    if asked.count_facets {
        found.facets = count_facets(tx, &found.ranked).await?;
    }
    Ok(found)
}

/// Finds records by the postings of the database of `tx`.
pub(super) async fn matching_here(tx: &mut TenantTx, asked: Asked<'_>) -> Result<Matched, DbError> {
    let corpus = corpus(tx, asked.kinds).await?;
    let mut matched = Matched { is_complete: corpus.is_complete, ..Matched::default() };
    if asked.query.clauses.is_empty() || corpus.kinds.is_empty() {
        return Ok(matched);
    }
    let mut conditions: Vec<Condition> = asked.query.clauses.iter().map(Condition::of).collect();
    for (field, values) in asked.facets {
        let term = |value: &String| TermRange { term: facet_term(field, value), is_prefix: false };
        conditions.push(Condition::one_of(values.iter().map(term)));
    }
    count(tx, &corpus, &mut conditions).await?;
    let words = asked.query.clauses.len();
    for condition in conditions.iter_mut().take(words) {
        condition.weigh(corpus.documents);
    }
    matched.query = asked.query.clone();
    let mut matches = matching(tx, &corpus, &conditions, &matched.query).await?;
    if matches.total < FEW_HITS {
        matched.neighbours = respell(tx, &corpus, &mut conditions, &mut matched.query).await?;
        if !matched.neighbours.is_empty() {
            for condition in conditions.iter_mut().take(words) {
                condition.weigh(corpus.documents);
            }
            matches = matching(tx, &corpus, &conditions, &matched.query).await?;
        }
    }
    matched.is_complete &= matches.is_complete;
    matched.total = matches.total;
    for (kind, count) in matches.kinds {
        matched.kinds.insert(kind_of(&corpus, kind)?, count);
    }
    matched.best = matches.best;
    Ok(matched)
}

/// Reads hits of a search in their order, as the organization of `tx` has them now. `query` is the one that found them.
pub async fn hits(tx: &mut TenantTx, query: &SearchQuery, ranked: &[Ranked]) -> Result<Vec<Hit>, DbError> {
    let mut rows = rows(tx, ranked).await?;
    Ok(ranked.iter().filter_map(|one| Some(rows.remove(&one.id)?.hit(one.score, query))).collect())
}

impl Condition {
    fn of(clause: &Clause) -> Self {
        Self::one_of(clause.ranges.iter().cloned())
    }

    fn one_of(ranges: impl Iterator<Item = TermRange>) -> Self {
        Self { ranges: ranges.map(|terms| Range { terms, count: 0, idf: 0.0 }).collect() }
    }

    fn count(&self) -> u64 {
        self.ranges.iter().map(|range| range.count).sum()
    }

    /// Whether it can be looked up by whole keys.
    fn is_exact(&self) -> bool {
        self.ranges.iter().all(|range| !range.terms.is_prefix)
    }

    /// Gives the ranges their weights, by the number of records that have them.
    fn weigh(&mut self, documents: u64) {
        for range in &mut self.ranges {
            let is_everywhere = range.count > u64::from(MAX_MATCHES) || range.count > documents;
            let count = if is_everywhere { documents } else { range.count } as f64;
            range.idf = (1.0 + (documents as f64 - count + 0.5) / (count + 0.5)).ln();
        }
    }
}

/// Returns what is searched: the kinds that the organization has records of, and their figures.
async fn corpus(tx: &mut TenantTx, kinds: Kinds<'_>) -> Result<Corpus, DbError> {
    let org = tx.org().uuid();
    let rows = sqlx::query!(
        "SELECT kind, documents, length FROM rm.search_statistics WHERE org_id = $1 ORDER BY kind LIMIT $2",
        org,
        i64::from(MAX_KINDS) + 1,
    );
    let rows = rows.fetch_all(tx.connection()).await?;
    let wanted = |kind: &str| match kinds {
        Kinds::All => true,
        Kinds::These(kinds) => kinds.iter().any(|wanted| wanted.as_str() == kind),
    };
    let is_complete = rows.len() <= usize::from(MAX_KINDS);
    let mut corpus = Corpus { kinds: Vec::new(), documents: 0, average: 1.0, is_complete };
    let mut words = 0;
    for row in rows.into_iter().filter(|row| wanted(&row.kind)) {
        corpus.documents += from_bigint(row.documents);
        words += from_bigint(row.length);
        corpus.kinds.push(row.kind);
    }
    corpus.average = (words as f64 / corpus.documents.max(1) as f64).max(1.0);
    Ok(corpus)
}

/// Returns the keys of a range in one kind: from the first on, and before the second.
fn keys(kind: &str, range: &TermRange) -> (Vec<u8>, Vec<u8>) {
    let begins = key_of(kind, &range.term);
    if range.is_prefix {
        // No text in UTF-8 has this byte.
        let end = [begins.as_slice(), &[u8::MAX]].concat();
        return (begins, end);
    }
    let end = [begins.as_slice(), &[SEPARATOR + 1]].concat();
    ([begins.as_slice(), &[SEPARATOR]].concat(), end)
}

/// Counts the postings of each range, up to one more than are read.
async fn count(tx: &mut TenantTx, corpus: &Corpus, conditions: &mut [Condition]) -> Result<(), DbError> {
    let mut bounds = Vec::new();
    for range in conditions.iter().flat_map(|condition| &condition.ranges) {
        bounds.extend(corpus.kinds.iter().map(|kind| keys(kind, &range.terms)));
    }
    let org = tx.org().uuid();
    let counts = sqlx::query_scalar!(
        r#"SELECT (
            SELECT count(*) FROM (
                SELECT FROM rm.postings WHERE org_id = $1 AND key >= item.low AND key < item.high LIMIT $4
            ) AS posting
        ) AS "count!"
        FROM unnest($2::bytea[], $3::bytea[]) WITH ORDINALITY AS item (low, high, place) ORDER BY item.place"#,
        org,
        column(&bounds, |(low, _)| low.as_slice()) as _,
        column(&bounds, |(_, high)| high.as_slice()) as _,
        i64::from(MAX_MATCHES) + 1,
    );
    let mut counts = counts.fetch_all(tx.connection()).await?.into_iter();
    for range in conditions.iter_mut().flat_map(|condition| &mut condition.ranges) {
        range.count = counts.by_ref().take(corpus.kinds.len()).map(from_bigint).sum();
    }
    Ok(())
}

/// The candidates that fulfil all conditions.
#[derive(Default)]
struct Matches {
    total: u64,
    kinds: Vec<(i32, u64)>,
    best: Vec<Match>,
    is_complete: bool,
}

/// One range of a condition in one kind.
struct Lookup {
    condition: i32,
    kind: i32,
    low: Vec<u8>,
    high: Vec<u8>,
    idf: f64,
}

fn lookups<'a>(corpus: &'a Corpus, conditions: &'a [(i32, &'a Condition)]) -> impl Iterator<Item = Lookup> + use<'a> {
    conditions.iter().flat_map(move |(condition, one)| {
        one.ranges.iter().flat_map(move |range| {
            (0..).zip(&corpus.kinds).map(move |(kind, name)| {
                let (low, high) = keys(name, &range.terms);
                Lookup { condition: *condition, kind, low, high, idf: range.idf }
            })
        })
    })
}

/// Returns the candidates that fulfil all conditions, and none of those that are excluded.
async fn matching(
    tx: &mut TenantTx,
    corpus: &Corpus,
    conditions: &[Condition],
    query: &SearchQuery,
) -> Result<Matches, DbError> {
    let rarest = conditions.iter().map(Condition::count).min().unwrap_or_default();
    if rarest == 0 {
        return Ok(Matches { is_complete: true, ..Matches::default() });
    }
    let is_read = |condition: &Condition| condition.count() <= FEW.max(COMMON * rarest) || !condition.is_exact();
    let numbered = (0..).zip(conditions);
    let (read, looked_up): (Vec<_>, Vec<_>) = numbered.partition(|(_, condition)| is_read(condition));
    let is_complete = read.iter().flat_map(|(_, one)| &one.ranges).all(|range| range.count <= u64::from(MAX_MATCHES));
    let drivers: Vec<Lookup> = lookups(corpus, &read).collect();
    let probes: Vec<Lookup> = lookups(corpus, &looked_up).collect();
    let excluded: Vec<(i32, i32, i32, Vec<u8>)> = (0..)
        .zip(&query.without)
        .flat_map(|(set, terms)| {
            let size = i32::try_from(terms.len()).unwrap_or(i32::MAX);
            terms.iter().flat_map(move |term| {
                let range = TermRange { term: term.clone(), is_prefix: false };
                (0..).zip(&corpus.kinds).map(move |(kind, name)| (set, size, kind, keys(name, &range).0))
            })
        })
        .collect();
    // One word is once in a record.
    let is_once = matches!(read.as_slice(), [(_, one)] if one.ranges.len() == 1 && one.is_exact());
    let statement = statement(is_once, !probes.is_empty(), !excluded.is_empty());
    let rows: Vec<(Option<Vec<u8>>, i32, i64)> = sqlx::query_as(AssertSqlSafe(statement))
        .bind(tx.org().uuid())
        .bind(column(&drivers, |one| one.condition))
        .bind(column(&drivers, |one| one.kind))
        .bind(column(&drivers, |one| one.low.clone()))
        .bind(column(&drivers, |one| one.high.clone()))
        .bind(column(&drivers, |one| one.idf))
        .bind(corpus.average)
        .bind(i64::from(MAX_MATCHES))
        .bind(i64::try_from(read.len()).unwrap_or(i64::MAX))
        .bind(i64::from(MAX_HITS))
        .bind(column(&probes, |one| one.condition))
        .bind(column(&probes, |one| one.kind))
        .bind(column(&probes, |one| one.low.clone()))
        .bind(column(&probes, |one| one.idf))
        .bind(i64::try_from(looked_up.len()).unwrap_or(i64::MAX))
        .bind(column(&excluded, |(set, ..)| *set))
        .bind(column(&excluded, |(_, size, ..)| *size))
        .bind(column(&excluded, |(_, _, kind, _)| *kind))
        .bind(column(&excluded, |(.., low)| low.clone()))
        .fetch_all(tx.connection())
        .await?;
    let mut found = Matches { is_complete, ..Matches::default() };
    for (doc, kind, number) in rows {
        match doc.map(|doc| Uuid::from_slice(&doc)) {
            Some(Ok(id)) => {
                let ranked = Ranked { id: RecordId::from_uuid(id), score: number };
                found.best.push(Match { ranked, kind: kind_of(corpus, kind)? });
            }
            Some(Err(_)) => {}
            None => {
                found.total += from_bigint(number);
                found.kinds.push((kind, from_bigint(number)));
            }
        }
    }
    // Equal ones by their ids, the newest first: the order is the same whatever the plan.
    found.best.sort_by_key(|one| Reverse((one.ranked.score, one.ranked.id.uuid())));
    Ok(found)
}

/// Returns the statement, without the parts that a query does not need.
///
/// Keys of lookups are made in steps of their own: a condition with a function in it, which is not leakproof, is no condition of an
/// index.
fn statement(is_once: bool, with_probes: bool, with_excluded: bool) -> String {
    let score = |posting: &str| {
        format!(
            "CASE WHEN item.idf = 0 THEN 0 ELSE (1000000 * item.idf * {posting}.weight * {} / ({posting}.weight + {K1} * \
             ({} + {B} * {posting}.length / $7)))::bigint END",
            K1 + 1.0,
            1.0 - B,
        )
    };
    let (of_driver, of_probe) = (score("posting"), score("posting"));
    let probed = if with_probes {
        format!(
            "probe AS MATERIALIZED (
                SELECT candidate.kind, candidate.doc, item.condition, item.idf, item.low || candidate.doc AS key
                FROM candidate
                JOIN unnest($11::integer[], $12::integer[], $13::bytea[], $14::float8[]) AS item (condition, kind, low, idf)
                    USING (kind)
            ),
            probed AS MATERIALIZED (
                SELECT best.kind, best.doc, sum(best.score)::bigint AS score FROM (
                    SELECT item.kind, item.doc, item.condition, max({of_probe}) AS score
                    FROM probe AS item CROSS JOIN LATERAL (
                        SELECT weight, length FROM rm.postings WHERE org_id = $1 AND key = item.key
                    ) AS posting
                    GROUP BY item.kind, item.doc, item.condition
                ) AS best
                GROUP BY best.kind, best.doc HAVING count(*) = $15
            ),
            chosen AS (
                SELECT kind, doc, candidate.score + probed.score AS score FROM candidate JOIN probed USING (kind, doc)
            ),"
        )
    } else {
        "chosen AS (SELECT kind, doc, score FROM candidate),".to_owned()
    };
    let excluded = if with_excluded {
        "exclusion AS MATERIALIZED (
            SELECT chosen.kind, chosen.doc, item.set, item.size, item.low || chosen.doc AS key
            FROM chosen JOIN unnest($16::integer[], $17::integer[], $18::integer[], $19::bytea[]) AS item (set, size, kind, low)
                USING (kind)
        ),
        excluded AS MATERIALIZED (
            SELECT DISTINCT full_set.kind, full_set.doc FROM (
                SELECT item.kind, item.doc FROM exclusion AS item CROSS JOIN LATERAL (
                    SELECT FROM rm.postings WHERE org_id = $1 AND key = item.key
                ) AS posting
                GROUP BY item.kind, item.doc, item.set, item.size HAVING count(*) = item.size
            ) AS full_set
        ),
        hit AS MATERIALIZED (
            SELECT kind, doc, score FROM chosen
            WHERE NOT EXISTS (SELECT FROM excluded WHERE excluded.kind = chosen.kind AND excluded.doc = chosen.doc)
        )"
    } else {
        "hit AS MATERIALIZED (SELECT kind, doc, score FROM chosen)"
    };
    let candidates = if is_once {
        "candidate AS (SELECT kind, doc, score FROM posting)"
    } else {
        "best AS (SELECT condition, kind, doc, max(score) AS score FROM posting GROUP BY condition, kind, doc),
        candidate AS MATERIALIZED (
            SELECT kind, doc, sum(score)::bigint AS score FROM best GROUP BY kind, doc HAVING count(*) = $9
        )"
    };
    // Parameters of parts that are left out need a type all the same.
    format!(
        "WITH posting AS MATERIALIZED (
            SELECT item.condition, item.kind, substring(posting.key FROM octet_length(posting.key) - 15) AS doc,
                {of_driver} AS score
            FROM unnest($2::integer[], $3::integer[], $4::bytea[], $5::bytea[], $6::float8[])
                AS item (condition, kind, low, high, idf)
            CROSS JOIN LATERAL (
                SELECT key, weight, length FROM rm.postings
                WHERE org_id = $1 AND key >= item.low AND key < item.high ORDER BY key LIMIT $8
            ) AS posting
        ),
        {candidates},
        {probed}
        {excluded}
        SELECT NULL::bytea AS doc, kind, count(*) AS number FROM hit GROUP BY kind
        UNION ALL
        (SELECT doc, kind, score FROM hit
        WHERE num_nulls($9::bigint, $11::integer[], $12::integer[], $13::bytea[], $14::float8[], $15::bigint, $16::integer[], $17::integer[],
            $18::integer[], $19::bytea[]) = 0
        ORDER BY score DESC, doc DESC LIMIT $10)"
    )
}

fn kind_of(corpus: &Corpus, kind: i32) -> Result<KindName, DbError> {
    let name = usize::try_from(kind).ok().and_then(|kind| corpus.kinds.get(kind)).cloned().unwrap_or_default();
    parsed("a kind name", name)
}

/// Returns in how many letters a word may differ from those that stand for it; none for one that is too short.
pub fn distance_of(word: &str) -> Option<usize> {
    let length = word.chars().count();
    (length >= SHORT).then_some(if length < LONG { 1 } else { 2 })
}

/// Adds words that are written alike to the conditions that no record fulfils. Returns them by the word that was asked for.
async fn respell(
    tx: &mut TenantTx,
    corpus: &Corpus,
    conditions: &mut [Condition],
    query: &mut SearchQuery,
) -> Result<BTreeMap<String, Vec<String>>, DbError> {
    let mut neighbours = BTreeMap::new();
    for (condition, clause) in conditions.iter_mut().zip(&mut query.clauses) {
        let Some(asked) = clause.ranges.first().map(|range| range.term.clone()) else { continue };
        let Some(most) = distance_of(&asked).filter(|_| clause.may_be_misspelt && condition.count() == 0) else {
            continue;
        };
        let mut found: BTreeSet<(usize, String)> = BTreeSet::new();
        for letters in [2, 1] {
            let begins: String = asked.chars().take(letters).collect();
            for term in vocabulary(tx, corpus, &begins).await? {
                let distance = strsim::osa_distance(&asked, &term);
                if (1..=most).contains(&distance) {
                    found.insert((distance, term));
                }
            }
            if found.len() >= MAX_NEIGHBOURS {
                break;
            }
        }
        let found: Vec<String> = found.into_iter().map(|(_, term)| term).take(MAX_NEIGHBOURS).collect();
        if found.is_empty() {
            continue;
        }
        for term in &found {
            let range = TermRange { term: term.clone(), is_prefix: false };
            clause.ranges.push(range.clone());
            condition.ranges.push(Range { terms: range, count: 0, idf: 0.0 });
        }
        neighbours.insert(asked, found);
    }
    if !neighbours.is_empty() {
        count(tx, corpus, conditions).await?;
    }
    Ok(neighbours)
}

/// Returns the organization's own terms that begin with these letters, a bounded number of each kind: one step of the index for
/// each.
async fn vocabulary(tx: &mut TenantTx, corpus: &Corpus, begins: &str) -> Result<BTreeSet<String>, DbError> {
    let mut terms = BTreeSet::new();
    let org = tx.org().uuid();
    for kind in &corpus.kinds {
        let (low, high) = keys(kind, &TermRange { term: begins.to_owned(), is_prefix: true });
        let found: Vec<Vec<u8>> = sqlx::query_scalar(
            "WITH RECURSIVE step AS (
                (SELECT key, substring(key FROM 1 FOR octet_length(key) - 17) || '\\x01'::bytea AS next FROM rm.postings
                WHERE org_id = $1 AND key >= $2 AND key < $3 ORDER BY key LIMIT 1)
                UNION ALL
                SELECT posting.key, substring(posting.key FROM 1 FOR octet_length(posting.key) - 17) || '\\x01'::bytea
                FROM step CROSS JOIN LATERAL (
                    SELECT key FROM rm.postings WHERE org_id = $1 AND key >= step.next AND key < $3 ORDER BY key LIMIT 1
                ) AS posting
            )
            SELECT key FROM step LIMIT $4",
        )
        .bind(org)
        .bind(&low)
        .bind(&high)
        .bind(MAX_COMPARED)
        .fetch_all(tx.connection())
        .await?;
        for key in found {
            let term = key.get(kind.len() + 1..key.len().saturating_sub(17)).unwrap_or_default();
            terms.extend(std::str::from_utf8(term).ok().map(str::to_owned));
        }
        if i64::try_from(terms.len()).is_ok_and(|count| count >= MAX_COMPARED) {
            break;
        }
    }
    Ok(terms)
}

/// A record that was found, with its content if it is there.
struct Row {
    indexed: IndexedRecord,
    data: Option<Document>,
}

impl Row {
    /// The texts that are searched, by field: the title first.
    fn texts(&self) -> Vec<(&str, &str)> {
        let Some(Document(data)) = &self.data else { return Vec::new() };
        let mut fields: Vec<&SearchedField> =
            self.indexed.fields.iter().filter(|searched| searched.role != SearchRole::Facet).collect();
        fields.sort_by_key(|searched| (searched.role, &searched.field));
        fields
            .into_iter()
            .flat_map(|searched| {
                let value = data.get(&searched.field);
                value.into_iter().flat_map(texts).map(|text| (searched.field.as_str(), text))
            })
            .collect()
    }

    fn hit(self, score: i64, query: &SearchQuery) -> Hit {
        const PIECES: usize = 3;
        let pieces = self
            .texts()
            .into_iter()
            .filter_map(|(field, text)| Some(Piece { field: field.to_owned(), snippet: snippet(text, query)? }));
        let pieces = pieces.take(PIECES).collect();
        let IndexedRecord { id, kind, title, is_truncated, seq, .. } = self.indexed;
        Hit { id, kind, title, score, pieces, is_truncated, seq }
    }
}

/// Reads what is shown of these. The content is that of the read models, which may be of another moment.
async fn rows(tx: &mut TenantTx, ranked: &[Ranked]) -> Result<BTreeMap<RecordId, Row>, DbError> {
    if ranked.is_empty() {
        return Ok(BTreeMap::new());
    }
    let ids = column(ranked, |one| one.id);
    let Some(index) = tx.search_index().await? else {
        let statement =
            format!("SELECT {INDEXED}, {CONTENT} AS data FROM unnest($2::uuid[]) AS wanted (id) {DOCUMENT} {CONTENTS}");
        let rows: Vec<ShownRow> = of_ids(tx, statement, &ids).await?;
        return rows.into_iter().map(|ShownRow { indexed, data }| indexed.row(data)).collect();
    };
    let indexed = index.records(&ids).await?;
    let statement = format!("SELECT wanted.id, {CONTENT} FROM unnest($2::uuid[]) AS wanted (id) {CONTENTS}");
    let contents: Vec<(Uuid, Option<Json<Document>>)> = of_ids(tx, statement, &ids).await?;
    let mut contents: BTreeMap<Uuid, Option<Json<Document>>> = contents.into_iter().collect();
    let row = |indexed: IndexedRecord| {
        let data = contents.remove(&indexed.id.uuid()).flatten().map(|Json(data)| data);
        (indexed.id, Row { indexed, data })
    };
    Ok(indexed.into_iter().map(row).collect())
}

/// The steps and columns of a statement that reads records by `wanted`: the index, and the contents. What the platform has published
/// is in the catalog.
const DOCUMENT: &str = "CROSS JOIN LATERAL (
    SELECT * FROM rm.search_documents WHERE org_id = $1 AND id BETWEEN wanted.id AND wanted.id ORDER BY id LIMIT 1
) AS document";
const INDEXED: &str =
    "document.id, document.kind, document.title, document.truncated, document.fields, document.facets, document.seq";
const CONTENTS: &str = "LEFT JOIN LATERAL (
    SELECT data FROM rm.records WHERE NOT $3 AND org_id = $1 AND id BETWEEN wanted.id AND wanted.id ORDER BY id LIMIT 1
) AS record ON true
LEFT JOIN LATERAL (
    SELECT data FROM rm.catalog_items WHERE $3 AND org_id = $1 AND id BETWEEN wanted.id AND wanted.id AND status = 'published'
    ORDER BY id LIMIT 1
) AS item ON true";
const CONTENT: &str = "coalesce(record.data, item.data)";

/// Reads the rows of these ids.
async fn of_ids<T>(tx: &mut TenantTx, statement: String, ids: &[RecordId]) -> Result<Vec<T>, DbError>
where
    T: for<'row> FromRow<'row, PgRow> + Send + Unpin,
{
    let rows = sqlx::query_as(AssertSqlSafe(statement))
        .bind(tx.org().uuid())
        .bind(column(ids, |id| id.uuid()))
        .bind(tx.org() == PLATFORM_ORG);
    Ok(rows.fetch_all(tx.connection()).await?)
}

/// A record of the index with its content.
#[derive(FromRow)]
struct ShownRow {
    #[sqlx(flatten)]
    indexed: IndexedRow,
    data: Option<Json<Document>>,
}

#[derive(FromRow)]
struct IndexedRow {
    id: Uuid,
    kind: String,
    title: Option<String>,
    truncated: bool,
    fields: Json<Vec<SearchedField>>,
    facets: Json<Map<String, Value>>,
    seq: i64,
}

/// Reads what the index in the database of `tx` has of these.
pub(super) async fn records_here(tx: &mut TenantTx, ids: &[RecordId]) -> Result<Vec<IndexedRecord>, DbError> {
    // The last parameter needs a type all the same.
    let statement =
        format!("SELECT {INDEXED} FROM unnest($2::uuid[]) AS wanted (id) {DOCUMENT} WHERE $3::boolean IS NOT NULL");
    let rows: Vec<IndexedRow> = of_ids(tx, statement, ids).await?;
    rows.into_iter().map(IndexedRow::record).collect()
}

impl IndexedRow {
    fn record(self) -> Result<IndexedRecord, DbError> {
        Ok(IndexedRecord {
            id: RecordId::from_uuid(self.id),
            kind: parsed("a kind name", self.kind)?,
            title: self.title,
            is_truncated: self.truncated,
            fields: self.fields.0,
            facets: self.facets.0,
            seq: from_bigint(self.seq),
        })
    }

    fn row(self, data: Option<Json<Document>>) -> Result<(RecordId, Row), DbError> {
        let indexed = self.record()?;
        Ok((indexed.id, Row { indexed, data: data.map(|Json(data)| data) }))
    }
}

/// Returns those whose texts have the phrases, and whether the texts of all were looked through.
async fn with_phrases(
    tx: &mut TenantTx,
    matches: Vec<Match>,
    query: &SearchQuery,
) -> Result<(Vec<Match>, bool), DbError> {
    let mut kept = Vec::new();
    let mut left = matches.into_iter();
    let (mut bytes, mut seen) = (0, 0);
    loop {
        let (fewest, most) = AT_ONCE;
        let of_such_texts = (TEXT_AT_ONCE * seen).checked_div(bytes).unwrap_or(fewest);
        let some: Vec<Match> = left.by_ref().take(of_such_texts.clamp(fewest, most)).collect();
        if some.is_empty() {
            return Ok((kept, true));
        }
        seen += some.len();
        let mut rows = rows(tx, &column(&some, |one| one.ranked)).await?;
        for one in some {
            let Some(row) = rows.remove(&one.ranked.id) else { continue };
            if bytes > MAX_PHRASE_TEXT {
                return Ok((kept, false));
            }
            let texts: Vec<&str> = row.texts().into_iter().map(|(_, text)| beginning(text, MAX_TEXT)).collect();
            bytes += texts.iter().map(|text| text.len()).sum::<usize>();
            if query.has_phrases(&texts) {
                kept.push(one);
            }
        }
    }
}

/// Counts the values of the best hits' facets.
async fn count_facets(
    tx: &mut TenantTx,
    ranked: &[Ranked],
) -> Result<BTreeMap<String, BTreeMap<String, u64>>, DbError> {
    let mut counted: BTreeMap<String, BTreeMap<String, u64>> = BTreeMap::new();
    if let Some(index) = tx.search_index().await? {
        for IndexedRecord { facets, .. } in index.records(&column(ranked, |one| one.id)).await? {
            for (field, value) in facets {
                let Value::String(value) = value else { continue };
                *counted.entry(field).or_default().entry(value).or_default() += 1;
            }
        }
        return Ok(counted);
    }
    let rows: Vec<(String, String, i64)> = sqlx::query_as(
        "SELECT facet.key, facet.value, count(*) FROM unnest($2::uuid[]) AS wanted (id)
        CROSS JOIN LATERAL (
            SELECT facets FROM rm.search_documents WHERE org_id = $1 AND id BETWEEN wanted.id AND wanted.id ORDER BY id LIMIT 1
        ) AS document
        CROSS JOIN LATERAL jsonb_each_text(document.facets) AS facet
        GROUP BY facet.key, facet.value",
    )
    .bind(tx.org().uuid())
    .bind(column(ranked, |one| one.id.uuid()))
    .fetch_all(tx.connection())
    .await?;
    for (field, value, count) in rows {
        counted.entry(field).or_default().insert(value, from_bigint(count));
    }
    Ok(counted)
}
