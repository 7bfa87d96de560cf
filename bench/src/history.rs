//! `orgstream bench history`: the next command of an aggregate with a long history, from a process that has just started and
//! from one that knows it, with and without snapshots.
//!
//! The histories are appended as the commands would have appended them. The raw limit is the command of a record with one
//! event, in the same process and the same run.

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use async_nats::jetstream;
use clap::Args as ClapArgs;
use futures_util::{StreamExt, TryStreamExt, stream};
use indicatif::{ProgressBar, ProgressStyle};
use orgstream::{
    adapters::dns::SystemDns,
    clock::now,
    commands::{
        handler::CommandHandler,
        request::{Caller, Creator},
    },
    terminal::{out::say, table::table},
};
use orgstream_domain::{
    AddMember, ChangeRole, Command, ResendInvitation, RotateApiKey, UpdateRecord, credentials::key::Pepper,
};
use orgstream_events::{
    Actor, ActorType, AggregateId, ApiKeyEvent, ApiKeyIssued, CommandId, CommitDraft, Context, Event, Fingerprint,
    InvitationEvent, InvitationId, InvitationIssued, KeyEnvironment, KeyId, MemberAdded, MemberEvent, MemberId, OrgId,
    RecordCreated, RecordEvent, RecordId, RecordUpdated, Role, RoleChanged, RoleDefined, RoleEvent, RoleId, Salt,
    Timestamp, UserId,
};
use orgstream_stream::{Log, Placement};
use serde::Serialize;

use crate::{load::data, rig::Rig, warn_of_debug_build, write_json};

/// Processes that start and send one command, for each row.
const COLD: usize = 5;
/// The same without snapshots, where each reads all of the history.
const WHOLE: usize = 2;
/// Further commands of a process.
const WARM: usize = 50;
/// Appends at the same time, each to an aggregate of its own.
const AT_ONCE: usize = 64;
const PATIENCE: Duration = Duration::from_secs(60);

/// Long histories: the next command of an aggregate with many events.
#[derive(ClapArgs)]
pub(crate) struct Args {
    /// Updates of the record.
    #[arg(long, default_value_t = 100_000, value_name = "N")]
    updates: u64,
    /// Members of the organization.
    #[arg(long, default_value_t = 20_000, value_name = "N")]
    members: u64,
    /// Changes of roles, invitations and keys of the organization, of each.
    #[arg(long, default_value_t = 5_000, value_name = "N")]
    others: u64,
    /// Write the figures to this file as JSON too.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

#[derive(Serialize)]
struct Row {
    case: &'static str,
    events: u64,
    snapshots: bool,
    cold_ms: f64,
    read: u64,
    warm_p50_ms: f64,
    warm_p99_ms: f64,
    event_bytes: u64,
}

/// A command after a long history.
struct Case {
    name: &'static str,
    events: u64,
    aggregate: AggregateId,
    command: Box<dyn Fn(u64) -> Command + Send + Sync>,
}

pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    warn_of_debug_build();
    let rig = Rig::start(false).await?;
    let placement = rig.placement().await?;
    let bench = Bench { log: rig.log().clone(), placement };
    let admin = async_nats::ConnectOptions::with_credentials_file(rig.stack.nats.access.admin()).await?;
    let snapshots = jetstream::new(admin.connect(&rig.stack.nats.url).await?).get_stream("SNAP").await?;
    let cases = bench.cases(&args).await?;
    let mut rows = Vec::new();
    for case in &cases {
        for with in [false, true] {
            let times = if with { COLD } else { WHOLE };
            let (mut cold, mut warm, mut read) = (Vec::new(), Vec::new(), 0);
            for time in 0..times {
                if !with {
                    snapshots.purge().await?;
                }
                let handler = bench.handler()?;
                let first = bench.send(&handler, case, time as u64).await?;
                cold.push(first);
                read = handler.messages_read();
                for number in 0..WARM {
                    warm.push(bench.send(&handler, case, number as u64 + 1_000).await?);
                }
            }
            if !with && case.events > 256 {
                bench.until_kept(&snapshots).await?;
            }
            cold.sort_unstable();
            warm.sort_unstable();
            let at = |times: &[Duration], part: f64| {
                let place = (times.len() as f64 * part) as usize;
                times.get(place.min(times.len().saturating_sub(1))).map_or(0.0, |time| time.as_secs_f64() * 1e3)
            };
            rows.push(Row {
                case: case.name,
                events: case.events,
                snapshots: with,
                cold_ms: at(&cold, 0.5),
                read,
                warm_p50_ms: at(&warm, 0.5),
                warm_p99_ms: at(&warm, 0.99),
                event_bytes: bench.last_bytes(case).await?,
            });
        }
    }
    print(&rows)?;
    rig.stop().await?;
    write_json(args.json.as_ref(), &rows)
}

fn print(rows: &[Row]) -> anyhow::Result<()> {
    let head =
        ["aggregate", "events", "snapshots", "cold ms", "messages read", "warm p50 ms", "warm p99 ms", "event bytes"];
    let mut table = table(&head, &[1, 3, 4, 5, 6, 7]);
    for row in rows {
        table.add_row([
            row.case.to_owned(),
            row.events.to_string(),
            if row.snapshots { "yes" } else { "no" }.to_owned(),
            format!("{:.1}", row.cold_ms),
            row.read.to_string(),
            format!("{:.2}", row.warm_p50_ms),
            format!("{:.2}", row.warm_p99_ms),
            row.event_bytes.to_string(),
        ]);
    }
    say!("{}", table.trim_fmt())?;
    say!(
        "cold: the first command of a new process, with all that it looks up; warm: its next {WARM}. event bytes: its last message."
    )?;
    Ok(())
}

struct Bench {
    log: Log,
    placement: Placement,
}

impl Bench {
    /// A process that knows nothing yet.
    fn handler(&self) -> anyhow::Result<CommandHandler> {
        let pepper = Pepper::new(b"a pepper that is long enough for this").context("a pepper")?;
        Ok(CommandHandler::new(self.log.clone(), pepper, "local".to_owned(), Arc::new(SystemDns)))
    }

    async fn send(&self, handler: &CommandHandler, case: &Case, number: u64) -> anyhow::Result<Duration> {
        let user = UserId::from_login("https://issuer.example", "bench");
        let creator = Some(Creator { user, email: "bench@example.org".to_owned() });
        let caller = Caller { creator, ..Caller::program(self.placement.org, "bench") };
        let mut request: orgstream::commands::request::Request = (case.command)(number).into();
        request.idempotency_key = Some(format!("bench-{:032x}", rand::random::<u128>()));
        let started = Instant::now();
        handler.handle(&caller, request).await.with_context(|| case.name)?;
        Ok(started.elapsed())
    }

    async fn until_kept(&self, snapshots: &jetstream::stream::Stream) -> anyhow::Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while snapshots.get_info().await?.state.messages == 0 {
            if Instant::now() > deadline {
                bail!("no snapshot was made");
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }

    async fn last_bytes(&self, case: &Case) -> anyhow::Result<u64> {
        let seq = self.log.end_of_history(&self.placement, &case.aggregate).await?;
        let stored = self.log.commit_at(&self.placement, &case.aggregate, seq).await?;
        let size = |event: &orgstream_events::OpenedEvent| event.sealed.header.len() + event.sealed.payload.len();
        Ok(stored.commit.events.iter().map(size).sum::<usize>() as u64)
    }

    /// Appends one event to an aggregate, as a command with an idempotency key does.
    async fn append(&self, aggregate: &AggregateId, version: u64, seq: u64, event: Event) -> anyhow::Result<u64> {
        let now = now();
        let draft = CommitDraft {
            org: self.placement.org,
            aggregate: aggregate.clone(),
            version_before: version,
            command_id: CommandId::fresh(now.unix_ms(), rand::random()),
            fingerprint: Some(Fingerprint::of(&[b"bench"])),
            actor: Actor { actor_type: ActorType::System, id: "bench".to_owned(), auth: None },
            occurred_at: now,
            recorded_at: now,
            causation_id: None,
            correlation_id: None,
            request_id: None,
            context: Context::default(),
            events: vec![event],
        };
        let commit = draft.seal(|| Salt(rand::random()))?;
        Ok(self.log.append(&self.placement, &commit, seq, None).await?.seq)
    }

    /// Appends `count` events to one aggregate, after its last.
    async fn grow(
        &self,
        what: &str,
        aggregate: &AggregateId,
        before: u64,
        count: u64,
        event: impl Fn(u64) -> anyhow::Result<Event>,
    ) -> anyhow::Result<()> {
        let bar = bar(what, count)?;
        let mut seq = self.log.end_of_history(&self.placement, aggregate).await?;
        for number in 0..count {
            seq = self.append(aggregate, before + number, seq, event(number)?).await?;
            bar.inc(1);
        }
        bar.finish_and_clear();
        Ok(())
    }

    /// Appends the first event of many aggregates, and returns the last of them.
    async fn many(
        &self,
        what: &str,
        count: u64,
        first: impl Fn() -> anyhow::Result<(AggregateId, Event)>,
    ) -> anyhow::Result<AggregateId> {
        let bar = bar(what, count)?;
        let all: Vec<(AggregateId, Event)> = (0..count.max(1)).map(|_| first()).collect::<anyhow::Result<_>>()?;
        let last = all.last().map(|(aggregate, _)| aggregate.clone()).context("one at least")?;
        stream::iter(all)
            .map(|(aggregate, event)| {
                bar.inc(1);
                async move { self.append(&aggregate, 0, 0, event).await }
            })
            .buffer_unordered(AT_ONCE)
            .try_collect::<Vec<u64>>()
            .await?;
        bar.finish_and_clear();
        Ok(last)
    }

    async fn cases(&self, args: &Args) -> anyhow::Result<Vec<Case>> {
        let org: OrgId = self.placement.org;
        let update = |id: RecordId| move |number| UpdateRecord { id, data: webhook(number) }.into();
        let (short, long) = (RecordId::from_uuid(fresh()), RecordId::from_uuid(fresh()));
        for (id, updates) in [(short, 0), (long, args.updates)] {
            let record = AggregateId::Record(id);
            self.grow("updates", &record, 0, updates + 1, |number| {
                let (kind, kind_version, data, references) = ("webhook".parse()?, 1, webhook(number), Vec::new());
                Ok(Event::Record(match number {
                    0 => RecordEvent::Created(RecordCreated {
                        kind,
                        kind_version,
                        data,
                        references,
                        unique: Vec::new(),
                        searched: Vec::new(),
                        secrets: Vec::new(),
                    }),
                    _ => RecordEvent::Updated(RecordUpdated {
                        kind,
                        kind_version,
                        data,
                        references,
                        unique: Vec::new(),
                        searched: Vec::new(),
                        secrets: Vec::new(),
                    }),
                }))
            })
            .await?;
        }
        let roster = AggregateId::Member(org);
        self.grow("members", &roster, 1, args.members, |_| {
            let member_id = MemberId::from_uuid(fresh());
            let email = format!("{}@acme.example", member_id.uuid().simple());
            let user_id = UserId::from_login("https://issuer.example", &email);
            Ok(Event::Member(MemberEvent::Added(MemberAdded { member_id, user_id, email, role: Role::Member })))
        })
        .await?;
        let (roles, role_id) = (AggregateId::Role(org), RoleId::from_uuid(fresh()));
        self.grow("roles", &roles, 0, args.others, |number| {
            let (name, permissions) = (format!("Role {number}"), vec!["records:read".to_owned()]);
            Ok(Event::Role(match number {
                0 => RoleEvent::Defined(RoleDefined { role_id, name, permissions }),
                _ => RoleEvent::Changed(RoleChanged { role_id, name, permissions }),
            }))
        })
        .await?;
        let ends = Timestamp::from_unix_ms(now().unix_ms() + 86_400_000);
        let invitation = self
            .many("invitations", args.others, || {
                let id = InvitationId::from_uuid(fresh());
                let email = format!("{}@elsewhere.example", id.uuid().simple());
                let token_mac = Fingerprint::of(&[b"token"]);
                let issued = InvitationIssued { email, role: Role::Member, expires_at: ends, token_mac };
                Ok((AggregateId::Invitation(id), Event::Invitation(InvitationEvent::Issued(issued))))
            })
            .await?;
        let key = self
            .many("keys", args.others, || {
                let issued = ApiKeyIssued {
                    name: "bench".to_owned(),
                    public_id: "GBxCK2BwmHM4".parse()?,
                    secret_mac: Fingerprint::of(&[b"secret"]),
                    last4: "aaaa".to_owned(),
                    role: Role::Member,
                    environment: KeyEnvironment::Test,
                    expires_at: None,
                    scopes: None,
                    allowed_ips: Vec::new(),
                    creator: None,
                };
                Ok((AggregateId::ApiKey(KeyId::from_uuid(fresh())), Event::ApiKey(ApiKeyEvent::Issued(issued))))
            })
            .await?;
        let case = |name, events, aggregate: &AggregateId, command: Box<dyn Fn(u64) -> Command + Send + Sync>| Case {
            name,
            events,
            aggregate: aggregate.clone(),
            command,
        };
        let (AggregateId::Invitation(invitation_id), AggregateId::ApiKey(key_id)) = (&invitation, &key) else {
            bail!("an invitation and a key were made");
        };
        let (invitation_id, key_id) = (*invitation_id, *key_id);
        Ok(vec![
            case("record of one event", 1, &AggregateId::Record(short), Box::new(update(short))),
            case("record", args.updates, &AggregateId::Record(long), Box::new(update(long))),
            case(
                "roster",
                args.members,
                &roster,
                Box::new(|_| {
                    let email = format!("{}@acme.example", fresh().simple());
                    AddMember { email, user_id: None, role: Role::Member }.into()
                }),
            ),
            case(
                "roles",
                args.others,
                &roles,
                Box::new(move |_| {
                    let name = Some(format!("Role {}", fresh().simple()));
                    ChangeRole { id: role_id, name, permissions: None }.into()
                }),
            ),
            case(
                "one of many invitations",
                1,
                &invitation,
                Box::new(move |_| ResendInvitation { id: invitation_id, expires_in_days: None }.into()),
            ),
            case(
                "one of many keys",
                1,
                &key,
                Box::new(move |_| {
                    RotateApiKey { id: key_id, overlap_seconds: 0, expires_at: None, expires_in_days: None }.into()
                }),
            ),
        ])
    }
}

fn webhook(number: u64) -> serde_json::Value {
    serde_json::json!({"event": "bench", "payload": data(number)})
}

fn fresh() -> uuid::Uuid {
    uuid::Uuid::now_v7()
}

fn bar(what: &str, count: u64) -> anyhow::Result<ProgressBar> {
    let bar = ProgressBar::new(count);
    bar.set_style(ProgressStyle::with_template("{bar:40} {pos}/{len}  {msg}")?);
    bar.set_message(what.to_owned());
    Ok(bar)
}
