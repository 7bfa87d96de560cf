//! Values that one record of a kind has at a time in an organization, such as the names of spaces: one of many that take the
//! same wins, whoever asks where; a change or an archived record frees them; a repeated command gets the answer it had.

use std::collections::BTreeMap;

use futures_util::future::join_all;
use reqwest::Method;
use serde_json::{Value, json};

use crate::api::{Answer, Api, OPERATOR, Org};

fn space(name: &str) -> Value {
    json!({"kind": "space", "data": {"name": name}})
}

async fn put(api: &Api, org: &Org, id: &str, name: &str) -> Answer {
    let request = api.request(Method::PUT, &org.path(&format!("records/{id}"))).bearer_auth(&org.owner);
    Answer::of(request.json(&json!({"data": {"name": name}}))).await
}

/// Fails unless the name is refused because this record has it.
fn assert_taken(refused: Answer, holder: &str) {
    let refused = refused.expect(409).json();
    assert_eq!((&refused["code"], &refused["errors"][0]["pointer"]), (&json!("value_taken"), &json!("/data/name")));
    assert!(refused["errors"][0]["detail"].as_str().unwrap().contains(holder), "{refused}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s3_15_a_name_is_taken_once_in_an_organization_and_once_in_another() {
    let api = Api::start().await;
    let (a, b) = (api.org("names-a").await, api.org("names-b").await);
    let create = async |org: &Org, body: &Value| api.post(&org.owner, &org.path("records"), body).await;
    let id = |answer: &Answer| answer.json()["id"].as_str().unwrap().to_owned();
    let night = id(&create(&a, &space("Night")).await.expect(201));
    let of_b = id(&create(&b, &space("Night")).await.expect(201));
    assert_taken(create(&a, &space("Night")).await, &night);
    // Case, spaces around it and the form of its letters make no difference.
    assert_taken(create(&a, &space(" nIGHT ")).await, &night);
    assert_taken(create(&b, &space("night")).await, &of_b);
    // Another kind has names of its own.
    let policy = json!({"kind": "policy", "data": {"name": "Night", "rules": [{"id": "keys", "action": "block"}]}});
    create(&a, &policy).await.expect(201);

    // A change takes the new name and frees the old one; one that is refused keeps it.
    let day = id(&create(&a, &space("Day")).await.expect(201));
    assert_taken(put(&api, &a, &day, "night").await, &night);
    put(&api, &a, &night, "NIGHT").await.expect(200);
    put(&api, &a, &night, "Evening").await.expect(200);
    put(&api, &a, &day, "night").await.expect(200);
    assert_taken(put(&api, &a, &night, "Night").await, &day);
    let dawn = id(&create(&a, &space("Day")).await.expect(201));
    // An archived record frees its name.
    let archive = api.request(Method::DELETE, &a.path(&format!("records/{day}"))).bearer_auth(&a.owner);
    Answer::of(archive).await.expect(200);
    let next = create(&a, &space("Night")).await.expect(201);
    assert_taken(put(&api, &a, &dawn, "Night").await, &id(&next));

    // Who may write and not read learns that it is taken, and not by which record.
    let scopes = json!({"name": "writer", "role": "member", "scopes": ["records:write"]});
    let writer = api.post(&a.owner, &a.path("api-keys"), &scopes).await.expect(201).json();
    let token = writer["token"].as_str().unwrap().to_owned();
    api.sees(&a, writer["position"].as_str().unwrap()).await;
    let refused = api.post(&token, &a.path("records"), &space("night")).await.expect(409);
    assert!(!refused.json().to_string().contains(&id(&next)), "{}", refused.json());

    // The audit log has what each record took and freed, as about the record.
    api.sees(&a, next.header("stream-position")).await;
    let path = a.path(&format!("audit/events?target={night}&limit=50"));
    let events = api.get_at(&a.owner, &path, next.header("stream-position")).await.expect(200).json();
    let mut counted: BTreeMap<String, usize> = BTreeMap::new();
    for event in events["data"].as_array().unwrap() {
        *counted.entry(event["type"].as_str().unwrap().to_owned()).or_default() += 1;
    }
    let expected =
        [("record.created", 1), ("record.updated", 2), ("unique_value.released", 1), ("unique_value.taken", 2)];
    assert_eq!(counted.iter().map(|(name, count)| (name.as_str(), *count)).collect::<Vec<_>>(), expected);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s3_15_of_many_that_take_a_name_at_once_in_two_processes_one_has_it() {
    let api = Api::start().await;
    let second = api.another().await;
    let org = api.org("names-race").await;
    let path = org.path("records");
    for round in 0..5 {
        let body = space(&format!("round {round}"));
        let sent = (0..16).map(async |number| match number % 2 {
            0 => api.post(&org.owner, &path, &body).await.status,
            _ => {
                let request = reqwest::Client::new().post(format!("{second}{path}")).bearer_auth(&org.owner);
                Answer::of(request.json(&body)).await.status
            }
        });
        let mut statuses = join_all(sent).await;
        statuses.sort_unstable();
        assert_eq!(statuses, [vec![201], vec![409; 15]].concat(), "round {round}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_repeated_command_has_its_answer_though_the_name_has_gone_on() {
    let api = Api::start().await;
    let org = api.org("names-again").await;
    let keyed = async |base: Option<&str>, key: &str, body: &Value| {
        let path = org.path("records");
        let request = match base {
            Some(base) => reqwest::Client::new().post(format!("{base}{path}")),
            None => api.request(Method::POST, &path),
        };
        Answer::of(request.bearer_auth(&org.owner).header("idempotency-key", key).json(body)).await
    };
    let first = keyed(None, "one", &space("Night")).await.expect(201).json();
    let id = first["id"].as_str().unwrap();
    put(&api, &org, id, "Evening").await.expect(200);
    let other = keyed(None, "two", &space("Night")).await.expect(201).json();
    // Here, and in a process that has not seen any of it.
    let second = api.another().await;
    for base in [None, Some(second.as_str())] {
        let again = keyed(base, "one", &space("Night")).await.expect(201).json();
        assert_eq!((&again["id"], &again["position"]), (&first["id"], &first["position"]));
        assert_eq!((&again["events"], &again["replayed"]), (&first["events"], &json!(true)));
        assert_taken(keyed(base, "three", &space("Night")).await, other["id"].as_str().unwrap());
        let reused = keyed(base, "one", &space("Morning")).await.expect(422);
        assert_eq!(reused.problem(), "idempotency_key_reused");
    }
    // A command that was refused took nothing, and may be sent again.
    put(&api, &org, other["id"].as_str().unwrap(), "Noon").await.expect(200);
    keyed(None, "three", &space("Night")).await.expect(201);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn names_that_were_the_same_before_stay_until_they_are_written_again() {
    let api = Api::start().await;
    let org = api.org("names-late").await;
    let schema = |unique: bool| {
        json!({"type": "object", "required": ["name"],
            "properties": {"name": {"type": "string", "maxLength": 200, "x-unique": unique}}})
    };
    let kind = json!({"kind": "shelf", "title": "Shelf", "visibility": "private", "schema": schema(false)});
    api.post(OPERATOR, "/v1/kinds", &kind).await.expect(201);
    let shelf = json!({"kind": "shelf", "data": {"name": "Top"}});
    let create = async || api.post(&org.owner, &org.path("records"), &shelf).await;
    let mut ids = Vec::new();
    for _ in 0..2 {
        ids.push(create().await.expect(201).json()["id"].as_str().unwrap().to_owned());
    }
    let change = api.request(Method::PATCH, "/v1/kinds/shelf").bearer_auth(OPERATOR);
    Answer::of(change.json(&json!({"schema": schema(true)}))).await.expect(200);
    // A process takes a kind as it was for a second at most.
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
    let probe = json!({"kind": "shelf", "data": {"name": "probe"}});
    while api.post(&org.owner, &org.path("records"), &probe).await.status != 409 {
        assert!(std::time::Instant::now() < deadline, "the kind stays as it was");
    }
    // The one that is written first has it from now on.
    put(&api, &org, &ids[0], "Top").await.expect(200);
    assert_taken(put(&api, &org, &ids[1], "top").await, &ids[0]);
    let refused = create().await.expect(409).json();
    let holder = refused["errors"][0]["detail"].as_str().unwrap();
    assert!(holder.contains(&ids[0]), "{refused}");
    put(&api, &org, &ids[1], "Bottom").await.expect(200);
}
