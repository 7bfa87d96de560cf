//! Policies as files: accepted files, errors with their lines, and the signatures that satisfy a quorum.
#![cfg(test)]

use orgstream_transparency::{AddCheckpoint, Frontier, LogSigner, PolicyFile, SignedNote, WitnessSigner, leaf_hash};

fn log() -> LogSigner {
    LogSigner::from_seed("audit.test/org_1".parse().unwrap(), &[1; 32])
}

fn witness(number: u8) -> WitnessSigner {
    WitnessSigner::from_seed(format!("witness.test/w{number}").parse().unwrap(), &[number + 10; 32])
}

/// Three witnesses, of which one is needed and one of two others.
fn policy(quorum: &str) -> String {
    let witnesses: String = (1..=3)
        .map(|number| format!("witness w{number} {} https://w{number}.test\n", witness(number).verifier()))
        .collect();
    format!(
        "# ours\nlog {}\n{witnesses}\ngroup others 1 w2 w3\ngroup both all w1 others\nquorum {quorum}\n",
        log().verifier()
    )
}

/// A checkpoint that these have signed.
fn signed_by(numbers: &[u8]) -> SignedNote {
    let tree: Frontier = [leaf_hash(b"a")].into_iter().collect();
    let mut note = log().sign(tree.head());
    for number in numbers {
        let request = AddCheckpoint::new(0, Vec::new(), note.clone()).unwrap();
        let line = request.decide(&[log().verifier().clone()], None).unwrap().cosign(&witness(*number), 1_700_000_000);
        assert_eq!(note.add_cosignatures(&[line], &[witness(*number).verifier().clone()]), 1);
    }
    note
}

#[test]
fn groups_say_whose_signatures_are_enough() {
    let cases: [(&str, &[u8], bool); 9] = [
        ("none", &[], true),
        ("w1", &[], false),
        ("w1", &[1], true),
        ("others", &[1], false),
        ("others", &[3], true),
        ("both", &[1], false),
        ("both", &[2, 3], false),
        ("both", &[1, 3], true),
        ("both", &[1, 2, 3], true),
    ];
    for (quorum, signers, enough) in cases {
        let policy = PolicyFile::parse(policy(quorum).as_bytes()).unwrap();
        assert_eq!(policy.asks_for_witnesses(), quorum != "none");
        let (seen, found) = policy.check(log().verifier(), &signed_by(signers)).unwrap();
        assert_eq!((found, seen.witnesses.len()), (enough, signers.len()), "{quorum} by {signers:?}");
    }
    let policy = PolicyFile::parse(policy("both").as_bytes()).unwrap();
    assert_eq!(policy.witnesses[1].url.as_deref(), Some("https://w2.test"));
    assert_eq!(policy.logs[0].0, *log().verifier());
}

#[test]
fn what_says_less_than_it_seems_to_is_refused_by_its_line() {
    let key = witness(1).verifier().clone();
    let same = witness(1).verifier().clone();
    for (text, line, words) in [
        (String::new(), 0, "a line `quorum` is missing"),
        ("quorum w1\n".to_owned(), 1, "no witness or group w1"),
        (format!("witness w1 {key}\nwitness w2 {same}\nquorum w1\n"), 2, "is there twice"),
        (format!("witness none {key}\nquorum none\n"), 1, "is taken"),
        (format!("witness a {key}\ngroup a any a\nquorum a\n"), 2, "is taken"),
        (format!("witness a {key}\ngroup g 2 a\nquorum g\n"), 2, "2 of 1"),
        (format!("witness a {key}\ngroup g 0 a\nquorum g\n"), 2, "0 of 1"),
        (format!("witness a {key}\ngroup g 1 a a\nquorum g\n"), 2, "named twice"),
        ("group g any g\nquorum g\n".to_owned(), 1, "no witness or group g"),
        (format!("witness a {key}\nquorum a\nquorum none\n"), 3, "(once) quorum"),
        ("sign everything\nquorum none\n".to_owned(), 1, "is not a log"),
        (format!("log {key}\nquorum none\n"), 1, "type"),
    ] {
        let error = PolicyFile::parse(text.as_bytes()).unwrap_err();
        assert_eq!(error.line, line, "{text}: {error}");
        assert!(error.to_string().contains(words), "{text}: {error}");
    }
}
