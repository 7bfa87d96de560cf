//! Search: the records of an organization by their words, and those that the platform shares with all.

use std::{collections::BTreeMap, sync::Arc};

use axum::{extract::State, http::HeaderMap, response::Response};
use orgstream_domain::{Permission, annotations::Annotations};
use orgstream_events::{KindName, OrgId, PLATFORM_ORG, Pipeline, Position, RecordId, Visibility};
use orgstream_projections::{
    BoundOrg, TenantTx, kinds as stored_kinds,
    search::{self, Asked, Found, Hit, Kinds, MAX_HITS, Piece, Ranked, query::SearchQuery},
};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::routes;

use crate::{
    api::http::{
        App,
        kit::{
            extract::{FilterMembers, Member, OrgAccess, PLATFORM, Query},
            policy::{AuditTrail, Policy, SEARCH},
            routes::Routes,
            wait::View,
        },
        platform::kinds,
    },
    app::problem::Problem,
};

/// The longest query, in characters.
const MAX_QUERY: usize = 8_192;
const DEFAULT_LIMIT: u16 = 20;
const MAX_LIMIT: u16 = 100;
/// The most fields of one filter, and values of one field.
const MAX_FIELDS: usize = 8;
const MAX_VALUES: usize = 100;

/// What is searched for, and where.
#[derive(Debug, Clone, Default, Deserialize, Serialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct SearchParameters {
    /// Words, all of which a record has; `"a phrase"` as it stands, `-word` for records without it, `word*` for the beginning of a
    /// word, as is the last one unless a space follows. At most 8,192 characters, of which the first 16 words count.
    #[param(example = "snake_case \"red car\" -blue")]
    pub q: String,
    /// Kind of record, by name; all kinds without it. Filters need one, and only then values of fields are counted.
    #[param(value_type = Option<String>, example = "model")]
    pub kind: Option<KindName>,
    /// True adds the platform's records of all shared kinds, false leaves all of them out. Without it, those of kinds that are
    /// visible to all by default are searched.
    #[param(example = true)]
    pub include_global: Option<bool>,
    /// Number of hits, 1 to 100; 20 without it.
    #[param(minimum = 1, maximum = 100, example = 20)]
    pub limit: Option<u16>,
    /// Number of hits before the first one; with `limit`, at most 1,000.
    #[param(maximum = 999, example = 0)]
    pub offset: Option<u16>,
}

/// The hits of one page, the best first.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct SearchPage {
    /// Hits of this page.
    pub data: Vec<HitView>,
    /// Number of hits on all pages, as far as records were looked at.
    #[schema(example = 12)]
    pub total: u64,
    /// True if all that may match was looked at; false if a word is in more than 10,000 records, or if a phrase was looked for in
    /// the best 1,000 only.
    #[schema(example = true)]
    pub complete: bool,
    /// Offset of the next page; null on the last.
    pub next_offset: Option<u16>,
    /// Number of hits of each kind, by name.
    #[schema(value_type = BTreeMap<String, u64>, example = json!({"model": 12}))]
    pub kinds: BTreeMap<KindName, u64>,
    /// Number of hits, among the best 1,000, with each value of the fields with few values; only with `kind`.
    #[schema(example = json!({"status": {"active": 11, "retired": 1}}))]
    pub facets: BTreeMap<String, BTreeMap<String, u64>>,
    /// Words that were searched in the place of those that no record has, because they are written alike.
    #[schema(example = json!({"modle": ["model"]}))]
    pub corrections: BTreeMap<String, Vec<String>>,
    /// True if the query has more words than were searched.
    #[schema(example = false)]
    pub query_truncated: bool,
}

/// A record that was found.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct HitView {
    /// Record id (`res_` and 26 characters).
    #[schema(value_type = String, example = "res_01h455vb4pex5vsknk084sn02q")]
    pub id: RecordId,
    /// Kind of record, by name.
    #[schema(value_type = String, example = "model")]
    pub kind: KindName,
    /// Beginning of the field that is the record's title, at most 256 characters; null without one.
    #[schema(example = "sonnet-small")]
    pub title: Option<String>,
    /// Relevance, 0 or more: comparable among the hits of one scope and one query only.
    #[schema(example = 2.75)]
    pub score: f64,
    /// Owner: `own` for the organization, `global` for the platform.
    #[schema(example = "own")]
    pub scope: &'static str,
    /// Pieces of the record around what was found, at most 3.
    pub snippets: Vec<SnippetView>,
    /// Position of the record's content in the log.
    #[schema(value_type = String, example = "org_01h455vb4pex5vsknk084sn02q:42")]
    pub position: Position,
    /// True if the record has more text than is searched: 256 KiB, or 10,000 different words.
    #[schema(example = false)]
    pub truncated: bool,
}

/// A piece of a field, as the record has it: text, and no markup.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct SnippetView {
    /// Name of the field.
    #[schema(example = "description")]
    pub field: String,
    /// Text, at most 200 characters, with spaces in the place of control characters.
    #[schema(max_length = 200, example = "A small model for short answers")]
    pub text: String,
    /// Beginnings and ends of what was found, in characters (Unicode code points) of `text`.
    #[schema(example = json!([{"start": 8, "end": 13}]))]
    pub ranges: Vec<RangeView>,
}

/// Whose a hit is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Scope {
    Own,
    Global,
}

impl Scope {
    fn name(self) -> &'static str {
        match self {
            Self::Own => "own",
            Self::Global => "global",
        }
    }
}

/// Part of a text.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct RangeView {
    /// Number of characters before it.
    #[schema(example = 8)]
    pub start: usize,
    /// Number of characters up to its end.
    #[schema(example = 13)]
    pub end: usize,
}

/// The routes, each with its policy.
pub(super) fn routes() -> Routes {
    Routes::new().route(routes!(find), Policy::Org(Permission::ReadRecords), SEARCH, AuditTrail::ReadNotAudited)
}

/// Search records
///
/// By the fields that their kind declares with `x-search`, as it declared them when the record was written. Letter case, accents
/// and compatibility forms do not count. Archived records are not found. Ranked by BM25 with the figures of one owner alone; the
/// platform's hits are merged with the organization's by their ranks. With fewer than five hits, words that are written alike stand for
/// those that no record has. `filter[field]=value` has the records whose field with few values (`enum` and `x-filter`) has it.
#[utoipa::path(
    get, path = "/v1/organizations/{org}/search", operation_id = "search_records", tag = "records",
    params(
        SearchParameters,
        (
            "filter" = Option<BTreeMap<String, String>>, Query, style = DeepObject, explode,
            description = "Values of fields with few values, such as `filter[status]=active` or `filter[status][in]=a,b`. Needs \
                           `kind`.",
        ),
    ),
    responses((status = 200, description = "One page", body = SearchPage)),
)]
pub async fn find(
    State(app): State<Arc<App>>,
    OrgAccess { access, .. }: OrgAccess,
    headers: HeaderMap,
    Query(parameters): Query<SearchParameters>,
    FilterMembers(members): FilterMembers,
) -> Result<Response, Problem> {
    let (offset, limit) = page(&parameters)?;
    if parameters.q.chars().nth(MAX_QUERY).is_some() {
        return Err(Problem::invalid_parameter("q", format!("must have at most {MAX_QUERY} characters")));
    }
    // The kinds of its own, and what snippets are made of, are rows of the read models.
    View::wait(&app, access.bound(), Pipeline::ReadModels, &headers).await?;
    let facets = filters(&app, access.bound(), &parameters, &members).await?;
    let query = SearchQuery::read(&parameters.q);
    let own_kind = parameters.kind.as_ref().map(std::slice::from_ref);
    let kinds = own_kind.map_or(Kinds::All, Kinds::These);
    let asked = Asked { query: &query, kinds, facets: &facets, count_facets: own_kind.is_some() };
    let is_shared = parameters.include_global != Some(false) && access.org() != PLATFORM_ORG;
    // One connection at a time: a request that waits for a second one would wait for others that do the same. What is shared is
    // ranked first, so that the organization's own page is known while its rows are seen.
    let global = if is_shared { find_global(&app, &parameters, asked).await? } else { Found::default() };
    let mut view = View::open(&app, access.bound(), Pipeline::Search, &headers).await?;
    let own = search::find(&mut view.tx, asked).await?;
    let page = by_rank(&own.ranked, &global.ranked).skip(usize::from(offset)).take(usize::from(limit));
    let page: Vec<(Scope, Ranked)> = page.collect();
    let of = |wanted: Scope| page.iter().filter(|(scope, _)| *scope == wanted).map(|(_, one)| *one).collect::<Vec<_>>();
    let mut own_hits = search::hits(&mut view.tx, &own.query, &of(Scope::Own)).await?.into_iter().peekable();
    let seen = view.release();
    let of_global = of(Scope::Global);
    let global_hits = if of_global.is_empty() {
        Vec::new()
    } else {
        search::hits(&mut app.db.read(PLATFORM).await?, &global.query, &of_global).await?
    };
    let mut global_hits = global_hits.into_iter().peekable();
    if let Some(kind) = parameters.kind.as_ref().filter(|_| page.is_empty()) {
        kinds::must_be_known(&app, access.bound(), kind).await?;
    }
    // In the order of the ranks; what is gone meanwhile is left out.
    let hit = |(scope, ranked): &(Scope, Ranked)| match scope {
        Scope::Own => own_hits.next_if(|hit| hit.id == ranked.id).map(|hit| HitView::of(hit, *scope, access.org())),
        Scope::Global => {
            global_hits.next_if(|hit| hit.id == ranked.id).map(|hit| HitView::of(hit, *scope, PLATFORM_ORG))
        }
    };
    let data: Vec<HitView> = page.iter().filter_map(hit).collect();
    let (total, complete) = (own.total + global.total, own.is_complete && (global.is_complete || !is_shared));
    let Found { kinds: mut by_kind, facets: mut counted, neighbours: mut corrections, .. } = own;
    for (kind, count) in global.kinds {
        *by_kind.entry(kind).or_default() += count;
    }
    for (field, values) in global.facets {
        let counted = counted.entry(field).or_default();
        for (value, count) in values {
            *counted.entry(value).or_default() += count;
        }
    }
    for (word, others) in global.neighbours {
        corrections.entry(word).or_insert(others);
    }
    let next = offset + limit;
    let next_offset = (page.len() == usize::from(limit) && u64::from(next) < total && next < MAX_HITS).then_some(next);
    let query_truncated = query.is_cut;
    let page = SearchPage {
        data,
        total,
        complete,
        next_offset,
        kinds: by_kind,
        facets: counted,
        corrections,
        query_truncated,
    };
    Ok(seen.listing(&page))
}

/// Returns the offset and the number of hits.
fn page(parameters: &SearchParameters) -> Result<(u16, u16), Problem> {
    let limit = parameters.limit.unwrap_or(DEFAULT_LIMIT);
    if !(1..=MAX_LIMIT).contains(&limit) {
        return Err(Problem::invalid_parameter("limit", format!("{limit} is not between 1 and {MAX_LIMIT}")));
    }
    let offset = parameters.offset.unwrap_or_default();
    if offset.saturating_add(limit) > MAX_HITS {
        let rule = format!("and limit must be at most {MAX_HITS} together: use narrower words");
        return Err(Problem::invalid_parameter("offset", rule));
    }
    Ok((offset, limit))
}

/// Searches what the platform shares: the one place that says what that is.
async fn find_global(app: &App, parameters: &SearchParameters, asked: Asked<'_>) -> Result<Found, Problem> {
    let mut tx = app.db.read(PLATFORM).await?;
    let shared = shared_kinds(&mut tx, parameters).await?;
    Ok(search::find(&mut tx, Asked { kinds: Kinds::These(&shared), ..asked }).await?)
}

async fn shared_kinds(tx: &mut TenantTx, parameters: &SearchParameters) -> Result<Vec<KindName>, Problem> {
    let is_shared = |visibility| match visibility {
        Visibility::DefaultOn => true,
        Visibility::OptIn => parameters.include_global == Some(true),
        Visibility::Private => false,
    };
    let known = stored_kinds::list(tx).await?.into_iter();
    let shared = known.filter(|kind| is_shared(kind.definition.visibility)).map(|kind| kind.name);
    Ok(shared.filter(|name| parameters.kind.as_ref().is_none_or(|kind| kind == name)).collect())
}

/// Reads the values that fields with few values must have.
async fn filters(
    app: &App,
    org: BoundOrg,
    parameters: &SearchParameters,
    members: &[Member],
) -> Result<BTreeMap<String, Vec<String>>, Problem> {
    let mut wanted: BTreeMap<String, Vec<String>> = BTreeMap::new();
    if members.is_empty() {
        return Ok(wanted);
    }
    let Some(kind) = &parameters.kind else {
        return Err(Problem::invalid_parameter("filter", "takes one kind of records: add kind=…"));
    };
    let Some(found) = kinds::known(app, org, kind).await? else {
        kinds::must_be_known(app, org, kind).await?;
        return Ok(wanted);
    };
    let facets = Annotations::read(&found.definition.schema).unwrap_or_default().facets;
    for Member { names, value } in members {
        let (field, values): (_, Vec<String>) = match names.as_slice() {
            [field] => (field, vec![value.clone()]),
            [field, operator] if operator == "eq" => (field, vec![value.clone()]),
            [field, operator] if operator == "in" => (field, value.split(',').map(str::to_owned).collect()),
            _ => {
                return Err(Problem::invalid_parameter("filter", "takes a field, and `in` for several values"));
            }
        };
        if !facets.contains(field) {
            let short: String = field.chars().take(63).collect();
            let there_are: Vec<&str> = facets.iter().map(String::as_str).collect();
            let there_are = if there_are.is_empty() { "none".to_owned() } else { there_are.join(", ") };
            let rule = format!("the kind declares no such field with few values; there are: {there_are}");
            return Err(Problem::invalid_parameter(&format!("filter[{short}]"), rule));
        }
        let of_field = wanted.entry(field.clone()).or_default();
        of_field.extend(values);
        if of_field.len() > MAX_VALUES {
            let rule = format!("takes at most {MAX_VALUES} values");
            return Err(Problem::invalid_parameter(&format!("filter[{field}]"), rule));
        }
    }
    if wanted.len() > MAX_FIELDS {
        return Err(Problem::invalid_parameter("filter", format!("takes at most {MAX_FIELDS} fields")));
    }
    for values in wanted.values_mut() {
        // The same value twice is one.
        values.sort_unstable();
        values.dedup();
    }
    Ok(wanted)
}

/// Merges two lists by reciprocal rank. No hit is in both, so that this is one of each in turn.
fn by_rank<'a>(own: &'a [Ranked], global: &'a [Ranked]) -> impl Iterator<Item = (Scope, Ranked)> + use<'a> {
    let (mut own, mut global) = (own.iter(), global.iter());
    let mut is_own = false;
    std::iter::from_fn(move || {
        is_own = !is_own;
        let mut own = || own.next().map(|one| (Scope::Own, *one));
        let mut global = || global.next().map(|one| (Scope::Global, *one));
        if is_own { own().or_else(global) } else { global().or_else(own) }
    })
}

impl HitView {
    fn of(hit: Hit, scope: Scope, org: OrgId) -> Self {
        let Hit { id, kind, title, score, pieces, is_truncated: truncated, seq } = hit;
        let snippets = pieces.into_iter().map(SnippetView::from).collect();
        // Millionths.
        let score = score as f64 / 1e6;
        Self { id, kind, title, score, scope: scope.name(), snippets, position: Position { org, seq }, truncated }
    }
}

impl From<Piece> for SnippetView {
    fn from(Piece { field, snippet }: Piece) -> Self {
        let ranges = snippet.ranges.into_iter().map(|(start, end)| RangeView { start, end }).collect();
        Self { field, text: snippet.text, ranges }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parameters(offset: Option<u16>, limit: Option<u16>) -> SearchParameters {
        SearchParameters { limit, offset, ..SearchParameters::default() }
    }

    #[test]
    fn hits_are_merged_by_their_ranks() {
        let ranked = |score| Ranked { id: RecordId::fresh(1, [u8::try_from(score).unwrap(); 10]), score };
        let own = [1, 2, 3].map(ranked);
        let global = [4].map(ranked);
        let merged: Vec<i64> = by_rank(&own, &global).map(|(_, one)| one.score).collect();
        assert_eq!(merged, [1, 4, 2, 3]);
        let merged: Vec<i64> = by_rank(&global, &own).map(|(_, one)| one.score).collect();
        assert_eq!(merged, [4, 1, 2, 3]);
        assert_eq!(by_rank(&[], &[]).count(), 0);
    }

    #[test]
    fn pages_are_bounded() {
        assert_eq!(page(&parameters(None, None)).unwrap(), (0, 20));
        assert_eq!(page(&parameters(Some(900), Some(100))).unwrap(), (900, 100));
        for (offset, limit, name) in
            [(Some(901), Some(100), "offset"), (None, Some(0), "limit"), (None, Some(101), "limit")]
        {
            let refused = page(&parameters(offset, limit)).unwrap_err();
            assert!(refused.detail.starts_with(name), "{}", refused.detail);
        }
        assert!(page(&parameters(Some(u16::MAX), Some(100))).is_err());
    }
}
