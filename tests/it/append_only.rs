//! Records of append-only kinds: written once, found, listed and referred to like any other, sixteen subjects for all of an
//! organization's, a thousand in one message, and repeated exactly however long ago.

use std::{
    collections::{BTreeSet, HashSet},
    sync::Arc,
};

use orgstream::{
    adapters::dns::SystemDns,
    commands::{
        handler::CommandHandler,
        request::{Accepted, Caller, CommandError, Creator, Request},
    },
};
use orgstream_domain::{
    AppendRecords, Command, CreateOrganization, CreateRecord, RegisterKind, Scopes, credentials::key::Pepper,
};
use orgstream_events::{
    Actor, ActorType, AggregateId, Context, OrgId, PLATFORM_ORG, RecordId, Role, TenantType, UserId,
};
use orgstream_stream::{Log, LogOptions, SyncMode};
use reqwest::Method;
use serde_json::{Value, json};

use crate::{
    api::{Answer, Api, OPERATOR},
    history::History,
    kinds::shipped,
    support::{Nats, commit_keys},
};

fn line(number: usize) -> Value {
    json!({"verdict": "clean", "subject": format!("line {number}"), "tokens": number, "analysed_at": "2026-03-01T12:00:00Z"})
}

fn append(items: &[Value]) -> Value {
    json!({"type": "append_records", "kind": "analysis_log", "items": items})
}

// S1.11, S5.6
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s5_6_records_that_are_written_once_are_read_like_any_other_and_never_change() {
    let api = Api::start().await;
    shipped(&api).await;
    let (org, other) = (api.org("once").await, api.org("once-other").await);
    let items: Vec<Value> = (0..5).map(line).collect();
    let many = api.post(&org.owner, &org.path("commands"), &append(&items)).await.expect(201).json();
    assert_eq!((&many["aggregate"], &many["events"]), (&json!("record_log"), &json!(["record_log.appended"])));
    let mut ids: Vec<String> =
        many["ids"].as_array().unwrap().iter().map(|id| id.as_str().unwrap().to_owned()).collect();
    let one = json!({"kind": "analysis_log", "data": line(5)});
    let one = api.post(&org.owner, &org.path("records"), &one).await.expect(201);
    assert_eq!((&one.json()["aggregate"], &one.json()["version"]), (&json!("record"), &json!(1)));
    let id = one.json()["id"].as_str().unwrap().to_owned();
    assert!(one.header("location").ends_with(&id), "{}", one.header("location"));
    ids.push(id.clone());
    api.sees(&org, one.header("stream-position")).await;

    // Each by its id, and all of them in order, page by page, though five have one sequence.
    for (number, id) in ids.iter().enumerate() {
        let shown = api.get(&org.owner, &org.path(&format!("records/{id}"))).await.expect(200).json();
        assert_eq!((&shown["data"], &shown["version"]), (&line(number), &json!(1)));
        assert_eq!((&shown["kind"], &shown["archived"]), (&json!("analysis_log"), &json!(false)));
    }
    for (query, newest_first) in [("sort=-created", true), ("sort=created", false), ("sort=-tokens", true)] {
        let (mut found, mut cursor) = (Vec::new(), String::new());
        loop {
            let path = org.path(&format!("records?kind=analysis_log&limit=2&{query}{cursor}"));
            let page = api.get(&org.owner, &path).await.expect(200).json();
            found.extend(page["data"].as_array().unwrap().iter().map(|row| row["id"].as_str().unwrap().to_owned()));
            let Some(next) = page["next_cursor"].as_str() else { break };
            cursor = format!("&cursor={next}");
        }
        if newest_first {
            found.reverse();
        }
        assert_eq!(found, ids, "{query}");
    }
    let filtered = org.path("records?kind=analysis_log&filter[tokens][gte]=3&filter[tokens][lt]=5&count=true");
    assert_eq!(api.get(&org.owner, &filtered).await.expect(200).json()["total"], 2);

    // It never changes, and another organization does not learn that it is there.
    let at = |org: &crate::api::Org| org.path(&format!("records/{id}"));
    for (method, body) in [(Method::PUT, Some(json!({"data": line(9)}))), (Method::DELETE, None)] {
        let send = async |org: &crate::api::Org| {
            let request = api.request(method.clone(), &at(org)).bearer_auth(&org.owner);
            Answer::of(body.iter().fold(request, reqwest::RequestBuilder::json)).await
        };
        assert_eq!(send(&org).await.expect(409).problem(), "record_append_only", "{method}");
        assert_eq!(send(&other).await.expect(404).problem(), "not_found", "{method}");
    }
    api.get(&other.owner, &at(&other)).await.expect(404);

    // What does not fit is refused as a whole, and pointed at.
    let commands = org.path("commands");
    let refused = async |command: Value| {
        let refused = api.post(&org.owner, &commands, &command).await.expect(422).json();
        (refused["code"].as_str().unwrap().to_owned(), refused["errors"][0]["pointer"].clone())
    };
    let invalid = |pointer: &str| ("validation_error".to_owned(), json!(pointer));
    assert_eq!(refused(append(&[line(6), json!({"verdict": "clean"})])).await, invalid("/items/1"));
    assert_eq!(refused(append(&[])).await, invalid("/items"));
    assert_eq!(refused(append(&vec![line(7); 1_001])).await, invalid("/items"));
    let nobodys = RecordId::fresh(1_700_000_000_000, [9; 10]);
    let mut referring = line(8);
    referring["trace"] = json!(nobodys);
    let missing = refused(append(&[line(8), referring])).await;
    assert_eq!(missing, ("reference_not_found".to_owned(), json!("/items/1/trace")));
    let spaces = json!({"type": "append_records", "kind": "space", "items": [{"name": "a"}]});
    assert_eq!(refused(spaces).await.0, "kind_not_append_only");
    for (kind, data, id) in
        [("analysis_log", line(6), nobodys.to_string()), ("space", json!({"name": "a"}), id.clone())]
    {
        let create = json!({"type": "create_record", "kind": kind, "data": data, "id": id});
        assert_eq!(refused(create).await, invalid("/id"), "{kind}");
    }
    // The kind says what it is, for good.
    let kind = api.get(&org.owner, "/v1/kinds/analysis_log").await.expect(200).json();
    assert_eq!(kind["append_only"], true);
    let change = api.request(Method::PATCH, "/v1/kinds/analysis_log").bearer_auth(OPERATOR);
    Answer::of(change.json(&json!({"append_only": false}))).await.expect(422);

    // The audit log has each of them, as about the record.
    let events = org.path(&format!("audit/events?target={}", ids[3]));
    let events = api.get_at(&org.owner, &events, one.header("stream-position")).await.expect(200).json();
    assert_eq!(events["data"].as_array().unwrap().len(), 1, "{events}");
    assert_eq!(events["data"][0]["type"], "record_log.appended");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn records_that_are_written_once_are_searched_folded_and_published_like_any_other() {
    let api = Api::start().await;
    let org = api.org("once-found").await;
    let schema = json!({"type": "object", "properties": {
        "name": {"type": "string", "x-search": "title"}, "degrees": {"type": "number"},
        "like": {"type": "string", "x-ref": {"kind": "reading", "scope": "global"}},
    }});
    let measures = json!([
        {"name": "readings", "fold": "count"}, {"name": "sum", "fold": "sum", "of": "/degrees"},
        {"name": "last", "fold": "last", "of": "/degrees"},
    ]);
    let body = json!({"kind": "reading", "title": "Reading", "visibility": "opt_in", "append_only": true,
        "schema": schema, "views": [{"name": "all", "measures": measures}]});
    let made = api.post(OPERATOR, "/v1/kinds", &body).await.expect(201);
    api.get_at(OPERATOR, "/v1/kinds", made.header("stream-position")).await.expect(200);

    // The last of a message is the last one.
    let items = json!([{"name": "north heron", "degrees": 0.1}, {"name": "south", "degrees": 9}, {"degrees": 0.2}]);
    let append = json!({"type": "append_records", "kind": "reading", "items": items});
    let many = api.post(&org.owner, &org.path("commands"), &append).await.expect(201);
    let (position, ids) = (many.header("stream-position").to_owned(), many.json()["ids"].clone());
    let found = api.get_at(&org.owner, &org.path("search?q=heron"), &position).await.expect(200).json();
    let hits: Vec<_> = found["data"].as_array().unwrap().iter().map(|hit| (&hit["id"], &hit["title"])).collect();
    assert_eq!(hits, [(&ids[0], &json!("north heron"))]);
    let path = org.path("views/reading/all");
    let rows = async |position: &str| api.get_at(&org.owner, &path, position).await.expect(200).json()["data"].clone();
    let shown = rows(&position).await;
    assert_eq!(shown[0]["measures"], json!({"readings": "3", "sum": "9.3", "last": "0.2"}));
    let one = json!({"kind": "reading", "data": {"name": "a heron again", "degrees": 1}});
    let one = api.post(&org.owner, &org.path("records"), &one).await.expect(201);
    let shown = rows(one.header("stream-position")).await;
    assert_eq!(shown[0]["measures"], json!({"readings": "4", "sum": "10.3", "last": "1"}));
    let found = api.get_at(&org.owner, &org.path("search?q=heron"), one.header("stream-position")).await;
    assert_eq!(found.expect(200).json()["data"].as_array().unwrap().len(), 2);

    // What the platform has written once is there for others once it is published.
    let drafted = json!({"kind": "reading", "data": {"name": "standard"}});
    let records = format!("/v1/organizations/{PLATFORM_ORG}/records");
    let drafted = api.post(OPERATOR, &records, &drafted).await.expect(201).json()["id"].clone();
    let like = json!({"kind": "reading", "data": {"name": "alike", "like": drafted}});
    let refused = api.post(&org.owner, &org.path("records"), &like).await.expect(422).json();
    assert_eq!(
        (&refused["code"], &refused["errors"][0]["pointer"]),
        (&json!("reference_not_found"), &json!("/data/like"))
    );
    let item = format!("/v1/catalog-items/{}/publish", drafted.as_str().unwrap());
    Answer::of(api.request(Method::POST, &item).bearer_auth(OPERATOR)).await.expect(200);
    api.post(&org.owner, &org.path("records"), &like).await.expect(201);
}

/// Processes on one broker, an organization, and a kind of log lines.
struct Processes {
    nats: Nats,
    org: OrgId,
}

fn caller(org: OrgId) -> Caller {
    let user = UserId::from_login("https://issuer.example", "once");
    Caller {
        org,
        actor: Actor { actor_type: ActorType::System, id: "once".to_owned(), auth: None },
        role: Role::Owner,
        scopes: Scopes::ALL,
        proof: None,
        right: None,
        creator: Some(Creator { user, email: "once@acme.example".to_owned() }),
        context: Context::default(),
        request_id: None,
        trace: None,
    }
}

impl Processes {
    async fn start() -> Self {
        let nats = Nats::start(false).await;
        let mut processes = Self { nats, org: PLATFORM_ORG };
        let first = processes.another().await;
        let log = processes.log().await;
        log.place(PLATFORM_ORG).await.unwrap();
        let kind: RegisterKind = serde_json::from_value(json!({
            "kind": "line", "title": "Line", "visibility": "private", "append_only": true,
            "schema": {"type": "object", "properties": {"of": {"type": "string", "x-ref": {"kind": "line"}}}},
        }))
        .unwrap();
        first.handle(&caller(PLATFORM_ORG), Command::from(kind).into()).await.unwrap();
        let found = CreateOrganization {
            name: "Once".to_owned(),
            slug: "once".parse().unwrap(),
            tenant_type: TenantType::Organization,
            auth0_organization_id: None,
        };
        let made = first.handle(&caller(PLATFORM_ORG), Command::from(found).into()).await.unwrap();
        processes.org = made.position.org;
        processes
    }

    async fn log(&self) -> Log {
        let options = LogOptions::new(&self.nats.url, commit_keys());
        let options =
            LogOptions { creds: Some(self.nats.access.admin()), shards: 1, sync: SyncMode::Relaxed, ..options };
        let log = Log::connect(&options).await.unwrap();
        assert_eq!(log.ensure_streams().await.unwrap(), []);
        log
    }

    /// A process that knows nothing yet.
    async fn another(&self) -> CommandHandler {
        let pepper = Pepper::new(b"a pepper that is long enough for a test").unwrap();
        CommandHandler::new(self.log().await, pepper, "local".to_owned(), Arc::new(SystemDns))
    }

    async fn send(
        &self,
        process: &CommandHandler,
        key: Option<&str>,
        command: impl Into<Command>,
    ) -> Result<Accepted, CommandError> {
        let command: Command = command.into();
        let request = Request { idempotency_key: key.map(str::to_owned), ..Request::from(command) };
        process.handle(&caller(self.org), request).await
    }
}

fn lines(count: usize, text: &str) -> AppendRecords {
    let items = (0..count).map(|number| json!({"text": text, "number": number})).collect();
    AppendRecords { kind: "line".parse().unwrap(), items }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_are_one_message_and_all_share_sixteen_subjects() {
    let processes = Processes::start().await;
    let (first, second) = (processes.another().await, processes.another().await);
    let many = processes.send(&first, Some("thousand"), lines(1_000, "bulk")).await.unwrap();
    assert_eq!(many.records.iter().collect::<HashSet<_>>().len(), 1_000);
    // Many writers in two processes, with and without keys: none is rejected for another.
    let singles = (0..200).map(async |number: usize| {
        let process = if number.is_multiple_of(2) { &first } else { &second };
        let data = json!({"number": number});
        let create = CreateRecord { kind: "line".parse().unwrap(), data, id: None };
        let key = number.is_multiple_of(3).then(|| format!("single {number}"));
        processes.send(process, key.as_deref(), create).await.unwrap()
    });
    let singles = futures_util::future::join_all(singles).await;
    let history = History::read(&processes.log().await, processes.org).await;
    history.assert_sound();
    let subjects: BTreeSet<String> = history
        .events()
        .map(|(_, _, event)| event.header.aggregate.aggregate.clone())
        .filter(|aggregate| matches!(aggregate, AggregateId::RecordLog(_)))
        .map(|aggregate| aggregate.to_string())
        .collect();
    assert!((2..=16).contains(&subjects.len()), "{subjects:?}");
    assert_eq!(history.events().filter(|(seq, ..)| *seq == many.position.seq).count(), 1_000);
    let records = history.records();
    assert_eq!(records.len(), 1_200);
    for accepted in &singles {
        assert!(records.contains_key(&accepted.aggregate.id()), "{accepted:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_repetition_is_exact_however_many_came_after_it_and_a_record_is_found_by_its_id() {
    let processes = Processes::start().await;
    let first = processes.another().await;
    let told = |accepted: &Accepted| (accepted.position, accepted.records.clone(), accepted.version);
    let one = processes.send(&first, Some("one"), lines(3, "one")).await.unwrap();
    let unkeyed = processes.send(&first, None, lines(2, "unkeyed")).await.unwrap();
    // So many that every record log has a snapshot.
    for number in 0..64 {
        processes.send(&first, Some(&format!("after {number}")), lines(200, "after")).await.unwrap();
    }
    for process in [&first, &processes.another().await] {
        let again = processes.send(process, Some("one"), lines(3, "one")).await.unwrap();
        assert_eq!((told(&again), again.replayed), (told(&one), true));
        let other = processes.send(process, Some("one"), lines(3, "two")).await.unwrap_err();
        assert!(matches!(other, CommandError::KeyReused), "{other:?}");
    }
    // Whatever wrote it, a record is found in a process that has not seen it; one that is not there is not.
    let fresh = processes.another().await;
    for id in [one.records[2], unkeyed.records[1]] {
        let of = AppendRecords { kind: "line".parse().unwrap(), items: vec![json!({"of": id}); 300] };
        processes.send(&fresh, None, of).await.unwrap();
    }
    let absent = RecordId::appended(one.command_id, 3);
    let of = AppendRecords { kind: "line".parse().unwrap(), items: vec![json!({"of": absent})] };
    let refused = processes.send(&fresh, None, of).await.unwrap_err();
    let CommandError::Rejected(refused) = refused else { panic!("{refused:?}") };
    assert_eq!((refused.code, refused.errors[0].pointer.as_str()), ("reference_not_found", "/items/0/of"));
    // The snapshots were used: sixteen record logs of some 800 events each were read in a few messages.
    assert!(fresh.messages_read() < 150, "{} messages", fresh.messages_read());
    History::read(&processes.log().await, processes.org).await.assert_sound();
}
