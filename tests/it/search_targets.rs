//! Search targets: organizations whose index of words is in OpenSearch or in another PostgreSQL database, beside those whose index is in
//! the database of the read models.

use std::time::{Duration, Instant};

use orgstream::adapters::search_target::{OpenSearch, OpenSearchOptions};
use orgstream_events::{Chain, KindName, OrgId, Pipeline, RecordId, SearchRole, SearchedField};
use orgstream_projections::{
    Asked as Placed, BoundOrg, Rebuild, RebuildJob, RebuildState,
    search::{
        Asked, Kinds, PostgresTarget,
        document::Document,
        query::SearchQuery,
        target::{Change, FoundRecord, IndexVersion, NamedTarget, SearchTarget, SearchTargets, TargetError, Writer},
    },
};
use reqwest::Method;
use serde_json::{Value, json};
use sqlx::{Connection, PgConnection};

use crate::{
    api::{Answer, Api, Org},
    cluster::{Cluster, ClusterOptions, create, eventually},
    opensearch::{FakeOpenSearch, Mode},
    search::{found_at, ids, note, nothing_is_parked, path, register, titles},
    support::{APP_PASSWORD, TempDir, TestDatabase, database},
};

const LARGE: &str = "large";
const OTHER: &str = "other";
/// How long an index that is written to may take to be placed.
const PLACED_WITHIN: Duration = Duration::from_secs(60);

fn options(fake: &FakeOpenSearch) -> OpenSearchOptions {
    OpenSearchOptions { url: fake.url.clone(), prefix: "test-".to_owned(), ca: None, authorization_file: None }
}

fn opensearch(fake: &FakeOpenSearch) -> OpenSearch {
    OpenSearch::new(options(fake)).unwrap()
}

/// An OpenSearch and another database, and both as targets.
async fn targets() -> (FakeOpenSearch, TestDatabase, SearchTargets) {
    let (fake, other) = (FakeOpenSearch::start().await, database().await);
    let postgres = PostgresTarget::new(&other.options()).unwrap();
    let targets = SearchTargets::new([
        NamedTarget::new(LARGE.to_owned(), "opensearch", String::new(), opensearch(&fake)),
        NamedTarget::new(OTHER.to_owned(), "postgres", String::new(), postgres),
    ]);
    (fake, other, targets)
}

fn bound(org: &Org) -> BoundOrg {
    BoundOrg::named_by_operator(org.id.parse().unwrap())
}

async fn job(api: &Api, org: &Org) -> Rebuild {
    let orgs = [bound(org).org()];
    api.db.rebuilds_of(&orgs, Pipeline::Search).await.unwrap().remove(0)
}

/// Waits for the last job on an organization's index.
async fn until_done(api: &Api, org: &Org) -> Rebuild {
    eventually(&format!("the index of {} to be built", org.slug), async || {
        let job = job(api, org).await;
        assert_ne!(job.state, RebuildState::Failed, "{job:?}");
        (job.state == RebuildState::Done).then_some(job)
    })
    .await
}

/// Places an organization's index, and waits until it is shown from there.
async fn place(api: &Api, org: &Org, target: Option<&str>) {
    let asked = api.db.place_index(bound(org), target).await.unwrap();
    assert!(matches!(asked, Placed::Begun(_)), "{asked:?}");
    until_done(api, org).await;
    let shown = api.db.read(bound(org)).await.unwrap().search_target().await.unwrap();
    assert_eq!(shown.as_deref(), target);
}

/// The organizations with rows of words in a database.
async fn indexed(owner_url: &str) -> Vec<OrgId> {
    let mut owner = PgConnection::connect(owner_url).await.unwrap();
    let orgs: Vec<uuid::Uuid> = sqlx::query_scalar(
        "SELECT DISTINCT org_id FROM (
            SELECT org_id FROM rm.postings UNION SELECT org_id FROM rm.search_documents UNION SELECT org_id FROM rm.search_statistics
        ) AS known",
    )
    .fetch_all(&mut owner)
    .await
    .unwrap();
    orgs.into_iter().map(OrgId::from_uuid).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s3_39_each_organization_is_searched_where_it_is_placed() {
    let (fake, other_database, targets) = targets().await;
    let api = Api::start_searching(targets).await;
    register(&api, "note", "private").await;
    let orgs = [api.org("at-home").await, api.org("in-opensearch").await, api.org("in-postgres").await];
    let [home, large, other] = &orgs;
    let notes = [
        json!({"name": "camera", "text": "model DS-7604NI-E1/4P by snake_case_name", "state": "open"}),
        json!({"name": "red", "text": "the red car is fast", "state": "open"}),
        json!({"name": "car", "text": "the car is red and slow", "state": "shut"}),
        json!({"name": "japanese", "text": "これは日本語のテストです"}),
        json!({"name": "gone", "text": "red for a while"}),
    ];
    for org in &orgs {
        for data in &notes[..2] {
            note(&api, org, data.clone()).await;
        }
    }
    place(&api, large, Some(LARGE)).await;
    place(&api, other, Some(OTHER)).await;
    // What is written afterwards is found at once, and what is archived is not.
    let mut own = Vec::new();
    for org in &orgs {
        let mut position = String::new();
        for data in &notes[2..] {
            let (id, written) = note(&api, org, data.clone()).await;
            let found = found_at(&api, org, data["name"].as_str().unwrap(), "", &written).await;
            assert!(ids(&found).contains(&&*id), "{}: {found}", org.slug);
            let archive = api.request(Method::DELETE, &org.path(&format!("records/{id}"))).bearer_auth(&org.owner);
            position = if data["name"] == "gone" {
                Answer::of(archive).await.expect(200).header("stream-position").to_owned()
            } else {
                written
            };
        }
        own.push(position);
    }
    for (query, more, expected) in [
        ("red ", "", vec!["red", "car"]),
        ("DS-7604", "", vec!["camera"]),
        ("テスト", "", vec!["japanese"]),
        ("\"red car\"", "", vec!["red"]),
        ("red -slow ", "", vec!["red"]),
        ("ca*", "", vec!["camera", "car", "red"]),
        ("red camera ", "", vec![]),
        ("gone ", "", vec![]),
        ("", "", vec![]),
        ("\" XYZZY \\ { } [ ] *:* ", "", vec![]),
        ("the ", "&kind=note&filter[state]=shut", vec!["car"]),
        ("the ", "&kind=model", vec![]),
    ] {
        for (org, position) in orgs.iter().zip(&own) {
            let found = found_at(&api, org, query, more, position).await;
            let mut hits = titles(&found);
            hits.sort_unstable();
            let mut expected = expected.clone();
            expected.sort_unstable();
            assert_eq!(hits, expected, "{query:?} of {}: {found}", org.slug);
            assert_eq!((&found["total"], &found["complete"]), (&json!(expected.len()), &json!(true)), "{query:?}");
        }
    }
    let answers = async |query: &str, more: &str, fields: &[&str]| {
        let mut answers = Vec::new();
        for (org, position) in orgs.iter().zip(&own) {
            let found = found_at(&api, org, query, more, position).await;
            answers.push(fields.iter().map(|field| found[*field].clone()).collect::<Vec<_>>());
        }
        answers
    };
    for (query, more, fields) in [
        ("the ", "&kind=note", &["kinds", "facets", "total"][..]),
        ("japenese ", "", &["corrections", "total", "kinds"]),
        ("xapanese ", "", &["corrections", "total"]),
    ] {
        let seen = answers(query, more, fields).await;
        assert!(seen.iter().all(|one| *one == seen[0]), "{query:?}: {seen:?}");
    }
    let snippets = answers("slow ", "", &["data"]).await;
    let snippets: Vec<&Value> = snippets.iter().map(|one| &one[0][0]["snippets"]).collect();
    assert!(
        snippets[0].as_array().unwrap().len() == 1 && snippets.iter().all(|one| *one == snippets[0]),
        "{snippets:?}"
    );

    // Each is in one place, by itself.
    let id = |org: &Org| org.id.parse::<OrgId>().unwrap();
    for org in [large, other] {
        api.db.ask_rebuild(bound(org), Pipeline::Search, RebuildJob::Drop).await.unwrap();
        until_done(&api, org).await;
    }
    let here = indexed(api.owner_url()).await;
    assert!(here.contains(&id(home)) && !here.contains(&id(large)) && !here.contains(&id(other)), "{here:?}");
    assert_eq!(indexed(&other_database.owner_url).await, [id(other)]);
    let index = format!("test-{}-v2", large.id);
    assert_eq!((fake.indexes(), fake.alias(&format!("test-{}", large.id))), (vec![index.clone()], vec![index.clone()]));
    assert!(fake.documents(&index).iter().all(|(_, document)| document["org"] == large.id), "{index}");
    // Those that are elsewhere are not compared row by row.
    let verify = api.db.ask_rebuild(bound(large), Pipeline::Search, RebuildJob::Verify).await.unwrap();
    assert!(matches!(verify, Placed::Elsewhere(ref target) if target == LARGE), "{verify:?}");
    let there = api.db.place_index(bound(large), Some(LARGE)).await.unwrap();
    assert!(matches!(there, Placed::There), "{there:?}");

    // From one to another, again where it is, and back; what was there is dropped.
    place(&api, large, Some(OTHER)).await;
    assert!(matches!(
        api.db.ask_rebuild(bound(large), Pipeline::Search, RebuildJob::Build).await.unwrap(),
        Placed::Begun(_)
    ));
    until_done(&api, large).await;
    let shown = api.db.read(bound(large)).await.unwrap().search_target().await.unwrap();
    assert_eq!((shown.as_deref(), fake.indexes()), (Some(OTHER), vec![]));
    place(&api, large, None).await;
    let (_, position) = note(&api, large, json!({"name": "home again", "text": "red"})).await;
    assert_eq!(found_at(&api, large, "red ", "", &position).await["total"], 3);
    api.db.ask_rebuild(bound(large), Pipeline::Search, RebuildJob::Drop).await.unwrap();
    until_done(&api, large).await;
    assert_eq!(indexed(&other_database.owner_url).await, [id(other)]);
    assert_eq!(api.db.placed_indexes().await.unwrap(), [(id(other), OTHER.to_owned())]);
    nothing_is_parked(&api).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_target_that_is_away_is_waited_for_by_its_own_organizations_alone() {
    let (fake, _other, targets) = targets().await;
    let api = Api::start_searching(targets).await;
    register(&api, "note", "private").await;
    let (large, home) = (api.org("waiting").await, api.org("not-waiting").await);
    note(&api, &large, json!({"name": "before", "text": "needle"})).await;
    place(&api, &large, Some(LARGE)).await;
    let mut written = 1;
    for mode in [
        Mode::Refuse(429),
        Mode::Refuse(500),
        Mode::Refuse(404),
        Mode::Redirect,
        Mode::TakeHalf,
        Mode::LoseAnswers,
        Mode::Hang,
    ] {
        fake.turn(mode);
        let mut last = String::new();
        for nth in 0..3 {
            (_, last) = note(&api, &large, json!({"name": format!("{mode:?} {nth}"), "text": "needle"})).await;
            written += 1;
        }
        // Others are searched, and their new records found, as ever.
        for nth in 0..5 {
            let begun = Instant::now();
            let (id, position) = note(&api, &home, json!({"name": format!("{mode:?} {nth}"), "text": "straw"})).await;
            let found = found_at(&api, &home, &format!("\"{mode:?} {nth}\""), "&include_global=false", &position).await;
            assert!(ids(&found).contains(&&*id), "{mode:?}: {found}");
            assert!(begun.elapsed() < Duration::from_secs(5), "{mode:?}: {:?}", begun.elapsed());
        }
        // So are the organization's own records by their ids and lists.
        api.get_at(&large.owner, &large.path("records"), &last).await.expect(200);
        if !matches!(mode, Mode::TakeHalf) {
            eventually("its searches to be refused", async || {
                let refused = api.get(&large.owner, &path(&large, "needle", "&include_global=false")).await;
                let is_refused = refused.status == 503 && refused.problem() == "search_target_unavailable";
                is_refused.then(|| assert_eq!(refused.header("retry-after"), "1"))
            })
            .await;
        }
        fake.turn(Mode::Answer);
        let found = eventually("the target to be used again", async || {
            let answer = api.get_at(&large.owner, &path(&large, "needle", "&limit=100"), &last).await;
            (answer.status == 200).then(|| answer.json())
        })
        .await;
        assert_eq!(found["total"], written, "{mode:?}: {found}");
    }
    nothing_is_parked(&api).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_placed_index_is_built_again_beside_the_one_that_is_searched() {
    let (fake, _other, targets) = targets().await;
    let api = Api::start_searching(targets).await;
    register(&api, "note", "private").await;
    let org = api.org("moving").await;
    let mut position = String::new();
    for nth in 0..30 {
        (_, position) = note(&api, &org, json!({"name": format!("n{nth}"), "text": "needle"})).await;
    }
    assert_eq!(found_at(&api, &org, "needle ", "", &position).await["total"], 30);
    let mut written = 30;
    for target in [Some(LARGE), Some(OTHER), Some(LARGE), None] {
        let asked = api.db.place_index(bound(&org), target).await.unwrap();
        assert!(matches!(asked, Placed::Begun(_)), "{asked:?}");
        let begun = Instant::now();
        loop {
            let (_, position) = note(&api, &org, json!({"name": "meanwhile", "text": "needle"})).await;
            written += 1;
            assert_eq!(found_at(&api, &org, "needle ", "&limit=1", &position).await["total"], written, "{target:?}");
            let job = job(&api, &org).await;
            assert_ne!(job.state, RebuildState::Failed, "{job:?}");
            if job.state == RebuildState::Done {
                break;
            }
            assert!(begun.elapsed() < PLACED_WITHIN, "{target:?} after {written} records: {job:?}");
        }
    }
    // A job that failed half-way begins with what is there, and a version that is not needed is dropped.
    assert_eq!(fake.alias(&format!("test-{}", org.id)).len(), 1, "kept to go back to");
    api.db.ask_rebuild(bound(&org), Pipeline::Search, RebuildJob::RollBack).await.unwrap();
    until_done(&api, &org).await;
    let (_, position) = note(&api, &org, json!({"name": "rolled back", "text": "needle"})).await;
    assert_eq!(found_at(&api, &org, "needle ", "&limit=1", &position).await["total"], written + 1);
    let shown = api.db.read(bound(&org)).await.unwrap().search_target().await.unwrap();
    assert_eq!(shown.as_deref(), Some(LARGE));
    nothing_is_parked(&api).await;
}

fn searched() -> Vec<SearchedField> {
    let field = |field: &str, role| SearchedField { field: field.to_owned(), role };
    vec![field("name", SearchRole::Title), field("state", SearchRole::Facet)]
}

fn change(id: RecordId, seq: u64, name: Option<&str>) -> Change {
    let found = name.map(|name| FoundRecord {
        kind: "note".parse().unwrap(),
        fields: searched(),
        document: Document::of(&searched(), &json!({"name": name, "state": "open"})).unwrap(),
    });
    Change { id, seq, found }
}

fn version(number: u128, version: i32) -> IndexVersion {
    IndexVersion { org: BoundOrg::named_by_operator(OrgId::from_uuid(uuid::Uuid::from_u128(number))), version }
}

fn record(number: u128) -> RecordId {
    RecordId::from_uuid(uuid::Uuid::from_u128(number))
}

/// The records that a target finds by a query, with the total of a kind.
async fn found(target: &impl SearchTarget, at: IndexVersion, query: &str) -> Vec<RecordId> {
    let (query, facets) = (SearchQuery::read(query), std::collections::BTreeMap::new());
    let asked = Asked { query: &query, kinds: Kinds::All, facets: &facets, count_facets: false };
    let matched = target.matching(at, asked).await.unwrap();
    assert_eq!(matched.total, matched.best.len() as u64);
    assert_eq!(matched.kinds.values().sum::<u64>(), matched.total);
    matched.best.iter().map(|one| one.ranked.id).collect()
}

fn said((TargetError::Away(cause) | TargetError::OfIndex(cause)): &TargetError) -> String {
    Chain(cause.as_ref()).to_string()
}

const SHOWN: Writer = Writer { epoch: 5, is_shown: true };

#[tokio::test]
async fn a_write_that_is_late_or_repeated_changes_nothing() {
    let (fake, other) = (FakeOpenSearch::start().await, database().await);
    let (large, postgres) = (opensearch(&fake), PostgresTarget::new(&other.options()).unwrap());
    let targets: [&dyn SearchTarget; 2] = [&large, &postgres];
    let (at, neighbour) = (version(1, 2), version(2, 2));
    for target in targets {
        target.check().await.unwrap();
        for at in [at, neighbour] {
            target.create(at).await.unwrap();
            target.create(at).await.unwrap();
        }
        let first = [change(record(1), 3, Some("first needle")), change(record(2), 4, Some("second needle"))];
        for _ in 0..3 {
            target.write(at, SHOWN, &first).await.unwrap();
        }
        target.write(at, SHOWN, &[change(record(1), 7, Some("first straw"))]).await.unwrap();
        target.write(at, SHOWN, &[change(record(2), 9, None)]).await.unwrap();
        target.write(neighbour, SHOWN, &[change(record(3), 5, Some("needle of a neighbour"))]).await.unwrap();
    }
    // OpenSearch knows the position of each document, and the database the worker that may write.
    large
        .write(at, SHOWN, &[change(record(1), 3, Some("first needle")), change(record(2), 8, Some("needle"))])
        .await
        .unwrap();
    let old = [change(record(1), 3, Some("needle"))];
    let late = postgres.write(at, Writer { epoch: 4, is_shown: true }, &old).await.unwrap_err();
    assert!(said(&late).contains("another worker"), "{late:?}");
    assert_eq!(
        (found(&large, at, "straw ").await, found(&postgres, at, "straw ").await),
        (vec![record(1)], vec![record(1)])
    );
    assert_eq!((found(&large, at, "needle ").await, found(&postgres, at, "needle ").await), (vec![], vec![]));
    assert_eq!(found(&large, neighbour, "needle ").await, found(&postgres, neighbour, "needle ").await);
    for target in targets {
        let read = target.records(at, &[record(1), record(2), record(3)]).await.unwrap();
        assert_eq!(read.iter().map(|one| (one.id, one.seq)).collect::<Vec<_>>(), [(record(1), 7)]);
        assert_eq!((read[0].title.as_deref(), &read[0].fields), (Some("first straw"), &searched()));
        assert_eq!(read[0].facets, json!({"state": "open"}).as_object().unwrap().clone());
        assert_eq!(target.records(at, &[]).await.unwrap(), []);
        // A version that is gone takes nothing, and comes back by nothing.
        while !target.drop_version(at, 1).await.unwrap() {}
        assert!(target.drop_version(at, 1).await.unwrap());
        target.write(at, SHOWN, &[change(record(1), 70, Some("needle"))]).await.unwrap_err();
    }
    assert_eq!(fake.indexes(), ["test-".to_owned() + &neighbour.org.org().to_string() + "-v2"]);
    assert_eq!(indexed(&other.owner_url).await, [neighbour.org.org()]);
}

#[tokio::test]
async fn requests_to_opensearch_are_those_of_the_recorded_protocol() {
    let fake = FakeOpenSearch::start().await;
    let dir = TempDir::new();
    let secret = dir.path().join("authorization");
    std::fs::write(&secret, "Basic b25lOnR3bw==\n").unwrap();
    let target = OpenSearch::new(OpenSearchOptions { authorization_file: Some(secret), ..options(&fake) }).unwrap();
    let at = version(1, 3);
    let (org, one, two) = (at.org.org().to_string(), record(1).to_string(), record(2).to_string());
    target.create(at).await.unwrap();
    target.write(at, Writer { epoch: 1, is_shown: false }, &[change(record(1), 7, Some("Red car"))]).await.unwrap();
    target.show(at).await.unwrap();
    target.write(at, SHOWN, &[change(record(2), 8, None)]).await.unwrap();
    target.write(at, SHOWN, &[change(record(2), 8, None)]).await.unwrap();
    let (query, kinds): (_, [KindName; 1]) = (SearchQuery::read("re* \"car\" -blue"), ["note".parse().unwrap()]);
    let facets = [("state".to_owned(), vec!["open".to_owned()])].into_iter().collect();
    let asked = Asked { query: &query, kinds: Kinds::These(&kinds), facets: &facets, count_facets: true };
    target.matching(at, asked).await.unwrap();
    assert_eq!(found(&target, at, "cra ").await, [record(1)]);
    target.records(at, &[record(1)]).await.unwrap();
    target.drop_version(at, 10).await.unwrap();
    let asked = fake.asked();
    assert!(asked.iter().all(|one| one.authorization.as_deref() == Some("Basic b25lOnR3bw==")), "{asked:?}");
    let recorded = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/opensearch.txt")).unwrap();
    let recorded = recorded.replace("{org}", &org).replace("{one}", &one).replace("{two}", &two);
    let told: String = asked.iter().map(|asked| format!("{}\n{}\n", asked.line, asked.body.trim_end())).collect();
    let lines = |text: &str| text.lines().filter(|line| !line.is_empty()).map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(lines(&told), lines(&recorded), "{told}");
}

#[tokio::test]
async fn what_opensearch_answers_is_bounded_and_repeated_nowhere() {
    let fake = FakeOpenSearch::start().await;
    let (target, at) = (opensearch(&fake), version(1, 1));
    target.create(at).await.unwrap();
    let write = async |mode| {
        fake.turn(mode);
        let changes = [change(record(1), 7, Some("one")), change(record(2), 8, Some("two"))];
        said(&target.write(at, SHOWN, &changes).await.unwrap_err())
    };
    for (mode, said) in [
        (Mode::Refuse(429), "429"),
        (Mode::Refuse(503), "es_rejected_execution_exception"),
        (Mode::TakeHalf, "did not take 1 of 2 documents: 429 (an_exception)"),
        (Mode::Redirect, "302"),
    ] {
        let told = write(mode).await;
        assert!(told.contains(said) && !told.contains("secret-reason") && !told.contains(&fake.url), "{told}");
    }
    assert!(!fake.asked().iter().any(|asked| asked.line.contains("elsewhere")), "no redirect is followed");
    fake.turn(Mode::Answer);
    target.write(at, SHOWN, &[change(record(1), 7, Some("one"))]).await.unwrap();
    assert_eq!(found(&target, at, "one ").await, [record(1)]);
    // Whatever is in the index: a document of another organization is not passed on.
    let other = version(2, 1);
    assert_eq!(
        found_in_wrong_index(&fake, other).await,
        "the answer of OpenSearch is not as it must be: it cannot be read"
    );
}

/// What is said of an answer that is none.
async fn found_in_wrong_index(fake: &FakeOpenSearch, at: IndexVersion) -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let router = axum::Router::new().fallback(|| async { "{\"timed_out\": \"secret-reason\"}" });
    tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    let target = OpenSearch::new(OpenSearchOptions { url, ..options(fake) }).unwrap();
    said(&target.records(at, &[record(1)]).await.unwrap_err())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_operator_places_indexes_by_the_command_line() {
    let (fake, other) = (FakeOpenSearch::start().await, database().await);
    let dir = TempDir::new();
    let write = |name: &str, text: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let secrets = (write("authorization", "Basic hidden"), write("password", APP_PASSWORD));
    let file = write(
        "targets.json",
        &json!({"targets": {
            LARGE: {"type": "opensearch", "url": fake.url, "authorization_file": secrets.0},
            OTHER: {"type": "postgres", "url": other.options().url, "password_file": secrets.1},
        }})
        .to_string(),
    );
    let flag = vec![format!("--search-targets={file}")];
    let cluster =
        Cluster::start(ClusterOptions { serve: flag.clone(), work: flag.clone(), ..ClusterOptions::default() }).await;
    let (tenant, home) = (cluster.tenant("placed").await, cluster.tenant("at-home").await);
    for one in [&tenant, &home] {
        cluster.client.command(one, "needle", &create("needle")).await.expect(201);
        cluster.until_projected(one).await;
    }
    let id = tenant.id.to_string();
    let search = async |args: &[&str]| cluster.cli("", &[&["search"], args, &[&*flag[0]]].concat()).await;
    let listed = search(&["targets", "--json"]).await.success().json();
    let states: Vec<_> = listed["data"].as_array().unwrap().iter().map(|row| (&row["target"], &row["state"])).collect();
    let ready = json!("ready");
    assert_eq!(states, [(&json!("default"), &ready), (&json!(LARGE), &ready), (&json!(OTHER), &ready)]);
    for (target, word) in [(LARGE, "one"), (OTHER, "two"), ("default", "three")] {
        let said = search(&["place", &id, "--target", target]).await.success();
        assert!(said.stderr.contains(target), "{said:?}");
        eventually("the index to be shown from there", async || {
            let listed = search(&["placements", "--json"]).await.success().json();
            let rows = listed["data"].as_array().unwrap().clone();
            let is_there = rows.iter().any(|row| row["org"] == id && row["target"] == target && row["shown"] == true);
            let is_home = rows.iter().all(|row| row["shown"] == false);
            let is_done = rows.iter().all(|row| row["state"] == "done");
            (is_done && if target == "default" { is_home } else { is_there }).then_some(())
        })
        .await;
        let made = cluster.client.command(&tenant, word, &create(word)).await.expect(201);
        for query in ["needle", word] {
            let found = cluster
                .client
                .get_at(&tenant.owner, &tenant.path(&format!("search?q={query}")), &made.text("position"))
                .await
                .expect(200);
            assert_eq!(found.body["total"], 1, "{target}: {}", found.body);
        }
    }
    search(&["placements"]).await.success();
    let again = search(&["place", &id, "--target", "default"]).await.success();
    assert!(again.stderr.contains("already"), "{again:?}");
    for (target, said) in [("nowhere", "there is no search target nowhere")] {
        let refused = search(&["place", &id, "--target", target]).await.failure();
        assert!(refused.stderr.contains(said), "{refused:?}");
    }
    fake.turn(Mode::Refuse(401));
    let listed = search(&["targets"]).await.success();
    assert!(listed.stdout.contains("401") && !listed.stdout.contains("hidden"), "{listed:?}");
    search(&["place", &id, "--target", LARGE]).await.failure();
    let found = cluster.client.get(&home.owner, &home.path("search?q=needle")).await.expect(200);
    assert_eq!(found.body["total"], 1);
}
