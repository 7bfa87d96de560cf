//! `orgstream bench search`: the duration of queries in an ordinary organization and in a large one, against PostgreSQL's own
//! full text with a GIN index, over the same texts and under the same policies.
//!
//! Texts have 40 words, drawn so that the most frequent ones are in most records and most are in few. A query's time is that of
//! the whole answer: figures of the organization, ranking, and the snippets of the first 20 hits. Afterwards the large organization
//! grows, and the ordinary one is measured again.

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use clap::Args as ClapArgs;
use indicatif::{ProgressBar, ProgressStyle};
use orgstream::terminal::{
    out::{note, say},
    table::table,
};
use orgstream_events::{EventSubject, OrgId, Pipeline, SearchRole, SearchedField, Shard};
use orgstream_projections::{
    Applied, BatchClass, BatchStart, BoundOrg, Database, apply,
    raw_search::{full_text, full_text_table, sizes},
    search::{self, Asked, Kinds, query::SearchQuery},
};
use serde::Serialize;
use serde_json::json;
use uuid::Uuid;

use crate::{load, rig::Rig, warn_of_debug_build, write_json};

/// Records in one transaction.
const BATCH: u64 = 500;
/// Words of one text.
const WORDS: usize = 40;
/// The number of different words.
const VOCABULARY: f64 = 50_000.0;
/// The shard whose lease the benchmark holds. No worker runs meanwhile.
const SHARD: Shard = Shard(0);
const LEASE: Duration = Duration::from_secs(24 * 3600);
const TIMEOUT: Duration = Duration::from_secs(60);

/// Searching: the duration of queries, against PostgreSQL's own full text.
#[derive(ClapArgs)]
pub(crate) struct Args {
    /// Ordinary organizations.
    #[arg(long, default_value_t = 50, value_name = "N")]
    orgs: usize,
    /// Records of each of them.
    #[arg(long, default_value_t = 1_000, value_name = "N")]
    records: u64,
    /// Records of the large organization.
    #[arg(long, default_value_t = 200_000, value_name = "N")]
    large: u64,
    /// Queries of each kind.
    #[arg(long, default_value_t = 300, value_name = "N")]
    queries: usize,
    /// Write the figures to this file as JSON too.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

#[derive(Serialize)]
struct Row {
    organization: &'static str,
    query: &'static str,
    hits: u64,
    p50_ms: f64,
    p99_ms: f64,
    full_text_p50_ms: f64,
    full_text_p99_ms: f64,
}

/// A kind of query: in ours, and in the other language.
struct Case {
    name: &'static str,
    /// The ranks of its words.
    ranks: &'static [usize],
    ours: fn(&[String]) -> String,
    full_text: fn(&[String]) -> String,
}

const CASES: [Case; 5] = [
    Case { name: "rare word", ranks: &[5_000], ours: whole, full_text: all },
    Case { name: "frequent word", ranks: &[30], ours: whole, full_text: all },
    Case { name: "two words", ranks: &[30, 900], ours: whole, full_text: all },
    Case { name: "prefix", ranks: &[300], ours: begins, full_text: begins_too },
    Case { name: "phrase", ranks: &[30, 40], ours: phrase, full_text: phrase_too },
];

fn whole(words: &[String]) -> String {
    format!("{} ", words.join(" "))
}

fn all(words: &[String]) -> String {
    words.join(" & ")
}

/// The first four letters.
fn begins(words: &[String]) -> String {
    words.iter().flat_map(|word| word.chars().take(4)).collect()
}

fn begins_too(words: &[String]) -> String {
    format!("{}:*", begins(words))
}

fn phrase(words: &[String]) -> String {
    format!("\"{}\"", words.join(" "))
}

fn phrase_too(words: &[String]) -> String {
    words.join(" <-> ")
}

/// Words by their ranks, and numbers that are the same in every run.
struct Texts(u64);

impl Texts {
    fn draw(&mut self) -> f64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// The word of a rank: syllables, so that nothing is split and beginnings are shared.
    fn word(rank: usize) -> String {
        let (mut rest, mut word) = (rank, String::new());
        loop {
            let syllable = rest % 80;
            word.extend(
                "bcdfghklmnprstvz".chars().nth(syllable / 5).into_iter().chain("aeiou".chars().nth(syllable % 5)),
            );
            rest /= 80;
            if rest == 0 {
                return word;
            }
        }
    }

    fn text(&mut self, words: usize) -> String {
        let word = |texts: &mut Self| Self::word((texts.draw() * VOCABULARY.ln()).exp() as usize);
        (0..words).map(|_| word(self)).collect::<Vec<_>>().join(" ")
    }
}

pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    warn_of_debug_build();
    let rig = Rig::start(false).await?;
    let measured = Box::pin(measure(&rig, &args)).await;
    rig.stop().await?;
    let rows = measured?;
    print(&rows)?;
    write_json(args.json.as_ref(), &rows)
}

async fn measure(rig: &Rig, args: &Args) -> anyhow::Result<Vec<Row>> {
    let db = &rig.stack.db;
    let lease = db.acquire_lease(SHARD, Uuid::max(), LEASE).await?.context("nobody has the lease")?;
    let mut texts = Texts(1);
    let orgs: Vec<OrgId> = (0..args.orgs.max(1)).map(|_| OrgId::fresh(0, rand::random())).collect();
    let large = OrgId::fresh(0, rand::random());
    let bar = ProgressBar::new(args.records * orgs.len() as u64 + args.large);
    if let Ok(style) = ProgressStyle::with_template("{bar:40} {pos}/{len} records  {per_sec}") {
        bar.set_style(style);
    }
    let begun = Instant::now();
    for org in &orgs {
        fill(db, *org, lease.epoch, args.records, &mut texts, &bar).await?;
    }
    let small = *orgs.first().context("there is an organization")?;
    fill(db, large, lease.epoch, args.large / 2, &mut texts, &bar).await?;
    full_text_table(&rig.stack.owner_url).await?;
    let mut rows = Vec::new();
    for case in &CASES {
        rows.push(case.measure(db, "ordinary", small, args).await?);
    }
    fill_from(db, large, lease.epoch, (args.large / 2, args.large), &mut texts, &bar).await?;
    bar.finish_and_clear();
    note!("{:.0} records/s into read models and index", bar.position() as f64 / begun.elapsed().as_secs_f64());
    full_text_table(&rig.stack.owner_url).await?;
    let (index, full_text) = sizes(&rig.stack.owner_url).await?;
    let records = bar.position().max(1);
    note!(
        "{} bytes of index for each record; full text {}",
        index / records.cast_signed(),
        full_text / records.cast_signed()
    );
    for case in &CASES {
        rows.push(case.measure(db, "ordinary, neighbour twice as large", small, args).await?);
    }
    for case in &CASES {
        rows.push(case.measure(db, "large", large, args).await?);
    }
    Ok(rows)
}

async fn fill(
    db: &Database,
    org: OrgId,
    epoch: u64,
    count: u64,
    texts: &mut Texts,
    bar: &ProgressBar,
) -> anyhow::Result<()> {
    fill_from(db, org, epoch, (0, count), texts, bar).await
}

/// Applies records from one number up to another, as a worker's batches do.
async fn fill_from(
    db: &Database,
    org: OrgId,
    epoch: u64,
    (mut at, upto): (u64, u64),
    texts: &mut Texts,
    bar: &ProgressBar,
) -> anyhow::Result<()> {
    let bound = BoundOrg::named_by_operator(org);
    while at < upto {
        let to = upto.min(at + BATCH);
        let commits: Vec<Applied> = (at..to).map(|number| record(org, number, texts)).collect::<anyhow::Result<_>>()?;
        for pipeline in Pipeline::ALL.into_iter().filter(|pipeline| pipeline.has_versions()) {
            let mut tx = db.begin_batches(BatchClass::Backlog, TIMEOUT).await?;
            let from = (at > 0).then_some(at);
            match tx.open(bound, pipeline, SHARD, epoch, from, to).await? {
                BatchStart::Open { .. } => {}
                other => bail!("a batch could not be opened: {other:?}"),
            }
            apply(&mut tx, bound, &commits).await?;
            tx.commit().await?;
        }
        bar.inc(to - at);
        at = to;
    }
    Ok(())
}

fn record(org: OrgId, number: u64, texts: &mut Texts) -> anyhow::Result<Applied> {
    let field = |field: &str, role| SearchedField { field: field.to_owned(), role };
    let searched = vec![field("name", SearchRole::Title), field("text", SearchRole::Body)];
    let data = json!({"name": texts.text(3), "text": texts.text(WORDS)});
    let commit = load::searched_commit(org, "webhook".parse()?, data, searched)?;
    let subject = EventSubject { shard: SHARD, org, aggregate: commit.aggregate.clone() };
    Ok(Applied { seq: number + 1, commit: Arc::new(commit.open(&subject)?) })
}

impl Case {
    async fn measure(&self, db: &Database, organization: &'static str, org: OrgId, args: &Args) -> anyhow::Result<Row> {
        let bound = BoundOrg::named_by_operator(org);
        let (mut times, mut theirs, mut hits) = (Vec::new(), Vec::new(), 0);
        for nth in 0..args.queries.max(1) {
            // Words of about the same frequency, so that not one is asked for all the time.
            let words: Vec<String> = self.ranks.iter().map(|rank| Texts::word(rank + nth % (rank / 10 + 1))).collect();
            let begun = Instant::now();
            let mut tx = db.read(bound).await?;
            let query = SearchQuery::read(&(self.ours)(&words));
            let facets = std::collections::BTreeMap::new();
            let asked = Asked { query: &query, kinds: Kinds::All, facets: &facets, count_facets: false };
            let found = search::find(&mut tx, asked).await?;
            let page = found.ranked.get(..found.ranked.len().min(20)).unwrap_or_default();
            search::hits(&mut tx, &found.query, page).await?;
            hits += found.total;
            tx.finish().await?;
            times.push(begun.elapsed());
            // The other one is slow where it reads everything.
            if nth % 10 == 0 {
                let begun = Instant::now();
                let mut tx = db.read(bound).await?;
                full_text(&mut tx, &(self.full_text)(&words)).await?;
                tx.finish().await?;
                theirs.push(begun.elapsed());
            }
        }
        let at = |times: &mut Vec<Duration>, share: f64| {
            times.sort_unstable();
            let place = (times.len().saturating_sub(1) as f64 * share) as usize;
            times.get(place).copied().unwrap_or_default().as_secs_f64() * 1e3
        };
        Ok(Row {
            organization,
            query: self.name,
            hits: hits / times.len() as u64,
            p50_ms: at(&mut times, 0.5),
            p99_ms: at(&mut times, 0.99),
            full_text_p50_ms: at(&mut theirs, 0.5),
            full_text_p99_ms: at(&mut theirs, 0.99),
        })
    }
}

fn print(rows: &[Row]) -> anyhow::Result<()> {
    let head = ["organization", "query", "hits", "p50 ms", "p99 ms", "full text p50 ms", "full text p99 ms"];
    let mut table = table(&head, &[2, 3, 4, 5, 6]);
    for row in rows {
        table.add_row([
            row.organization.to_owned(),
            row.query.to_owned(),
            row.hits.to_string(),
            format!("{:.1}", row.p50_ms),
            format!("{:.1}", row.p99_ms),
            format!("{:.1}", row.full_text_p50_ms),
            format!("{:.1}", row.full_text_p99_ms),
        ]);
    }
    say!("{}", table.trim_fmt())?;
    say!("\"hits\": on average. \"full text\": PostgreSQL's own, with a GIN index, under the same policies.")?;
    Ok(())
}
