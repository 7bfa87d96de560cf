//! The audit log is read by pages that end by bytes, for any requested number of events.

use orgstream_events::{AggregateId, Event, Pipeline, RecordCreated, RecordEvent};
use orgstream_projections::{
    Page,
    audit::{self, AuditEntry, AuditFilter},
};
use serde_json::json;

use crate::{
    projections::{History, lease},
    support,
};

/// Large events, more of them than a page has room for.
const LARGE: u8 = 14;
/// Bytes of each.
const SIZE: usize = 700_000;

/// Whether the entries are at most a page, and not empty.
fn is_page(entries: &[AuditEntry]) -> bool {
    let bytes: usize = entries.iter().map(|entry| entry.sealed.header.len() + entry.sealed.payload.len()).sum();
    !entries.is_empty() && bytes < usize::try_from(audit::PAGE_BYTES).unwrap() + SIZE + 1_000
}

fn places(entries: &[AuditEntry]) -> Vec<u64> {
    entries.iter().map(|entry| entry.idx).collect()
}

#[tokio::test]
async fn a_page_of_large_events_has_few_of_them_and_none_is_left_out() {
    let database = support::database().await;
    let (db, mut history) = (&database.db, History::new(1));
    let epoch = lease(db).await;
    for nth in 0..LARGE {
        let data = json!({"text": format!("{nth}").repeat(SIZE / 2)});
        let created = RecordCreated {
            kind: "trace".parse().unwrap(),
            kind_version: 1,
            data,
            references: vec![],
            unique: Vec::new(),
            searched: vec![],
            secrets: vec![],
        };
        let id = history.record(nth);
        history.commit(AggregateId::Record(id), 0, vec![Event::Record(RecordEvent::Created(created))]);
    }
    history.apply(db, Pipeline::Audit, epoch, 3).await;
    let all: Vec<u64> = (0..LARGE.into()).collect();
    let mut tx = db.read(history.bound()).await.unwrap();

    // As replays, tails, webhooks and tiles read it.
    let (mut read, mut more, mut pages) = (Vec::new(), true, 0);
    while more {
        let part = audit::from_idx(&mut tx, read.len() as u64, 500).await.unwrap();
        assert!(is_page(&part.entries), "{}", part.entries.len());
        read.extend(places(&part.entries));
        (more, pages) = (part.more, pages + 1);
    }
    assert_eq!(read, all);
    assert!(pages >= 2, "{pages} pages");
    // As exports do, with a filter and without.
    let filtered = AuditFilter { action: Some("record.created".to_owned()), ..AuditFilter::default() };
    for filter in [AuditFilter::default(), filtered] {
        let (mut read, mut more) = (Vec::new(), true);
        while more {
            let part = audit::forward(&mut tx, &filter, read.last().copied(), 500).await.unwrap();
            assert!(is_page(&part.entries), "{}", part.entries.len());
            read.extend(places(&part.entries));
            more = part.more;
        }
        assert_eq!(read, all);
    }
    // As lists do, in both directions.
    let (mut read, mut page) = (Vec::new(), Page::First);
    loop {
        let listing = audit::list(&mut tx, &AuditFilter::default(), &page, 100).await.unwrap();
        assert!(is_page(&listing.rows), "{}", listing.rows.len());
        read.extend(places(&listing.rows));
        if !listing.more {
            break;
        }
        page = Page::After(*read.last().unwrap());
    }
    assert!(read.iter().rev().eq(&all), "{read:?}");
    let newer = audit::list(&mut tx, &AuditFilter::default(), &Page::Before(0), 100).await.unwrap();
    assert!(is_page(&newer.rows) && newer.more);
    assert_eq!(newer.rows.last().unwrap().idx, 1);
    // As the comparison with the stream does.
    let (mut read, mut next, mut is_all) = (Vec::new(), 1, false);
    while !is_all {
        let events;
        (events, is_all) = audit::stored_from(&mut tx, next, 2_000).await.unwrap();
        assert!(events.len() < usize::from(LARGE));
        next = events.last().unwrap().seq + 1;
        read.extend(events.into_iter().map(|event| event.seq));
    }
    assert_eq!(read, history.commits.iter().map(|applied| applied.seq).collect::<Vec<_>>());
    let checked = audit::check(&mut tx).await.unwrap();
    assert_eq!((checked.head.size, checked.differences), (LARGE.into(), Vec::new()));
}
