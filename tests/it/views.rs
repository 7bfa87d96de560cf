//! Views that kinds declare: to the digit what a query over the records says, in every version, at every past moment, and for one
//! organization; built beside what is shown when they are declared late; refused with a pointer when they cannot be.

use std::{collections::BTreeMap, sync::Arc};

use orgstream_domain::views::{KindViewDefinition, read};
use orgstream_events::{
    Actor, ActorType, AggregateId, CommandId, CommitDraft, Context, Event, EventSubject, KindDefinition, KindEvent,
    KindName, KindRegistered, OrgId, PLATFORM_ORG, Pipeline, RecordArchived, RecordCreated, RecordEvent, RecordId,
    RecordUpdated, Salt, Shard, Timestamp, ViewDefinition, Visibility,
};
use orgstream_projections::{
    Applied, BatchClass, BoundOrg, Database, Moment, Page, RebuildJob, RebuildState, apply,
    views::{self, ViewFilter, ViewRow},
};
use reqwest::Method;
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Connection, PgConnection};

use crate::{
    api::{Answer, Api, OPERATOR, Org},
    cluster::eventually,
    projections::{BIRTH, SLICE, lease},
    support,
};

const SHARD: Shard = Shard(3);

/// Numbers without an order that anything could rely on, the same in each run.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.0 >> 33).unwrap() % sides
    }

    fn one_of(&mut self, values: &[Value]) -> Value {
        values[self.roll(values.len())].clone()
    }
}

/// A stream of one organization.
struct Stream {
    org: OrgId,
    commits: Vec<Applied>,
}

impl Stream {
    fn bound(&self) -> BoundOrg {
        BoundOrg::proven_by_credential(self.org)
    }

    fn commit(&mut self, aggregate: AggregateId, version_before: u64, event: Event) {
        let nth = u32::try_from(self.commits.len()).unwrap();
        let at = Timestamp::from_unix_ms(BIRTH + i64::from(nth) * 7_200_000);
        let [a, b, c, d] = nth.to_be_bytes();
        let draft = CommitDraft {
            org: self.org,
            aggregate: aggregate.clone(),
            version_before,
            command_id: CommandId::fresh(BIRTH, [a, b, c, d, 0, 0, 0, 0, 0, 1]),
            fingerprint: None,
            actor: Actor { actor_type: ActorType::System, id: "system".to_owned(), auth: None },
            occurred_at: at,
            recorded_at: at,
            causation_id: None,
            correlation_id: None,
            request_id: None,
            context: Context::default(),
            events: vec![event],
        };
        let subject = EventSubject { shard: SHARD, org: self.org, aggregate };
        let commit = draft.seal(|| Salt([d; 32])).unwrap().open(&subject).unwrap();
        self.commits.push(Applied { seq: 10 + 3 * u64::from(nth), commit: Arc::new(commit) });
    }

    /// Creates, changes and archives records, in no order.
    fn eventful(seed: u64, changes: usize) -> Self {
        let mut stream = Self { org: OrgId::fresh(BIRTH, [9; 10]), commits: Vec::new() };
        let (mut dice, mut active) = (Dice(seed), Vec::new());
        for nth in 0..changes {
            let kind: KindName = if dice.roll(8) == 0 { "plain" } else { "run" }.parse().unwrap();
            match dice.roll(5) {
                0 | 1 => {
                    let id = RecordId::fresh(
                        BIRTH,
                        [3, 0, 0, 0, 0, 0, 0, 0, u8::try_from(nth / 256).unwrap(), (nth % 256) as u8],
                    );
                    let data = data(&mut dice);
                    let created = RecordCreated::plain(kind.clone(), 1, data);
                    stream.commit(AggregateId::Record(id), 0, Event::Record(RecordEvent::Created(created)));
                    active.push((id, kind, 1));
                }
                2 | 3 if !active.is_empty() => {
                    let one = dice.roll(active.len());
                    let (id, kind, version) = &mut active[one];
                    let data = data(&mut dice);
                    let updated = RecordUpdated::plain(kind.clone(), 1, data);
                    stream.commit(AggregateId::Record(*id), *version, Event::Record(RecordEvent::Updated(updated)));
                    *version += 1;
                }
                4 if active.len() > 3 => {
                    let (id, _, version) = active.swap_remove(dice.roll(active.len()));
                    let archived = RecordEvent::Archived(RecordArchived { reason: None });
                    stream.commit(AggregateId::Record(id), version, Event::Record(archived));
                }
                _ => {}
            }
        }
        stream
    }

    async fn apply(&self, db: &Database, epoch: u64, size: usize) {
        let mut from = None;
        for slice in self.commits.chunks(size) {
            let to = slice.last().unwrap().seq;
            let mut tx = db.begin_batches(BatchClass::Light, SLICE).await.unwrap();
            tx.open(self.bound(), Pipeline::ReadModels, SHARD, epoch, from, to).await.unwrap();
            apply(&mut tx, self.bound(), slice).await.unwrap();
            tx.commit().await.unwrap();
            from = Some(to);
        }
    }
}

fn data(dice: &mut Dice) -> Value {
    let numbers = [
        json!(1),
        json!(2),
        json!(-12.5),
        json!(0.1),
        json!(0.2),
        json!(1e-7),
        json!(9_007_199_254_740_993_i64),
        json!(u64::MAX),
        json!(1.5e300),
        json!(null),
        json!("many"),
    ];
    let times = [
        json!("2026-03-01T00:30:00+01:00"),
        json!("2026-02-28T23:59:59.999Z"),
        json!("2026-03-01T12:00:00Z"),
        json!("1969-12-31T23:00:00Z"),
        json!("soon"),
    ];
    json!({
        "n": dice.one_of(&numbers), "at": dice.one_of(&times), "on": dice.one_of(&[json!(true), json!(false), json!(null)]),
        "model": dice.one_of(&[json!("a"), json!("b"), json!("ü \"x\""), json!(null)]),
        "size": dice.one_of(&[json!(1), json!(1.0), json!(2.5), json!("1")]),
        "state": dice.one_of(&[json!("done"), json!("failed"), json!("new")]),
    })
}

fn definitions() -> Vec<ViewDefinition> {
    let measure = |name: &str, fold: &str| json!({"name": name, "fold": fold, "of": "/n"});
    let views = json!([
        {"name": "all", "measures": [
            {"name": "records", "fold": "count"}, measure("sum", "sum"), measure("min", "min"), measure("max", "max"),
            measure("mean", "avg"), measure("last", "last"),
        ]},
        {"name": "by_model", "group_by": ["/model", "/on"], "bucket": "day", "bucket_of": "/at",
            "measures": [measure("max", "max"), {"name": "records", "fold": "count"}, measure("sum", "sum")],
            "where": [{"of": "/state", "in": ["done", "failed"]}]},
        {"name": "by_size", "group_by": ["/size"], "bucket": "month",
            "measures": [measure("last", "last"), measure("min", "min"), measure("mean", "avg")],
            "where": [{"of": "/n", "gte": 0, "lt": 100}]},
    ]);
    read(serde_json::from_value::<Vec<KindViewDefinition>>(views).unwrap()).unwrap()
}

/// The platform's stream: kinds with their views.
fn platform(kinds: Vec<(&str, Vec<ViewDefinition>)>) -> Stream {
    let mut stream = Stream { org: PLATFORM_ORG, commits: Vec::new() };
    for (name, views) in kinds {
        let definition = KindDefinition {
            title: name.to_owned(),
            schema: json!({"type": "object"}),
            visibility: Visibility::Private,
            cost: 1,
            views,
            append_only: false,
        };
        let kind = AggregateId::Kind(name.parse().unwrap());
        stream.commit(kind, 0, Event::Kind(KindEvent::Registered(KindRegistered { definition })));
    }
    stream
}

fn kinds() -> Vec<(&'static str, Vec<ViewDefinition>)> {
    vec![("run", definitions()), ("plain", vec![])]
}

/// Lets a kind have a view with the greatest number at a pointer.
pub(crate) async fn declare_view(db: &Database, epoch: u64, kind: &str, of: &str) {
    let views = json!([{"name": "all", "measures": [{"name": "most", "fold": "max", "of": of}]}]);
    let views = read(serde_json::from_value::<Vec<KindViewDefinition>>(views).unwrap()).unwrap();
    platform(vec![(kind, views)]).apply(db, epoch, 1).await;
}

/// The rows of a view as texts: bucket, group, and measures by name.
type Rows = Vec<(Option<String>, Value, BTreeMap<String, Option<String>>)>;

fn shown(rows: Vec<ViewRow>, view: &ViewDefinition) -> Rows {
    let mut rows: Rows = rows
        .into_iter()
        .map(|row| {
            let measures = row.measures(view).into_iter().collect();
            (row.bucket.map(|bucket| bucket.to_string()), Value::Array(row.group), measures)
        })
        .collect();
    rows.sort_by_key(|row| format!("{row:?}"));
    rows
}

/// A row of a query over the records: bucket, group, and every measure.
type Found =
    (Option<String>, Value, String, Option<String>, Option<String>, Option<String>, Option<String>, Option<String>);

/// What the database says of the records, without any view.
async fn grouped(owner: &mut PgConnection, org: OrgId, view: &ViewDefinition) -> Rows {
    let (bucket, group, condition) = match view.name.as_str() {
        "all" => ("NULL::timestamptz", "'[]'::jsonb", "true"),
        "by_model" => (
            "date_trunc('day', at, 'UTC')",
            "jsonb_build_array(data -> 'model', data -> 'on')",
            "data ->> 'state' IN ('done', 'failed') AND at IS NOT NULL",
        ),
        _ => (
            "date_trunc('month', created_at, 'UTC')",
            "jsonb_build_array(CASE WHEN jsonb_typeof(data -> 'size') = 'number' THEN to_jsonb(trim_scale((data ->> 'size')::numeric)) ELSE data -> 'size' END)",
            "n >= 0 AND n < 100",
        ),
    };
    let query = format!(
        "SELECT to_char({bucket} AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.MS\"Z\"'), {group},
            count(*)::text, trim_scale(sum(n))::text, trim_scale(min(n))::text, trim_scale(max(n))::text,
            trim_scale(trim_scale(sum(n)) / count(n))::text, trim_scale((array_agg(n ORDER BY seq DESC) FILTER (WHERE n IS NOT NULL))[1])::text
        FROM (
            SELECT *, CASE WHEN jsonb_typeof(data -> 'n') = 'number' THEN (data ->> 'n')::numeric END AS n,
                CASE WHEN data ->> 'at' LIKE '____-%' THEN (data ->> 'at')::timestamptz END AS at
            FROM rm.records WHERE org_id = $1 AND rm_version = 1 AND kind = 'run' AND status = 'active'
        ) AS record WHERE {condition} GROUP BY 1, 2"
    );
    let found: Vec<Found> = sqlx::query_as(AssertSqlSafe(query)).bind(org.uuid()).fetch_all(owner).await.unwrap();
    let mut rows: Rows = found
        .into_iter()
        .map(|(bucket, group, records, sum, min, max, mean, last)| {
            let all =
                [("records", Some(records)), ("sum", sum), ("min", min), ("max", max), ("mean", mean), ("last", last)];
            let is_asked = |name: &str| view.measures.iter().any(|measure| measure.name == name);
            let measures = all.into_iter().filter(|(name, _)| is_asked(name));
            (bucket, group, measures.map(|(name, value)| (name.to_owned(), value)).collect())
        })
        .collect();
    rows.sort_by_key(|row| format!("{row:?}"));
    rows
}

/// All rows of the tables of views, as texts.
async fn stored(owner: &mut PgConnection) -> Vec<String> {
    let mut rows = Vec::new();
    for table in ["rm.kind_views", "rm.view_rows", "rm.view_values"] {
        let query = format!("SELECT to_jsonb(item)::text FROM {table} AS item ORDER BY 1");
        let found: Vec<String> = sqlx::query_scalar(AssertSqlSafe(query)).fetch_all(&mut *owner).await.unwrap();
        assert!(!found.is_empty(), "{table} is empty");
        rows.extend(found);
    }
    rows
}

async fn rows_of(db: &Database, org: BoundOrg, view: &ViewDefinition) -> Rows {
    let mut tx = db.read(org).await.unwrap();
    let kind = "run".parse().unwrap();
    let listing = views::rows(&mut tx, &kind, &view.name, &ViewFilter::default(), &Page::First, 1_000).await.unwrap();
    assert!(!listing.more);
    shown(listing.rows, view)
}

#[tokio::test]
async fn the_rows_of_a_view_are_what_a_query_over_the_records_says_to_the_digit_however_the_events_come() {
    let (mut before, views) = (BTreeMap::new(), definitions());
    for (seed, size) in [(1, 1), (1, 7), (1, 500), (2, 3), (2, 40), (3, 20)] {
        let database = support::database().await;
        let mut owner = PgConnection::connect(&database.owner_url).await.unwrap();
        let epoch = lease(&database.db).await;
        platform(kinds()).apply(&database.db, epoch, 1).await;
        let stream = Stream::eventful(seed, 250);
        let half = stream.commits.len() / 2;
        // In the middle and at the end.
        let first = Stream { org: stream.org, commits: stream.commits[..half].to_vec() };
        first.apply(&database.db, epoch, size).await;
        for view in &views {
            let found = rows_of(&database.db, stream.bound(), view).await;
            assert!(found.len() > usize::from(view.name != "all"), "{}: {found:?}", view.name);
            assert_eq!(found, grouped(&mut owner, stream.org, view).await, "{} in slices of {size}", view.name);
        }
        let from = first.commits.last().unwrap().seq;
        let mut at = from;
        for slice in stream.commits[half..].chunks(size) {
            let to = slice.last().unwrap().seq;
            let mut tx = database.db.begin_batches(BatchClass::Light, SLICE).await.unwrap();
            tx.open(stream.bound(), Pipeline::ReadModels, SHARD, epoch, Some(at), to).await.unwrap();
            apply(&mut tx, stream.bound(), slice).await.unwrap();
            tx.commit().await.unwrap();
            at = to;
        }
        for view in &views {
            let found = rows_of(&database.db, stream.bound(), view).await;
            assert_eq!(found, grouped(&mut owner, stream.org, view).await, "{} in slices of {size}", view.name);
        }
        let stored = stored(&mut owner).await;
        assert_eq!(before.entry(seed).or_insert_with(|| stored.clone()), &stored, "slices of {size}");
    }
}

#[tokio::test]
async fn pages_ranges_and_groups_of_a_view_are_parts_of_it() {
    let database = support::database().await;
    let epoch = lease(&database.db).await;
    platform(kinds()).apply(&database.db, epoch, 1).await;
    let stream = Stream::eventful(4, 250);
    stream.apply(&database.db, epoch, 50).await;
    let mut tx = database.db.read(stream.bound()).await.unwrap();
    let kind: KindName = "run".parse().unwrap();
    let all = views::rows(&mut tx, &kind, "by_model", &ViewFilter::default(), &Page::First, 1_000).await.unwrap().rows;
    assert!(all.len() > 12, "{}", all.len());
    assert!(all.is_sorted_by_key(|row| row.bucket));
    let (mut pages, mut page) = (Vec::new(), Page::First);
    loop {
        let listing = views::rows(&mut tx, &kind, "by_model", &ViewFilter::default(), &page, 5).await.unwrap();
        pages.extend(listing.rows.clone());
        if !listing.more {
            break;
        }
        page = Page::After(orgstream_projections::Placed::place(listing.rows.last().unwrap()));
    }
    assert_eq!(pages, all);
    let last = Page::Before(orgstream_projections::Placed::place(&all[7]));
    let back = views::rows(&mut tx, &kind, "by_model", &ViewFilter::default(), &last, 4).await.unwrap();
    assert_eq!((back.rows.as_slice(), back.more), (&all[3..7], true));

    let from: Timestamp = "2026-02-28T00:00:00Z".parse().unwrap();
    let to: Timestamp = "2026-03-01T00:00:00Z".parse().unwrap();
    let range = ViewFilter { from: Some(from), to: Some(to), group: None };
    let found = views::rows(&mut tx, &kind, "by_model", &range, &Page::First, 1_000).await.unwrap().rows;
    let expected: Vec<_> = all.iter().filter(|row| row.bucket == Some(from)).cloned().collect();
    assert!(!expected.is_empty());
    assert_eq!(found, expected);
    let group = ViewFilter { group: Some(all[0].group.clone()), ..ViewFilter::default() };
    let found = views::rows(&mut tx, &kind, "by_model", &group, &Page::First, 1_000).await.unwrap().rows;
    let expected: Vec<_> = all.iter().filter(|row| row.group == all[0].group).cloned().collect();
    assert!(expected.len() > 1);
    assert_eq!(found, expected);
}

fn kind() -> Value {
    json!({
        "kind": "sale", "title": "Sale", "visibility": "private",
        "schema": {"type": "object", "properties": {
            "shop": {"type": "string", "maxLength": 40}, "amount": {"type": "number"},
            "at": {"type": "string", "format": "date-time"},
        }},
        "views": [{
            "name": "by_shop", "group_by": ["/shop"], "bucket": "day", "bucket_of": "/at",
            "measures": [{"name": "sales", "fold": "count"}, {"name": "amount", "fold": "sum", "of": "/amount"}],
        }],
    })
}

async fn registered(api: &Api, kind: &Value) {
    let made = api.post(OPERATOR, "/v1/kinds", kind).await.expect(201);
    api.get_at(OPERATOR, "/v1/kinds", made.header("stream-position")).await.expect(200);
}

async fn sale(api: &Api, org: &Org, shop: &str, amount: &Value, at: &str) -> (String, String) {
    let body = json!({"kind": "sale", "data": {"shop": shop, "amount": amount, "at": at}});
    let made = api.post(&org.owner, &org.path("records"), &body).await.expect(201).json();
    (made["id"].as_str().unwrap().to_owned(), made["position"].as_str().unwrap().to_owned())
}

const MONDAY: &str = "2026-03-02T10:00:00Z";
const TUESDAY: &str = "2026-03-03T10:00:00Z";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_view_has_what_was_written_up_to_the_position_and_is_of_one_organization() {
    let api = Api::start().await;
    registered(&api, &kind()).await;
    let (one, other) = (api.org("shops").await, api.org("stalls").await);
    let path = one.path("views/sale/by_shop");
    assert_eq!(api.get(&one.owner, &path).await.expect(200).json()["data"], json!([]));
    let (first, _) = sale(&api, &one, "north", &json!(0.1), MONDAY).await;
    sale(&api, &one, "north", &json!(0.2), MONDAY).await;
    sale(&api, &one, "south", &json!(5), TUESDAY).await;
    let (_, position) = sale(&api, &one, "north", &json!(7), TUESDAY).await;
    let (_, theirs) = sale(&api, &other, "north", &json!(1000), MONDAY).await;
    let page = api.get_at(&one.owner, &path, &position).await.expect(200);
    assert!(page.header("projection-position").starts_with(&one.id));
    assert_eq!(page.header("cache-control"), "private, no-cache");
    let row = |bucket: &str, shop: &str, sales: &str, amount: &str| {
        json!({"bucket": format!("{bucket}T00:00:00.000Z"), "group": [shop],
            "measures": {"sales": sales, "amount": amount}})
    };
    let (monday, tuesday) = (row("2026-03-02", "north", "2", "0.3"), row("2026-03-03", "north", "1", "7"));
    let south = row("2026-03-03", "south", "1", "5");
    let page = page.json();
    assert_eq!(page["data"], json!([monday, tuesday, south]));
    assert_eq!(
        (&page["group_by"], &page["bucket"], &page["building"]),
        (&json!(["/shop"]), &json!("day"), &json!(null))
    );

    for (query, expected) in [
        ("?from=2026-03-03T00:00:00Z", json!([tuesday, south])),
        ("?to=2026-03-03T00:00:00Z", json!([monday])),
        ("?group=%5B%22north%22%5D", json!([monday, tuesday])),
        ("?group=%5B%22north%22%5D&from=2026-03-03T00:00:00Z", json!([tuesday])),
        ("?group=%5B%22west%22%5D", json!([])),
    ] {
        assert_eq!(
            api.get(&one.owner, &format!("{path}{query}")).await.expect(200).json()["data"],
            expected,
            "{query}"
        );
    }
    let first_page = api.get(&one.owner, &format!("{path}?limit=2")).await.expect(200).json();
    assert_eq!((&first_page["data"], &first_page["has_more"]), (&json!([monday, tuesday]), &json!(true)));
    let cursor = first_page["next_cursor"].as_str().unwrap();
    let second = api.get(&one.owner, &format!("{path}?limit=2&cursor={cursor}")).await.expect(200).json();
    assert_eq!(second["data"], json!([south]));
    api.get(&one.owner, &format!("{path}?group=%5B%22north%22%5D&cursor={cursor}")).await.expect(400);
    for query in ["?group=north", "?group=%5B%5D", "?group=%5B%7B%7D%5D", "?from=monday"] {
        api.get(&one.owner, &format!("{path}{query}")).await.expect(400);
    }
    let unknown = api.get(&one.owner, &one.path("views/sale/by_chop")).await.expect(404).json();
    assert!(unknown["detail"].as_str().unwrap().ends_with("there are: by_shop"), "{unknown}");
    api.get(&other.owner, &path).await.expect(404);
    let theirs = api.get_at(&other.owner, &other.path("views/sale/by_shop"), &theirs).await.expect(200).json();
    assert_eq!(theirs["data"], json!([row("2026-03-02", "north", "1", "1000")]));

    // A record that is archived is in no row, and the last one takes its row with it.
    let archived = api.request(Method::DELETE, &one.path(&format!("records/{first}"))).bearer_auth(&one.owner);
    let archived = Answer::of(archived).await.expect(200);
    let page = api.get_at(&one.owner, &path, archived.header("stream-position")).await.expect(200).json();
    assert_eq!(page["data"][0], row("2026-03-02", "north", "1", "0.2"));

    // What it was at an earlier moment, by the events alone.
    let events = one.path("audit/events?action=record.archived");
    let events = api.get_at(&one.owner, &events, archived.header("stream-position")).await.expect(200).json();
    let before = Moment::Idx(events["data"][0]["idx"].as_u64().unwrap() - 1);
    let org = BoundOrg::named_by_operator(one.id.parse().unwrap());
    let mut past = api.db.as_of(org, before, 1_000, 7).await.unwrap().unwrap();
    let (name, filter) = ("sale".parse().unwrap(), ViewFilter::default());
    let rows = views::rows(&mut past.tx, &name, "by_shop", &filter, &Page::First, 10).await.unwrap().rows;
    assert_eq!(rows.iter().map(|row| row.records).collect::<Vec<_>>(), [2, 1, 1]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_view_that_is_declared_late_is_built_beside_the_rows_and_is_what_a_comparison_finds() {
    let api = Api::start().await;
    registered(&api, &kind()).await;
    let org = api.org("late").await;
    let mut position = String::new();
    for nth in 0..40 {
        (_, position) = sale(&api, &org, ["north", "south"][nth % 2], &json!(nth), MONDAY).await;
    }
    api.sees(&org, &position).await;
    let mut views = kind()["views"].clone();
    views[0]["measures"].as_array_mut().unwrap().push(json!({"name": "most", "fold": "max", "of": "/amount"}));
    views.as_array_mut().unwrap().push(json!({
        "name": "total", "measures": [{"name": "mean", "fold": "avg", "of": "/amount"}],
    }));
    let change = api.request(Method::PATCH, "/v1/kinds/sale").bearer_auth(OPERATOR).json(&json!({"views": views}));
    let changed = Answer::of(change).await.expect(200);
    api.get_at(OPERATOR, "/v1/kinds", changed.header("stream-position")).await.expect(200);

    // Until it is built a new view says so, and a changed one shows what it was.
    let (path, total) = (org.path("views/sale/by_shop"), org.path("views/sale/total"));
    let mut waited = false;
    let built = eventually("the new view to be built", async || {
        let found = api.get(&org.owner, &total).await;
        if found.status == 503 {
            assert_eq!(found.json()["code"], "view_building");
            assert!(found.header("retry-after").parse::<u64>().unwrap() > 0);
            let list = api.get(&org.owner, &org.path("views")).await.expect(200).json();
            let list = list["data"].as_array().unwrap();
            let state = &list.iter().find(|view| view["definition"]["name"] == "total").unwrap()["state"];
            waited |= state == "waiting" || state == "building";
            let old = api.get(&org.owner, &path).await.expect(200).json();
            let is_old = old["data"][0]["measures"].get("most").is_none();
            assert!(is_old || old["building"].is_null(), "{old}");
            return None;
        }
        Some(found.expect(200).json())
    })
    .await;
    assert!(waited, "it was never seen to be built");
    assert_eq!(built["data"], json!([{"bucket": null, "group": [], "measures": {"mean": "19.5"}}]));
    let now = api.get(&org.owner, &path).await.expect(200).json();
    assert_eq!(now["data"][0]["measures"], json!({"sales": "20", "amount": "380", "most": "38"}));
    assert!(now["building"].is_null());
    let list = api.get(&org.owner, &org.path("views")).await.expect(200).json();
    let of_sale: Vec<_> = list["data"].as_array().unwrap().iter().filter(|view| view["kind"] == "sale").collect();
    assert!(of_sale.iter().all(|view| view["state"] == "ready" && view["percent"].is_null()), "{list}");
    assert_eq!(of_sale.len(), 2);

    // The version that is shown is what a replay of the events gives, and an edit of it is found.
    let bound = BoundOrg::named_by_operator(org.id.parse().unwrap());
    assert_eq!(differences(&api, bound).await, 0);
    api.sql("UPDATE rm.view_rows SET records = records + 1 WHERE view = 'total'").await;
    assert_eq!(differences(&api, bound).await, 1);
}

/// Compares the rows that are shown with a replay.
async fn differences(api: &Api, org: BoundOrg) -> u64 {
    api.db.ask_rebuild(org, Pipeline::ReadModels, RebuildJob::Verify).await.unwrap();
    eventually("the comparison", async || {
        let job = api.db.rebuilds_of(&[org.org()], Pipeline::ReadModels).await.unwrap().remove(0);
        assert_ne!(job.state, RebuildState::Failed, "{job:?}");
        (job.state == RebuildState::Done).then_some(job.differences)
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_view_that_cannot_be_folded_is_refused_where_it_is_wrong() {
    let api = Api::start().await;
    let view = |change: Value| {
        let mut kind = kind();
        kind["views"][0].as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
        kind
    };
    let count = json!({"name": "n", "fold": "count"});
    for (change, pointer, code) in [
        (json!({"measures": [{"name": "n", "fold": "sum", "of": "/shop"}]}), "/views/0/measures/0/of", "not_a_number"),
        (json!({"measures": [{"name": "n", "fold": "sum", "of": "/price"}]}), "/views/0/measures/0/of", "unknown"),
        (json!({"measures": vec![count.clone(); 9]}), "/views/0/measures", "too_many"),
        (json!({"group_by": ["/shop", "/amount", "/a", "/b", "/c"]}), "/views/0/group_by", "too_many"),
        (json!({"bucket_of": "/shop"}), "/views/0/bucket_of", "not_a_time"),
    ] {
        let refused = api.post(OPERATOR, "/v1/kinds", &view(change)).await.expect(422).json();
        let error = &refused["errors"][0];
        assert_eq!((&error["pointer"], &error["code"]), (&json!(pointer), &json!(code)), "{refused}");
    }
    let mut many = kind();
    let named = |nth| json!({"name": format!("v{nth}"), "measures": [count]});
    many["views"] = (0..9).map(named).collect();
    let refused = api.post(OPERATOR, "/v1/kinds", &many).await.expect(422).json();
    assert_eq!(refused["errors"][0]["pointer"], "/views");
    api.post(OPERATOR, "/v1/kinds", &view(json!({"bucket": "week"}))).await.expect(422);
}
