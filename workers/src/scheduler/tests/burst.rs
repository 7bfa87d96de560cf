//! Bursts beside a crowd of quiet orgs, simulated with a virtual clock on too few processors: concurrent transactions
//! slow each other down, and a transaction's duration says little about its content.

use rand::{RngExt, SeedableRng, rngs::StdRng};

use super::*;

/// Processor microseconds of a transaction, a batch in it and a message, as measured on two cores, and the average
/// overhead of a round trip: little on a quiet machine, more on a busy one.
const TRANSACTION: f64 = 600.0;
const SLICE: f64 = 600.0;
const MESSAGE: f64 = 80.0;
const TO_AND_FRO: [f64; 2] = [200.0, 800.0];
/// Processors, and their remainder while a burst is being appended.
const PROCESSORS: f64 = 1.9;
const BESIDE_APPENDS: f64 = 1.3;
/// What an event costs that comes alone.
const ALONE: f64 = TRANSACTION + PIPELINES as f64 * (SLICE + MESSAGE);
const PIPELINES: usize = Pipeline::ALL.len();
/// The quiet load: events per second that take 0.29 of the processors, by Zipf's law from so many orgs.
const RATE: f64 = 0.29 * PROCESSORS * 1e6 / ALONE;
const CROWD: u16 = 1_000;
/// The burst: its events, and when it begins and has been appended, in microseconds.
const EVENTS: u32 = 80_000 / PIPELINES as u32;
const BEGINS: f64 = 2e6;
const APPENDED: f64 = 5e6;
const ENDS: f64 = 12e6;

fn org_of(number: u16) -> OrgId {
    let [high, low] = number.to_be_bytes();
    OrgId::fresh(1_700_000_000_000, [low, high, 0, 0, 0, 0, 0, 0, high, low])
}

/// Times in microseconds, with the org that appends then: one of the crowd, or, numbered on from there, a bursting one.
fn arrivals(bursting: u16, rng: &mut StdRng) -> Vec<(f64, u16)> {
    let sums: Vec<f64> = (1..=CROWD)
        .scan(0.0, |sum, rank| {
            *sum += 1.0 / f64::from(rank);
            Some(*sum)
        })
        .collect();
    let mut arrivals = Vec::new();
    let mut at = 0.0;
    while at < ENDS {
        at -= (1.0 - rng.random_range(0.0..1.0_f64)).ln() / RATE * 1e6;
        let wanted = rng.random_range(0.0..sums[sums.len() - 1]);
        arrivals.push((at, sums.partition_point(|sum| *sum <= wanted) as u16));
    }
    let every = (APPENDED - BEGINS) / f64::from(EVENTS);
    let dealt = (CROWD..CROWD + bursting).cycle().zip(0..EVENTS);
    arrivals.extend(dealt.map(|(org, nth)| (BEGINS + f64::from(nth) * every, org)));
    arrivals.sort_unstable_by(|one, next| one.0.total_cmp(&next.0));
    arrivals
}

/// A running transaction.
struct Running {
    left: f64,
    work: f64,
    began: f64,
    group: Group,
}

/// For each event: when it was appended, its org, and when all pipelines had it, in microseconds.
struct Played(Vec<(f64, u16, f64)>);

impl Played {
    /// The p99 of the quiet lags of events appended in this period, in milliseconds.
    fn quiet_p99(&self, from: f64, to: f64) -> f64 {
        let inside = self.0.iter().filter(|(at, org, _)| *org < CROWD && (from..to).contains(at));
        let mut lags: Vec<f64> = inside.map(|(at, _, done)| (done - at) / 1e3).collect();
        lags.sort_unstable_by(f64::total_cmp);
        lags[lags.len() * 99 / 100]
    }

    /// When the burst was worked off, in microseconds.
    fn drained(&self) -> f64 {
        self.0.iter().filter(|(_, org, _)| *org >= CROWD).map(|(.., done)| *done).fold(0.0, f64::max)
    }
}

fn play(bursting: u16, seed: u64) -> Played {
    let mut rng = StdRng::seed_from_u64(seed);
    let arrivals = arrivals(bursting, &mut rng);
    let clock = Instant::now();
    let at = |now: f64| clock + Duration::from_nanos((now * 1e3) as u64);
    let mut scheduler = Scheduler::new(WorkerOptions::new(Uuid::nil()), clock);
    scheduler.open_shard(SHARD, 1, 0, &[]);
    let mut played: Vec<(f64, u16, f64)> = Vec::new();
    let mut running: Vec<Running> = Vec::new();
    let mut coming = arrivals.iter().peekable();
    let mut now = 0.0;
    loop {
        let processors = if (BEGINS..APPENDED).contains(&now) { BESIDE_APPENDS } else { PROCESSORS };
        let speed = (processors / running.len() as f64).min(1.0);
        let ends = running.iter().map(|running| now + running.left / speed);
        let comes = coming.peek().map(|(at, _)| at.max(now));
        let Some(next) = ends.chain(comes).min_by(f64::total_cmp) else { break };
        for running in &mut running {
            running.left -= (next - now) * speed;
        }
        now = next;
        while let Some((appended, org)) = coming.next_if(|(at, _)| *at <= now) {
            played.push((*appended, *org, 0.0));
            let org = org_of(*org);
            scheduler.offer(org, &delivery(org, played.len() as u64, at(now)));
        }
        while let Some(place) = running.iter().position(|running| running.left < 1e-6) {
            let Running { work, began, group, .. } = running.swap_remove(place);
            let stretch = (now - began) / work;
            let took = |work: f64| Duration::from_nanos((work * stretch * 1e3) as u64);
            let mut outcomes = Vec::new();
            for batch in &group.batches {
                for delivery in &batch.deliveries {
                    played[delivery.seq() as usize - 1].2 = now;
                }
                let shared = took(TRANSACTION / group.batches.len() as f64);
                let work = took(SLICE / 2.0 + MESSAGE * batch.deliveries.len() as f64);
                let cost = Cost { shared, opening: took(SLICE / 2.0), work, elsewhere: Duration::ZERO };
                outcomes.push(BatchOutcome::Applied { cost, plan: PlanName::default(), elsewhere: false });
            }
            scheduler.done(&group, outcomes, at(now), 0.5);
        }
        while let Some(group) = scheduler.next_group(at(now)) {
            let of_batch = |batch: &LaneBatch| SLICE + MESSAGE * batch.deliveries.len() as f64;
            let work = TRANSACTION + group.batches.iter().map(of_batch).sum::<f64>();
            let to_and_fro = TO_AND_FRO[usize::from(running.len() > 1)];
            let left = work - (1.0 - rng.random_range(0.0..1.0_f64)).ln() * to_and_fro;
            running.push(Running { left, work, began: now, group });
        }
    }
    assert!(played.iter().all(|(.., done)| *done > 0.0), "somebody was never served");
    Played(played)
}

/// However many orgs burst at once, and whichever of the crowd has more to do than the others: quiet orgs are delayed
/// by the processors, and not by a queue.
#[test]
fn bursts_do_not_make_the_others_stand_in_line() {
    for (bursting, seed) in [(1, 1), (5, 2), (50, 3), (50, 4)] {
        let played = play(bursting, seed);
        let alone = played.quiet_p99(0.0, BEGINS);
        let appending = played.quiet_p99(BEGINS, APPENDED);
        let draining = played.quiet_p99(APPENDED, played.drained());
        let drained = (played.drained() - BEGINS) / 1e6;
        println!(
            "{bursting} bursting: p99 {alone:.1} ms alone, {appending:.1} and {draining:.1} ms; drained in {drained:.1} s"
        );
        assert!(alone < 12.0 && appending < 80.0 && draining < 30.0, "{bursting}: {alone}, {appending}, {draining} ms");
        assert!(drained < 14.0, "the burst of {bursting} took {drained} s");
    }
}
