//! The accounts and their users: one account for the log, one for each part of the program, and one for all producers.
//!
//! Permissions alone do not isolate users of one account from each other: a request names the subject of its reply, so
//! a user that may request a message from JetStream could direct the reply to the subject by which JetStream deletes a
//! stream, or into a stream. Replies never leave the requester's account, so each part has an account that reaches only
//! those subjects of the log that it imports.

use std::path::Path;

use nkeys::KeyPair;
use orgstream_events::Timestamp;
use serde_json::{Value, json};

use super::{
    AccessFiles, BrokerError,
    token::{self, Claims, credentials, seed, sign, unix_seconds},
};
use crate::access::{BATCHES, CONSUMERS, DELIVERIES, JETSTREAM, READS, WRITES};

/// The subject prefix under which the parts of the program find their JetStream requests.
const IMPORTED: &str = "LOG.API";
/// The longest pause within a reply of several messages, in nanoseconds: longer than a worker's request lasts.
const PAUSE_NANOS: u64 = 60_000_000_000;
/// The subjects of producers' requests.
const COMMANDS: &str = "cmd.>";
/// The subjects of messages between API processes.
const AMONG_APIS: &str = "orgstream.api.>";
/// The subjects of replies to requests from other accounts.
const ANSWERS: &str = "_R_.>";
/// The subscription limit of one producer.
const PRODUCER_SUBSCRIPTIONS: u32 = 100;

/// The signing keys.
struct Keys {
    operator: KeyPair,
    system: KeyPair,
    log: KeyPair,
    api: KeyPair,
    work: KeyPair,
    producers: KeyPair,
    /// The key by which `serve` signs producers' users. Their permissions are in the account, whatever it signs.
    producers_signing: KeyPair,
}

/// Makes all accounts and users, and writes them into the folder; refuses to overwrite existing ones.
pub fn make(dir: &Path) -> Result<AccessFiles, BrokerError> {
    let files = AccessFiles::at(dir);
    files.refuse_existing()?;
    let account = KeyPair::new_account;
    let keys = Keys {
        operator: KeyPair::new_operator(),
        system: account(),
        log: account(),
        api: account(),
        work: account(),
        producers: account(),
        producers_signing: account(),
    };
    let time = unix_seconds();
    files.write(&files.server(), &server(&keys, time)?)?;
    let everything = [vec![">".to_owned()], vec![">".to_owned()]];
    files.write(&files.admin(), &user(&keys.log, "admin", None, everything, time)?)?;
    let asks = |whats: &[&[&str]]| whats.concat().iter().map(|what| format!("{IMPORTED}.{what}")).collect::<Vec<_>>();
    let (writes, listens) = ([&WRITES[..], &[AMONG_APIS, ANSWERS]].concat(), ["ev.>", COMMANDS, AMONG_APIS]);
    let serve = [[texts(&writes), asks(&[&READS, &BATCHES])].concat(), texts(&listens)];
    files.write(&files.serve(), &user(&keys.api, "serve", Some(IMPORTED), serve, time)?)?;
    let work = [asks(&[&READS, &BATCHES, &CONSUMERS, &DELIVERIES]), vec![]];
    files.write(&files.work(), &user(&keys.work, "work", Some(IMPORTED), work, time)?)?;
    let producers = json!({"account": keys.producers.public_key(), "signing_seed": seed(&keys.producers_signing)?});
    files.write(&files.producers(), &format!("{producers:#}\n"))?;
    let Keys { operator, system, log, api, work, producers, producers_signing: _ } = &keys;
    let offline = json!({
        "operator": seed(operator)?, "system": seed(system)?, "log": seed(log)?, "api": seed(api)?, "work": seed(work)?,
        "producers": seed(producers)?,
    });
    files.write(&files.offline(), &format!("{offline:#}\n"))?;
    Ok(files)
}

/// The credentials of a part of the program: the subjects it may publish to, and those it may subscribe to beside its
/// own inbox.
fn user(
    account: &KeyPair,
    name: &str,
    api: Option<&str>,
    [publish, mut subscribe]: [Vec<String>; 2],
    time: u64,
) -> Result<String, BrokerError> {
    let inbox = format!("_INBOX_{name}");
    subscribe.push(format!("{inbox}.>"));
    let tags: Vec<String> =
        [Some(format!("inbox:{inbox}")), api.map(|api| format!("api:{api}"))].into_iter().flatten().collect();
    let mut nats = unlimited_user();
    merge(&mut nats, json!({"type": "user", "tags": tags, "pub": {"allow": publish}, "sub": {"allow": subscribe}}));
    let user = KeyPair::new_user();
    let token = sign(account, time, Claims { subject: &user.public_key(), name, expires: None, nats })?;
    credentials(&token, &user)
}

fn texts(subjects: &[&str]) -> Vec<String> {
    subjects.iter().map(|subject| (*subject).to_owned()).collect()
}

/// The configuration that nats-server includes; it contains no secrets.
fn server(keys: &Keys, time: u64) -> Result<String, BrokerError> {
    let id = KeyPair::public_key;
    let service = |subject: String, parts: &str| json!({"name": subject, "subject": subject, "type": "service", "response_type": parts});
    let import = |from: &KeyPair, subject: String, local: Option<String>| {
        let mut import = json!({"name": subject, "subject": subject, "account": id(from), "type": "service"});
        if let Some(local) = local {
            merge(&mut import, json!({"local_subject": local}));
        }
        import
    };
    let js = |what: &&str| format!("{JETSTREAM}.{what}");
    let imports = |whats: &[&[&str]], writes: &[&str]| -> Vec<Value> {
        let asked = whats.concat();
        let asked = asked.iter().map(|what| import(&keys.log, js(what), Some(format!("{IMPORTED}.{what}"))));
        asked.chain(writes.iter().map(|write| import(&keys.log, (*write).to_owned(), None))).collect()
    };
    let once = READS.iter().chain(&CONSUMERS).map(|what| service(js(what), "Singleton"));
    let several = BATCHES.iter().chain(&DELIVERIES).map(|what| {
        let mut export = service(js(what), "Stream");
        merge(&mut export, json!({"response_threshold": PAUSE_NANOS}));
        export
    });
    let writes = WRITES.iter().map(|write| service((*write).to_owned(), "Singleton"));
    let log: Vec<Value> = once.chain(several).chain(writes).collect();
    let mut commands = import(&keys.api, COMMANDS.to_owned(), None);
    // The server then reports the requester, in a header that no client can write.
    merge(&mut commands, json!({"share": true}));
    let mut producer = json!({
        "pub": {"allow": ["cmd.{{tag(org)}}"]},
        "sub": {"allow": ["_INBOX_{{name()}}.>"]},
    });
    merge(&mut producer, unlimited_user());
    merge(&mut producer, json!({"subs": PRODUCER_SUBSCRIPTIONS}));
    let signing =
        json!({"kind": "user_scope", "key": id(&keys.producers_signing), "role": "producer", "template": producer});
    let with_streams = json!({"mem_storage": -1, "disk_storage": -1, "streams": -1, "consumer": -1});
    let accounts = [
        (&keys.system, "system", json!({}), json!({})),
        (&keys.log, "log", json!({"exports": log}), with_streams),
        (
            &keys.api,
            "api",
            json!({"exports": [service(COMMANDS.to_owned(), "Singleton")], "imports": imports(&[&READS, &BATCHES], &WRITES)}),
            json!({}),
        ),
        (&keys.work, "work", json!({"imports": imports(&[&READS, &BATCHES, &CONSUMERS, &DELIVERIES], &[])}), json!({})),
        (&keys.producers, "producers", json!({"imports": [commands], "signing_keys": [signing]}), json!({})),
    ];
    let operator = Claims {
        subject: &id(&keys.operator),
        name: "orgstream",
        expires: None,
        nats: json!({"type": "operator", "system_account": id(&keys.system)}),
    };
    let mut text = format!(
        "# Who may do what at nats-server, made by `orgstream nats init`. Nothing in it is secret, and nothing in it can be\n\
         # changed by hand: the operator's key, which is kept elsewhere, has signed every account.\n\
         operator: \"{}\"\nsystem_account: {}\nresolver: MEMORY\nresolver_preload {{\n",
        sign(&keys.operator, time, operator)?,
        id(&keys.system),
    );
    for (key, name, mut nats, streams) in accounts {
        let mut limits = json!({
            "subs": -1, "data": -1, "payload": -1, "imports": -1, "exports": -1, "wildcards": true, "conn": -1, "leaf": 0,
        });
        merge(&mut limits, streams);
        merge(&mut nats, json!({"type": "account", "limits": limits}));
        let token = sign(&keys.operator, time, Claims { subject: &id(key), name, expires: None, nats })?;
        text += &format!("  # {name}\n  {}: \"{token}\"\n", id(key));
    }
    Ok(text + "}\n")
}

/// A user's own limits: none beside its account's.
fn unlimited_user() -> Value {
    json!({"subs": -1, "data": -1, "payload": -1})
}

fn merge(into: &mut Value, more: Value) {
    if let (Value::Object(into), Value::Object(more)) = (into, more) {
        into.extend(more);
    }
}

/// In whole seconds, as tokens have times.
pub(super) fn seconds(time: Timestamp) -> u64 {
    u64::try_from(time.unix_ms() / 1_000).unwrap_or_default()
}

/// The text of the credentials of a user signed by `issuer`, with the claims that a scoped key leaves open.
pub(super) fn scoped_user(
    issuer: &KeyPair,
    account: &str,
    name: &str,
    tags: &[String],
    time: u64,
    expires: Option<u64>,
) -> Result<String, BrokerError> {
    let user = KeyPair::new_user();
    // With any other claim beside a scoped key the server rejects the user.
    let nats = json!({"type": "user", "issuer_account": account, "tags": tags});
    let token = token::sign(issuer, time, Claims { subject: &user.public_key(), name, expires, nats })?;
    credentials(&token, &user)
}
