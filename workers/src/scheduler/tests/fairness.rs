//! Each org's share of the database, simulated with a virtual clock: arrivals and costs are random, and the scheduler
//! is compared with an ideal that shares everything out in infinitely small pieces.

use std::collections::BTreeMap;

use super::*;
use crate::weights::PlanWeights;

/// Microseconds that a transaction and each batch in it take beside their messages.
const TRANSACTION: u64 = 150;
const SLICE: u64 = 250;

/// Messages and transactions, in the order of a virtual clock.
struct World {
    scheduler: Scheduler,
    began: Instant,
    micros: u64,
    seq: u64,
    /// The transactions in the slots, and when each will be done.
    running: Vec<(u64, Group)>,
    /// Microseconds per message of each org.
    costs: BTreeMap<u8, u64>,
    /// Each org's plan.
    plans: BTreeMap<u8, PlanName>,
    /// Messages not yet applied by all pipelines: when each arrived, and when it was applied.
    arrived: BTreeMap<u64, (u8, u64)>,
    done: BTreeMap<u64, Vec<u64>>,
    /// Microseconds of the database used by each org.
    service: BTreeMap<u8, f64>,
    longest: u64,
}

impl World {
    fn new(options: WorkerOptions, costs: &[u64]) -> Self {
        let began = Instant::now();
        let mut scheduler = Scheduler::new(options, began);
        scheduler.open_shard(SHARD, 1, 0, &[]);
        Self {
            scheduler,
            began,
            micros: 0,
            seq: 0,
            running: Vec::new(),
            costs: (0..).zip(costs.iter().copied()).collect(),
            plans: BTreeMap::new(),
            arrived: BTreeMap::new(),
            done: BTreeMap::new(),
            service: BTreeMap::new(),
            longest: 0,
        }
    }

    fn now(&self) -> Instant {
        self.began + Duration::from_micros(self.micros)
    }

    fn arrive(&mut self, who: u8) {
        self.seq += 1;
        self.arrived.insert(self.seq, (who, self.micros));
        let now = self.now();
        self.scheduler.offer(org(who), &delivery(org(who), self.seq, now));
    }

    fn who(&self, key: LaneKey) -> u8 {
        *self.costs.keys().find(|who| org(**who) == key.org).unwrap()
    }

    /// Fills the slots, and checks that none stays empty while a lane could use it.
    fn dispatch(&mut self) {
        while let Some(group) = self.scheduler.next_group(self.now()) {
            let messages = |batch: &LaneBatch| self.costs[&self.who(batch.key)] * batch.deliveries.len() as u64;
            let takes = TRANSACTION + group.batches.iter().map(|batch| SLICE + messages(batch)).sum::<u64>();
            self.longest = self.longest.max(takes);
            self.running.push((self.micros + takes, group));
        }
        let options = self.scheduler.options.clone();
        let free = options.slots - self.running.len();
        if free == 0 {
            return;
        }
        for (key, lane) in self.scheduler.lanes().filter(|(_, lane)| lane.state == LaneState::Ready) {
            let held = self.scheduler.orgs[&(key.shard, key.org)].slots;
            let taken_by = |class| self.running.iter().filter(|(_, group)| group.class == class).count();
            let kind_has_all = match lane.class {
                WorkClass::Light => false,
                WorkClass::Backlogged => {
                    taken_by(WorkClass::Backlogged) >= options.backlog_slots(taken_by(WorkClass::Expensive))
                }
                WorkClass::Expensive => {
                    taken_by(WorkClass::Expensive) >= options.expensive_slots()
                        || held >= options.expensive_slots_of_one()
                }
            };
            let may_wait = (held > 0 && free <= options.reserve_against(Duration::ZERO)) || kind_has_all;
            assert!(may_wait, "{free} slots are free, and org {} waits for one, with {held}", self.who(key));
        }
    }

    /// Advances to the end of the next transaction, or to `until` if that is earlier. False when none is running.
    fn advance(&mut self, until: u64) -> bool {
        self.dispatch();
        let next = self.running.iter().enumerate().min_by_key(|(_, (at, _))| *at).map(|(place, (at, _))| (place, *at));
        match next {
            Some((place, at)) if at <= until => {
                self.micros = at;
                let (_, group) = self.running.swap_remove(place);
                let mut outcomes = Vec::new();
                let shared = TRANSACTION / group.batches.len() as u64;
                for batch in &group.batches {
                    let who = self.who(batch.key);
                    let work = self.costs[&who] * batch.deliveries.len() as u64;
                    *self.service.entry(who).or_default() += (shared + SLICE + work) as f64;
                    for delivery in &batch.deliveries {
                        self.done.entry(delivery.seq()).or_default().push(at);
                    }
                    let micros = Duration::from_micros;
                    let cost = Cost {
                        shared: micros(shared),
                        opening: micros(SLICE / 2),
                        work: micros(SLICE / 2 + work),
                        elsewhere: Duration::ZERO,
                    };
                    let plan = self.plans.get(&who).cloned().unwrap_or_default();
                    outcomes.push(BatchOutcome::Applied { cost, plan, elsewhere: false });
                }
                let now = self.now();
                self.scheduler.done(&group, outcomes, now, 0.5);
                true
            }
            _ => {
                self.micros = until;
                next.is_some()
            }
        }
    }

    fn run_until(&mut self, until: u64) {
        while self.micros < until {
            self.advance(until);
        }
    }

    fn drain(&mut self) {
        let patience = self.micros + 3_600_000_000;
        while self.advance(patience) {}
        assert!(self.scheduler.lanes().all(|(_, lane)| lane.is_empty()), "somebody was never served");
    }

    /// The times from each message's arrival until all pipelines had it, the shortest first.
    fn lags(&self, of: impl Fn(u8) -> bool) -> Vec<u64> {
        let mut lags: Vec<u64> = self
            .arrived
            .iter()
            .filter(|(_, (who, _))| of(*who))
            .map(|(seq, (_, arrived))| self.done[seq].iter().max().unwrap() - arrived)
            .collect();
        lags.sort_unstable();
        lags
    }
}

fn roomy(slots: usize) -> WorkerOptions {
    let usual = WorkerOptions::new(Uuid::nil()).with_slots(slots);
    WorkerOptions { lane_bytes: 1 << 28, total_bytes: 1 << 30, ..usual }
}

fn at(sorted: &[u64], share: f64) -> u64 {
    sorted[((sorted.len() - 1) as f64 * share) as usize]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Orgs that all have a backlog get their shares: database time in proportion to their weights, whatever one
    /// message of theirs costs, to within the longest transaction for every slot.
    #[test]
    fn a_backlog_is_shared_by_time_and_weight(
        costs in prop::collection::vec(20_u64..3_000, 5..12),
        weights in prop::collection::vec(1_u8..5, 12),
        slots in 1_usize..5,
    ) {
        let of_plans = (1..5).map(|weight| format!("plan{weight}={weight}").parse().unwrap());
        let options = WorkerOptions { weights: PlanWeights::new(of_plans).unwrap(), ..roomy(slots) };
        let mut world = World::new(options, &costs);
        for who in 0..costs.len() as u8 {
            for _ in 0..(3_000_000 / costs[usize::from(who)]).min(6_000) {
                world.arrive(who);
            }
            world.plans.insert(who, format!("plan{}", weights[usize::from(who)]).parse().unwrap());
        }
        world.run_until(600_000);
        let due = |who: &u8| world.service[who] / f64::from(weights[usize::from(*who)]);
        let shares: Vec<f64> = (0..costs.len() as u8).map(|who| due(&who)).collect();
        let (least, most) = shares.iter().fold((f64::MAX, 0.0_f64), |(least, most), x| (least.min(*x), most.max(*x)));
        let bound = 2.0 * slots as f64 * world.longest as f64;
        prop_assert!(most - least <= bound, "{least} to {most}, {} at the longest, {slots} slots", world.longest);
    }

    /// One org's backlog costs the others at most one slot, and the transactions that cannot be interrupted, one for each pipeline
    /// that a message has to pass; and all are served.
    #[test]
    fn a_neighbours_backlog_costs_no_more_than_a_batch(
        arrivals in prop::collection::vec((0_u64..200_000, 1_u8..30), 20..120),
        cost in 20_u64..200,
        slots in 2_usize..6,
    ) {
        let mut arrivals = arrivals;
        arrivals.sort_unstable();
        let mut costs = vec![cost; 30];
        costs[0] = 40;
        let [alone, beside] = [(slots - 1, false), (slots, true)].map(|(slots, is_noisy)| {
            let mut world = World::new(roomy(slots), &costs);
            if is_noisy {
                for _ in 0..12_000 {
                    world.arrive(0);
                }
                // The cost of the noisy org's messages is known by now.
                world.run_until(100_000);
            }
            let start = world.micros;
            for (when, who) in &arrivals {
                world.run_until(start + when);
                world.arrive(*who);
            }
            world.drain();
            (world.lags(|who| who > 0), world.longest)
        });
        for share in [0.5, 0.99, 1.0] {
            let (without, with) = (at(&alone.0, share), at(&beside.0, share));
            let uninterrupted = Pipeline::ALL.len() as u64 * beside.1;
            let message = format!("{share}: {without} alone with a slot less, {with} beside it, {}", beside.1);
            prop_assert!(with <= without + uninterrupted, "{message}");
        }
    }

    /// However expensive the messages of a few orgs are, they have their own part of the slots and no more.
    #[test]
    fn expensive_messages_have_their_own_part_of_the_slots(
        expensive in prop::collection::vec(20_000_u64..5_000_000, 1..5),
        slots in 2_usize..9,
    ) {
        beside_expensive(&expensive, slots);
    }
}

/// Messages that are barely expensive are classified so after their first one.
#[test]
fn what_is_barely_expensive_is_expensive_at_once() {
    beside_expensive(&[20_000, 20_000], 2);
}

fn beside_expensive(expensive: &[u64], slots: usize) {
    let mut costs = vec![50; 20];
    costs.splice(0..expensive.len(), expensive.iter().copied());
    let mut world = World::new(roomy(slots), &costs);
    let count = expensive.len() as u8;
    // A first message is like any other's.
    (0..count).for_each(|who| world.arrive(who));
    world.drain();
    for _ in 0..6 {
        (0..count).for_each(|who| world.arrive(who));
    }
    let start = world.micros;
    for round in 0..200 {
        world.run_until(start + round * 2_000);
        world.arrive(count + (round % u64::from(20 - count)) as u8);
    }
    let options = world.scheduler.options.clone();
    let expensive_now = world.running.iter().filter(|(_, group)| group.class == WorkClass::Expensive).count();
    assert!(expensive_now <= options.expensive_slots());
    world.drain();
    let quick = world.lags(|who| who >= count);
    let worst = at(&quick, 1.0);
    assert!(worst <= 10_000, "{worst} µs beside messages of {expensive:?} µs, with {slots} slots");
}

/// Idling earns no credit: an org that was idle for long does not own the machine when it comes back.
#[test]
fn an_org_that_slept_has_no_credit() {
    let mut world = World::new(roomy(1), &[100, 100]);
    for _ in 0..40_000 {
        world.arrive(0);
    }
    world.run_until(1_000_000);
    let before = world.service[&0];
    for _ in 0..20_000 {
        world.arrive(1);
    }
    world.run_until(1_400_000);
    let (theirs, ours) = (world.service[&0] - before, world.service[&1]);
    assert!((0.8..1.25).contains(&(ours / theirs)), "{ours} for who slept, {theirs} for who worked");
}

/// An org that changes its plan has another share from then on, and neither a debt nor a credit from before.
#[test]
fn a_plan_that_changes_changes_the_share_from_then_on() {
    let weights = PlanWeights::new(["enterprise=4".parse().unwrap()]).unwrap();
    let mut world = World::new(WorkerOptions { weights, ..roomy(1) }, &[100, 100]);
    for _ in 0..40_000 {
        world.arrive(0);
        world.arrive(1);
    }
    let mut until = 0;
    for (plan, share) in [("standard", 1.0), ("enterprise", 4.0), ("unheard-of", 1.0)] {
        world.plans.insert(1, plan.parse().unwrap());
        let before = world.service.clone();
        until += 1_000_000;
        world.run_until(until);
        let had = |who: u8| world.service[&who] - before.get(&who).copied().unwrap_or_default();
        let found = had(1) / had(0);
        assert!((0.9 * share..1.1 * share).contains(&found), "{plan}: {found} times the other's");
    }
}

/// A single org has one slot, and its other pipeline another one only while most are free, or once the first is stuck;
/// the reserve stays free for new orgs in any case.
#[test]
fn a_single_org_has_a_second_slot_only_if_others_lack_nothing() {
    for (slots, reserve) in (1..9).flat_map(|slots| (0..slots).map(move |reserve| (slots, reserve))) {
        let mut world = World::new(WorkerOptions { reserve, ..roomy(slots) }, &[40]);
        for _ in 0..5_000 {
            world.arrive(0);
        }
        world.dispatch();
        let spare = slots - reserve.max(slots * 3 / 4);
        let lanes = Pipeline::ALL.len();
        assert_eq!(world.running.len(), lanes.min(spare), "{slots} slots, {reserve} reserved");
        world.micros += 2 * world.scheduler.options.group_timeout().as_micros() as u64;
        world.dispatch();
        let besides = lanes.min(2 * spare).min(slots - reserve);
        assert_eq!(world.running.len(), besides, "{slots} slots, {reserve} reserved, and those are stuck");
        world.drain();
    }
}
