//! The load on a database in trouble, and the attribution of its failures.

use super::*;

/// A scheduler in which `orgs` have a message each.
fn waiting(orgs: u8, now: Instant) -> Scheduler {
    let mut scheduler = Scheduler::new(WorkerOptions { attempts: 3, ..WorkerOptions::new(Uuid::nil()) }, now);
    scheduler.open_shard(SHARD, 1, 0, &[]);
    for number in 0..orgs {
        scheduler.offer(org(number), &delivery(org(number), u64::from(number) + 1, now));
    }
    scheduler
}

/// Runs transactions for `time`, each ended by `ends`; returns their number.
fn run(
    scheduler: &mut Scheduler,
    now: &mut Instant,
    time: Duration,
    ends: impl Fn(&LaneBatch) -> BatchOutcome,
) -> usize {
    let (until, mut transactions) = (*now + time, 0);
    while *now < until {
        let mut groups = Vec::new();
        while let Some(group) = scheduler.next_group(*now) {
            groups.push(group);
        }
        *now += Duration::from_millis(1);
        for group in groups {
            transactions += 1;
            let outcomes = group.batches.iter().map(&ends).collect();
            scheduler.done(&group, outcomes, *now, 0.5);
        }
    }
    transactions
}

#[test]
fn a_database_in_trouble_is_asked_ever_more_rarely_and_nobody_pays_for_it() {
    let mut now = Instant::now();
    let mut scheduler = waiting(200, now);
    let asked = run(&mut scheduler, &mut now, Duration::from_secs(60), |_| away());
    assert!((10..200).contains(&asked), "{asked} transactions in a minute");
    assert!(scheduler.trouble(now).is_some());
    for (key, lane) in scheduler.lanes() {
        assert!(lane.attempts == 0 && lane.park_first.is_none(), "{key:?} is blamed");
    }
    let charged: f64 = scheduler.orgs.values().map(|org| org.virtual_time[WorkClass::Light]).sum();
    assert!(charged.abs() < 1.0, "{charged} microseconds were charged");

    run(&mut scheduler, &mut now, Duration::from_secs(20), |_| spent(300));
    assert!(scheduler.lanes().all(|(_, lane)| lane.is_empty()));
    assert!(scheduler.trouble(now).is_none());
}

#[test]
fn one_org_in_trouble_holds_nobody_else_up() {
    let mut now = Instant::now();
    let mut scheduler = waiting(20, now);
    let ends = |batch: &LaneBatch| {
        let own = batch.key.org == org(7);
        let trouble =
            Trouble { reason: "its rows are held".into(), everywhere: false, suspect: true, elsewhere: false };
        if own { BatchOutcome::Unavailable(trouble) } else { spent(300) }
    };
    let asked = run(&mut scheduler, &mut now, Duration::from_secs(30), ends);
    assert!(asked < 100, "{asked} transactions in half a minute");
    for (key, lane) in scheduler.lanes() {
        assert_eq!(lane.is_empty(), key.org != org(7), "{key:?}");
        assert!(lane.attempts == 0 && lane.park_first.is_none(), "{key:?} is blamed");
    }
}

#[test]
fn a_checkpoint_that_cannot_be_moved_from_where_it_is_makes_nobody_spin() {
    let mut now = Instant::now();
    let mut scheduler = waiting(1, now);
    let asked = run(&mut scheduler, &mut now, Duration::from_secs(60), |_| BatchOutcome::Moved { stored: 0 });
    assert!((5..80).contains(&asked), "{asked} transactions in a minute");
}

#[test]
fn what_cannot_even_be_parked_makes_nobody_spin() {
    let mut now = Instant::now();
    let mut scheduler = waiting(1, now);
    let refused = |_: &LaneBatch| BatchOutcome::Failed { reason: "no".to_owned() };
    let asked = run(&mut scheduler, &mut now, Duration::from_secs(60), refused);
    assert!((5..80).contains(&asked), "{asked} transactions in a minute");
}
