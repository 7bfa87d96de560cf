//! Search: by which words records are found and by whose, what is beside it, and what hostile texts and queries do.

use std::{
    collections::BTreeSet,
    fmt::Write as _,
    time::{Duration, Instant},
};

use orgstream::commands::request::Caller;
use orgstream_domain::{Command, CreateRecord, Scopes};
use orgstream_events::{Actor, ActorType, AggregateId, PLATFORM_ORG, Pipeline, Role};
use reqwest::Method;
use serde_json::{Value, json};
use sqlx::{Connection, PgConnection, Row};

use crate::{
    api::{Answer, Api, OPERATOR, Org},
    cluster::{Cluster, ClusterOptions, create},
    history::digests,
    support::database,
    workers::flood,
};

/// Registers a kind that is searched by its name, its text and its code.
pub(crate) async fn register(api: &Api, kind: &str, visibility: &str) {
    let schema = json!({"type": "object", "properties": {
        "name": {"type": "string", "x-search": "title"},
        "text": {"type": ["string", "null"], "x-search": "body"},
        "code": {"type": "array", "items": {"type": "string"}, "x-search": "keyword"},
        "state": {"type": "string", "enum": ["open", "shut"], "x-filter": true},
        "unsearched": {"type": "string"},
    }});
    let body = json!({"kind": kind, "title": kind, "visibility": visibility, "schema": schema});
    let position = api.post(OPERATOR, "/v1/kinds", &body).await.expect(201).header("stream-position").to_owned();
    api.get_at(OPERATOR, &format!("/v1/kinds/{kind}"), &position).await.expect(200);
}

/// Creates a record of a kind, and returns its id and position.
async fn write(api: &Api, org: &Org, kind: &str, data: &Value) -> (String, String) {
    let body = json!({"kind": kind, "data": data});
    let made = api.post(&org.owner, &org.path("records"), &body).await.expect(201).json();
    (made["id"].as_str().unwrap().to_owned(), made["position"].as_str().unwrap().to_owned())
}

pub(crate) async fn note(api: &Api, org: &Org, data: Value) -> (String, String) {
    write(api, org, "note", &data).await
}

/// A published record of the platform.
async fn global(api: &Api, kind: &str, data: Value) -> String {
    let id = draft(api, kind, data).await;
    let request = api.request(Method::POST, &format!("/v1/catalog-items/{id}/publish")).bearer_auth(OPERATOR);
    Answer::of(request).await.expect(200);
    id
}

/// A record of the platform, as the program itself writes it.
async fn draft(api: &Api, kind: &str, data: Value) -> String {
    let caller = Caller {
        org: PLATFORM_ORG,
        actor: Actor { actor_type: ActorType::System, id: "system".to_owned(), auth: None },
        role: Role::Owner,
        scopes: Scopes::ALL,
        proof: None,
        right: None,
        creator: None,
        context: orgstream_events::Context::default(),
        request_id: None,
        trace: None,
    };
    let command = Command::from(CreateRecord { kind: kind.parse().unwrap(), data, id: None });
    let made = api.gateway.handler().handle(&caller, command.into()).await.unwrap();
    let AggregateId::Record(id) = made.aggregate else { panic!("{made:?}") };
    id.to_string()
}

fn encoded(text: &str) -> String {
    text.bytes().fold(String::new(), |mut query, byte| {
        write!(query, "%{byte:02X}").unwrap();
        query
    })
}

pub(crate) fn path(org: &Org, query: &str, more: &str) -> String {
    org.path(&format!("search?q={}{more}", encoded(query)))
}

/// The answer to a query, once the index has what was written at `position`.
pub(crate) async fn found_at(api: &Api, org: &Org, query: &str, more: &str, position: &str) -> Value {
    api.get_at(&org.owner, &path(org, query, more), position).await.expect(200).json()
}

async fn found(api: &Api, org: &Org, query: &str) -> Value {
    api.get(&org.owner, &path(org, query, "&include_global=false")).await.expect(200).json()
}

/// The titles of the hits, in their order.
pub(crate) fn titles(page: &Value) -> Vec<&str> {
    let hits = page["data"].as_array().unwrap_or_else(|| panic!("{page}"));
    hits.iter().map(|hit| hit["title"].as_str().unwrap_or_default()).collect()
}

pub(crate) fn ids(page: &Value) -> Vec<&str> {
    page["data"].as_array().unwrap().iter().map(|hit| hit["id"].as_str().unwrap()).collect()
}

pub(crate) async fn nothing_is_parked(api: &Api) {
    let parked: i64 =
        sqlx::query_scalar("SELECT count(*) FROM ops.parked").fetch_one(&mut api.owner().await).await.unwrap();
    assert_eq!(parked, 0);
}

#[tokio::test]
async fn s3_17_documents_and_postings_have_the_tenant() {
    let database = database().await;
    let mut owner = PgConnection::connect(&database.owner_url).await.unwrap();
    let nullable: Vec<(String, String)> = sqlx::query_as(
        "SELECT table_name::text, is_nullable::text FROM information_schema.columns
        WHERE table_schema = 'rm' AND column_name = 'org_id'
            AND table_name IN ('search_documents', 'postings', 'search_statistics') ORDER BY 1",
    )
    .fetch_all(&mut owner)
    .await
    .unwrap();
    let expected = ["postings", "search_documents", "search_statistics"];
    assert_eq!(nullable, expected.map(|table| (table.to_owned(), "NO".to_owned())));
    // Row-level security is checked for all tables by `every_tenant_table_obeys_the_rules`.
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s3_18_the_same_text_is_found_by_its_owner_alone_and_a_neighbour_moves_no_byte() {
    let api = Api::start().await;
    register(&api, "note", "private").await;
    let (one, other) = (api.org("search-one").await, api.org("search-other").await);
    let (mine, _) = note(&api, &one, json!({"name": "Shared words", "text": "the very same text"})).await;
    let (_, last) = note(&api, &one, json!({"name": "Beside", "text": "something else", "state": "open"})).await;
    found_at(&api, &one, "same", "", &last).await;
    let queries = [
        ("same text", ""),
        ("", ""),
        ("*", ""),
        ("s*", ""),
        ("smae", ""),
        ("very", "&kind=note&filter[state]=open"),
        ("text", "&kind=note"),
        ("the -else", "&limit=1"),
        ("\"very same\"", "&offset=1"),
        ("theirs", ""),
    ];
    let answers = async || {
        let mut answers = Vec::new();
        for (query, more) in queries {
            answers.push(api.get(&one.owner, &path(&one, query, more)).await.expect(200).json().to_string());
        }
        answers
    };
    let before = answers().await;
    let mut position = String::new();
    for nth in 0..60 {
        let data =
            json!({"name": "Shared words", "text": format!("the very same text theirs{nth} smae"), "state": "open"});
        (_, position) = note(&api, &other, data).await;
    }
    let theirs = found_at(&api, &other, "same text", "", &position).await;
    assert_eq!(theirs["total"], 60);
    assert_eq!(answers().await, before);
    let found = found(&api, &one, "same text").await;
    assert_eq!((ids(&found), &found["total"], &found["kinds"]), (vec![&*mine], &json!(1), &json!({"note": 1})));
    assert_eq!(found["data"][0]["scope"], "own");
    // Another organization is not there.
    api.get(&one.owner, &path(&other, "same", "")).await.expect(404);
}

// S5.36
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s3_19_s5_36_what_all_share_is_found_if_asked_for_and_never_what_others_have() {
    let api = Api::start().await;
    for (kind, visibility) in [("knowledge", "opt_in"), ("manual", "default_on"), ("note", "private")] {
        register(&api, kind, visibility).await;
    }
    let (one, other) = (api.org("global-one").await, api.org("global-other").await);
    let knowledge = global(&api, "knowledge", json!({"name": "Common knowledge", "text": "a lighthouse"})).await;
    let manual = global(&api, "manual", json!({"name": "Common manual", "text": "a lighthouse"})).await;
    draft(&api, "note", json!({"name": "Private note", "text": "a lighthouse"})).await;
    draft(&api, "manual", json!({"name": "Draft", "text": "a lighthouse"})).await;
    let (theirs, _) = write(&api, &other, "knowledge", &json!({"name": "Theirs", "text": "a lighthouse"})).await;
    let (own, last) = write(&api, &one, "knowledge", &json!({"name": "Own", "text": "a lighthouse"})).await;
    let deadline = Instant::now() + Duration::from_secs(30);
    let all = loop {
        let found = found_at(&api, &one, "lighthouse ", "&include_global=true", &last).await;
        // The platform's own index may be behind.
        if found["total"] == 3 {
            break found;
        }
        assert!(Instant::now() < deadline, "{found}");
    };
    let scoped = |page: &Value| {
        let hits = page["data"].as_array().unwrap().iter();
        hits.map(|hit| (hit["id"].as_str().unwrap().to_owned(), hit["scope"].as_str().unwrap().to_owned()))
            .collect::<BTreeSet<_>>()
    };
    let own_hit = (own.clone(), "own".to_owned());
    let [of_knowledge, of_manual] = [knowledge, manual].map(|id| (id, "global".to_owned()));
    assert_eq!(scoped(&all), BTreeSet::from([own_hit.clone(), of_knowledge, of_manual.clone()]));
    assert_eq!(ids(&all)[0], own, "one's own comes first");
    let by_default = found_at(&api, &one, "lighthouse ", "", &last).await;
    assert_eq!(scoped(&by_default), BTreeSet::from([own_hit.clone(), of_manual]));
    for only_own in ["&include_global=false", "&kind=knowledge", "&kind=note"] {
        let found = found_at(&api, &one, "lighthouse ", only_own, &last).await;
        let expected = if only_own == "&kind=note" { BTreeSet::new() } else { BTreeSet::from([own_hit.clone()]) };
        assert_eq!(scoped(&found), expected, "{only_own}");
    }
    // In pages, each once.
    let mut paged = Vec::new();
    let mut offset = 0;
    loop {
        let page =
            found_at(&api, &one, "lighthouse ", &format!("&include_global=true&limit=1&offset={offset}"), &last).await;
        paged.extend(ids(&page).into_iter().map(str::to_owned));
        let Some(next) = page["next_offset"].as_u64() else { break };
        offset = next;
    }
    assert_eq!(paged, ids(&all));
    assert!(!paged.contains(&theirs));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn records_are_found_by_their_words() {
    let api = Api::start().await;
    register(&api, "note", "private").await;
    let org = api.org("words").await;
    let (_, mut last) =
        note(&api, &org, json!({"name": "camera", "text": "model DS-7604NI-E1/4P by snake_case_name"})).await;
    for data in [
        json!({"name": "coffee", "text": "Café in der Straße, İstanbul, ﬁne"}),
        json!({"name": "japanese", "text": "これは日本語のテストです"}),
        json!({"name": "korean", "text": "번역을 합니다"}),
        json!({"name": "red", "text": "the red car is fast", "state": "open"}),
        json!({"name": "car", "text": "the car is red and slow", "state": "shut"}),
        json!({"name": "mail", "text": "write to someone@mail.example", "code": ["AB 12", "X-9"]}),
        json!({"name": "hidden", "unsearched": "invisible"}),
        json!({"name": "markup", "text": "<img src=x onerror=alert(1)> word"}),
    ] {
        (_, last) = note(&api, &org, data).await;
    }
    found_at(&api, &org, "word", "", &last).await;
    for (query, expected) in [
        ("DS-7604", vec!["camera"]),
        ("ds-7604ni-e1/4p ", vec!["camera"]),
        ("case ", vec!["camera"]),
        ("snake_case_name ", vec!["camera"]),
        ("cafe ", vec!["coffee"]),
        ("STRASSE ", vec!["coffee"]),
        ("istanbul ", vec!["coffee"]),
        ("fine ", vec!["coffee"]),
        ("テスト", vec!["japanese"]),
        ("日本語", vec!["japanese"]),
        ("번역", vec!["korean"]),
        ("example ", vec!["mail"]),
        ("someone@mail.example ", vec!["mail"]),
        ("x-9 ", vec!["mail"]),
        ("red ", vec!["red", "car"]),
        ("fas", vec!["red"]),
        ("fas ", vec!["red"]),
        ("sl* ", vec!["car"]),
        ("\"red car\"", vec!["red"]),
        ("red -slow ", vec!["red"]),
        ("red -\"car is\" ", vec![]),
        ("red -ca ", vec!["red", "car"]),
        ("invisible ", vec![]),
        ("red camera ", vec![]),
        ("", vec![]),
        ("-red", vec![]),
    ] {
        let found = found(&api, &org, query).await;
        // Ranked: by the title first.
        assert_eq!(titles(&found), expected, "{query:?}: {found}");
        assert_eq!((&found["total"], &found["complete"]), (&json!(expected.len()), &json!(true)), "{query:?}");
    }
    // A word that is written alike stands for one that nobody has.
    let corrected = found(&api, &org, "japenese ").await;
    assert_eq!((titles(&corrected), &corrected["corrections"]), (vec!["japanese"], &json!({"japenese": ["japanese"]})));
    assert_eq!(found(&api, &org, "xapanese ").await["total"], 0);
    // The text as it stands, and where it was found.
    let markup = found(&api, &org, "onerror ").await;
    let snippet =
        json!({"field": "text", "text": "<img src=x onerror=alert(1)> word", "ranges": [{"start": 11, "end": 18}]});
    assert_eq!(markup["data"][0]["snippets"], json!([snippet]));
    // Counted by kind, and by the fields with few values.
    let faceted = api.get(&org.owner, &path(&org, "the ", "&kind=note")).await.expect(200).json();
    assert_eq!(
        (&faceted["kinds"], &faceted["facets"]),
        (&json!({"note": 2}), &json!({"state": {"open": 1, "shut": 1}}))
    );
    let filtered = api.get(&org.owner, &path(&org, "the ", "&kind=note&filter[state]=open")).await.expect(200).json();
    assert_eq!((titles(&filtered), &filtered["facets"]), (vec!["red"], &json!({"state": {"open": 1}})));
    let either = "&kind=note&filter[state][in]=open,shut&limit=1";
    let either = api.get(&org.owner, &path(&org, "the ", either)).await.expect(200).json();
    assert_eq!((titles(&either).len(), &either["total"], &either["next_offset"]), (1, &json!(2), &json!(1)));
    let long = format!("&q={}", "x".repeat(8_193));
    for (more, said) in [
        ("&filter[state]=open", "filter: takes one kind of records"),
        (
            "&kind=note&filter[text]=open",
            "filter[text]: the kind declares no such field with few values; there are: state",
        ),
        ("&limit=0", "limit: 0 is not between 1 and 100"),
        ("&offset=990", "offset: and limit must be at most 1000 together"),
    ] {
        let refused = api.get(&org.owner, &path(&org, "the", more)).await.expect(400).json();
        assert!(refused["detail"].as_str().unwrap().contains(said), "{refused}");
    }
    let refused = api.get(&org.owner, &org.path(&format!("search?{}", &long[1..]))).await.expect(400).json();
    assert!(refused["detail"].as_str().unwrap().starts_with("q: must have at most 8192"), "{refused}");
    api.get(&org.owner, &org.path("search")).await.expect(400);
    let unknown = api.get(&org.owner, &path(&org, "the", "&kind=nonsense")).await.expect(422).json();
    assert_eq!(unknown["errors"][0]["pointer"], "/kind");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_written_is_found_at_once_and_what_was_archived_is_not() {
    let api = Api::start().await;
    register(&api, "note", "private").await;
    let org = api.org("fresh").await;
    let (id, written) = note(&api, &org, json!({"name": "First", "text": "apple"})).await;
    let found = found_at(&api, &org, "apple ", "", &written).await;
    assert_eq!((ids(&found), &found["data"][0]["position"]), (vec![&*id], &json!(written)));
    let record = org.path(&format!("records/{id}"));
    let body = json!({"data": {"name": "First", "text": "banana", "state": "open"}});
    let updated = Answer::of(api.request(Method::PUT, &record).bearer_auth(&org.owner).json(&body)).await.expect(200);
    let position = updated.header("stream-position").to_owned();
    assert_eq!(found_at(&api, &org, "apple ", "", &position).await["total"], 0);
    assert_eq!(ids(&found_at(&api, &org, "banana ", "", &position).await), [&*id]);
    let count = async |table: &'static str| -> i64 {
        let query =
            sqlx::AssertSqlSafe(format!("SELECT count(*) FROM rm.{table} WHERE org_id <> '{}'", PLATFORM_ORG.uuid()));
        sqlx::query_scalar(query).fetch_one(&mut api.owner().await).await.unwrap()
    };
    assert_eq!((count("search_documents").await, count("postings").await), (1, 3));
    let archived = Answer::of(api.request(Method::DELETE, &record).bearer_auth(&org.owner)).await.expect(200);
    let position = archived.header("stream-position").to_owned();
    assert_eq!(found_at(&api, &org, "banana ", "", &position).await["total"], 0);
    for table in ["search_documents", "postings", "search_statistics"] {
        assert_eq!(count(table).await, 0, "{table}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hostile_texts_are_found_as_far_as_they_are_searched_and_park_nothing() {
    let api = Api::start().await;
    register(&api, "note", "private").await;
    let org = api.org("hostile").await;
    let token = "q".repeat(5_000);
    // Of letters alone, so that none is split.
    let word = |nth: u32| -> String {
        format!("{nth:05x}")
            .bytes()
            .map(|digit| char::from(if digit < b'a' { digit - b'0' + b'g' } else { digit }))
            .collect()
    };
    let unique: String = (0..120_000).map(|nth| format!("{} ", word(nth))).collect();
    assert!(unique.len() > 700_000);
    note(&api, &org, json!({"name": "token", "text": token})).await;
    note(&api, &org, json!({"name": "unique", "text": unique})).await;
    let mut last = String::new();
    for odd in [
        "\u{1}\u{2}\u{7f}\u{85}\u{200b}\u{feff}".to_owned(),
        "a-".repeat(50_000),
        "_".repeat(50_000),
        "é\u{301}".repeat(20_000),
        "\u{301}".repeat(20_000),
        "日本語".repeat(20_000),
        "aB1".repeat(20_000),
        "\u{fdfa}\u{3300}\u{1f600}\u{e0001}\u{10ffff}".repeat(500),
        "' \" ; DROP TABLE rm.postings; -- \\ % _ $1 :x & | ! <-> ( )".to_owned(),
    ] {
        (_, last) = note(&api, &org, json!({"name": odd.chars().take(300).collect::<String>(), "text": odd})).await;
    }
    found_at(&api, &org, "drop", "", &last).await;
    assert_eq!(titles(&found(&api, &org, &token).await), ["token"]);
    assert_eq!(titles(&found(&api, &org, &format!("{token}q")).await), Vec::<&str>::new());
    let cut = found(&api, &org, &format!("{} ", word(42))).await;
    assert_eq!((titles(&cut), &cut["data"][0]["truncated"]), (vec!["unique"], &json!(true)));
    // Quoted, so that no other word stands for it.
    let beyond = found(&api, &org, &format!("\"{}\"", word(119_999))).await;
    assert_eq!(beyond["total"], 0, "beyond what is searched");
    nothing_is_parked(&api).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn any_query_is_answered() {
    const QUERIES: u32 = 2_000;
    let api = Api::start().await;
    register(&api, "note", "private").await;
    let org = api.org("fuzzed").await;
    let (_, last) =
        note(&api, &org, json!({"name": "A note", "text": "some words, of 日本語 and x_y", "state": "open"})).await;
    found_at(&api, &org, "some", "", &last).await;
    let pieces = [
        "some",
        "wor",
        "x_y",
        "日",
        "本語",
        "\"",
        "-",
        "*",
        " ",
        ":",
        "<",
        ">",
        "&",
        "|",
        "!",
        "(",
        ")",
        "\\",
        "%",
        "_",
        "'",
        "\0",
        "\u{301}",
        "\u{fdfa}",
        "é",
        "a-b.c/d",
        "ß",
        "\u{10ffff}",
        "\u{200b}",
        "=",
        "#",
        "\n",
        "9",
        "AbC",
        "~",
        "filter[",
        "1e999",
    ];
    let mut state: u64 = 7;
    let mut next = |below: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from((state >> 33) % below as u64).unwrap()
    };
    for _ in 0..QUERIES {
        let query: String = (0..=next(24)).map(|_| pieces[next(pieces.len())]).collect();
        let more =
            ["", "&kind=note", "&include_global=true", "&limit=1&offset=3", "&kind=note&filter[state]=open"][next(5)];
        let answer = api.get(&org.owner, &path(&org, &query, more)).await;
        // A zero byte is in no text that the program takes.
        let expected = if query.contains('\0') { 422 } else { 200 };
        assert_eq!(answer.status, expected, "{query:?}{more}");
    }
    nothing_is_parked(&api).await;
}

/// Every line of a plan about the postings.
fn about_postings(plan: &Value, lines: &mut Vec<Value>) {
    if plan["Relation Name"] == "postings" {
        lines.push(plan.clone());
    }
    for part in plan["Plans"].as_array().into_iter().flatten() {
        about_postings(part, lines);
    }
}

#[tokio::test]
async fn postings_are_read_by_their_index_alone() {
    let database = database().await;
    let mut owner = PgConnection::connect(&database.owner_url).await.unwrap();
    // Of a small organization beside a large one.
    let insert = "INSERT INTO rm.postings (org_id, rm_version, key, weight, length)
        SELECT org.id, 1, convert_to('note', 'UTF8') || '\\x00'::bytea || convert_to('w' || nth % 50, 'UTF8') || '\\x00'::bytea
            || uuid_send(gen_random_uuid()), 1, 10
        FROM (VALUES ('00000000-0000-0000-0000-000000000001'::uuid, 20), ('00000000-0000-0000-0000-000000000002', 30000))
            AS org (id, size) CROSS JOIN LATERAL generate_series(1, org.size) AS nth";
    sqlx::raw_sql(insert).execute(&mut owner).await.unwrap();
    sqlx::raw_sql("VACUUM ANALYZE rm.postings").execute(&mut owner).await.unwrap();
    let mut reader = PgConnection::connect(&database.app_url("app_ro")).await.unwrap();
    let range = "SELECT posting.key, posting.weight FROM unnest(ARRAY['\\x6e6f746500773100'::bytea], ARRAY['\\x6e6f746500773101'::bytea])
        AS item (low, high) CROSS JOIN LATERAL (SELECT key, weight, length FROM rm.postings
        WHERE org_id = app.org() AND key >= item.low AND key < item.high ORDER BY key LIMIT 10) AS posting";
    let exact = "WITH item AS MATERIALIZED (SELECT low || '\\x00'::bytea AS key FROM unnest(ARRAY['\\x6e6f74'::bytea]) AS one (low))
        SELECT posting.weight FROM item CROSS JOIN LATERAL (SELECT weight FROM rm.postings
        WHERE org_id = app.org() AND key = item.key) AS posting";
    for org in ["00000000-0000-0000-0000-000000000001", "00000000-0000-0000-0000-000000000002"] {
        for query in [range, exact] {
            let mut tx = reader.begin().await.unwrap();
            for setting in ["enable_seqscan", "enable_bitmapscan"] {
                sqlx::query("SELECT set_config($1, 'off', true)").bind(setting).execute(&mut *tx).await.unwrap();
            }
            sqlx::query("SELECT set_config('app.org_id', $1, true), set_config('app.search_version', '1', true)")
                .bind(org)
                .execute(&mut *tx)
                .await
                .unwrap();
            let explain = sqlx::AssertSqlSafe(format!(
                "EXPLAIN (FORMAT JSON) {}",
                query.replace("app.org()", &format!("'{org}'"))
            ));
            let plan: Value = sqlx::query(explain).fetch_one(&mut *tx).await.unwrap().get(0);
            let mut lines = Vec::new();
            about_postings(&plan[0]["Plan"], &mut lines);
            assert_eq!(lines.len(), 1, "{plan:#}");
            assert_eq!(
                (&lines[0]["Node Type"], &lines[0]["Filter"]),
                (&json!("Index Only Scan"), &Value::Null),
                "{plan:#}"
            );
            assert!(lines[0]["Index Cond"].as_str().unwrap().contains("key"), "{plan:#}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_index_is_rebuilt_beside_the_one_that_is_shown() {
    let cluster = Cluster::start(ClusterOptions::default()).await;
    let tenant = cluster.tenant("reindexed").await;
    flood(&cluster, &tenant, "some", 300).await;
    let made = cluster.client.command(&tenant, "needle", &create("needle one")).await.expect(201);
    cluster.until_projected(&tenant).await;
    let mut database = cluster.superuser().await;
    let before = digests(&mut database).await;
    let hits = async || {
        cluster.client.get(&tenant.owner, &tenant.path("search?q=needle")).await.expect(200).body["data"].clone()
    };
    let seen = hits().await;
    assert_eq!(seen.as_array().unwrap().len(), 1, "{}", made.body);
    let id = tenant.id.to_string();
    let rebuild = async |flags: &[&str]| {
        cluster.cli("", &[&["rebuild", "--org", &id, "--pipeline", Pipeline::Search.name()], flags].concat()).await
    };
    rebuild(&["--verify"]).await.success();
    rebuild(&[]).await.success();
    let version = "SELECT pipeline, version FROM ops.checkpoints WHERE org_id = $1 AND active ORDER BY pipeline";
    let versions: Vec<(String, i32)> =
        sqlx::query_as(version).bind(tenant.id.uuid()).fetch_all(&mut database).await.unwrap();
    let search = versions.iter().find(|(pipeline, _)| *pipeline == Pipeline::Search.name()).unwrap();
    assert!(search.1 > 1, "{versions:?}");
    assert!(
        versions.iter().all(|(pipeline, version)| *pipeline == Pipeline::Search.name() || *version == 1),
        "{versions:?}"
    );
    assert_eq!((digests(&mut database).await, hits().await), (before.clone(), seen));
    // It goes on from there, and what somebody changes is found and mended.
    flood(&cluster, &tenant, "more", 20).await;
    cluster.until_projected(&tenant).await;
    rebuild(&["--verify"]).await.success();
    let plant = "UPDATE rm.postings SET weight = weight + 1 WHERE ctid = (
        SELECT ctid FROM rm.postings WHERE org_id = $1 AND rm_version = (SELECT max(rm_version) FROM rm.postings) LIMIT 1)";
    sqlx::query(plant).bind(tenant.id.uuid()).execute(&mut database).await.unwrap();
    let said = rebuild(&["--verify"]).await.failure();
    assert!(said.stdout.contains("rm.postings"), "{}", said.stdout);
    rebuild(&[]).await.success();
    rebuild(&["--drop-old"]).await.success();
    rebuild(&["--verify"]).await.success();
    let versions: i64 = sqlx::query_scalar("SELECT count(DISTINCT rm_version) FROM rm.postings WHERE org_id = $1")
        .bind(tenant.id.uuid())
        .fetch_one(&mut database)
        .await
        .unwrap();
    assert_eq!(versions, 1);
}
