//! The witness: accepted requests, and refused ones with their replies.
#![cfg(test)]

use orgstream_transparency::{
    AddCheckpoint, Frontier, Hash, LogKey, LogSigner, MAX_SIGNATURES, Plan, Policy, Refusal, SIZE_CONTENT_TYPE,
    SignatureLine, SignedNote, Tiles, TreeHead, WitnessSigner, leaf_hash, parse_size,
};

const ORIGIN: &str = "audit.example.com/org_1";

fn log() -> LogSigner {
    LogSigner::from_seed(ORIGIN.parse().unwrap(), &[1; 32])
}

fn keys() -> Vec<LogKey> {
    vec![log().verifier().clone()]
}

fn witness() -> WitnessSigner {
    WitnessSigner::from_seed("witness.example.org/w1".parse().unwrap(), &[2; 32])
}

fn leaves(size: u64) -> Vec<Hash> {
    (0..size).map(|index| leaf_hash(&index.to_be_bytes())).collect()
}

fn head(size: u64) -> TreeHead {
    leaves(size).into_iter().collect::<Frontier>().head()
}

/// The head of a log with another history.
fn forked(size: u64) -> TreeHead {
    TreeHead { root: leaf_hash(b"another story"), ..head(size) }
}

fn proof(old: u64, new: u64) -> Vec<Hash> {
    let plan = Plan::consistency(old, new).unwrap();
    let tiles: Tiles = plan.tiles().into_iter().map(|tile| (tile, leaves(new))).collect();
    plan.prove(&tiles).unwrap()
}

fn request(old: u64, proof: Vec<Hash>, new: TreeHead) -> AddCheckpoint {
    AddCheckpoint::new(old, proof, log().sign(new)).unwrap()
}

#[test]
fn a_log_that_grows_is_signed_from_head_to_head() {
    let mut known = None;
    let mut old = 0;
    for new in [1, 1, 2, 7, 8, 8, 100] {
        let body = request(old, proof(old, new), head(new)).to_string();
        let request = AddCheckpoint::parse(body.as_bytes()).unwrap();
        assert_eq!(request.to_string(), body);
        assert_eq!(request.origin(), ORIGIN);
        let accepted = request.decide(&keys(), known).unwrap();
        assert_eq!(accepted.head(), head(new));
        let answer = format!("{}\n", accepted.cosign(&witness(), 1_700_000_000 + new));

        // The log adds the reply, and an auditor that trusts the witness sees it in the checkpoint.
        let mut checkpoint = log().sign(head(new));
        let lines = SignatureLine::parse_all(answer.as_bytes()).unwrap();
        assert_eq!(checkpoint.add_cosignatures(&lines, &[witness().verifier().clone()]), 1);
        assert_eq!(checkpoint.add_cosignatures(&lines, &[witness().verifier().clone()]), 0);
        let policy = Policy::new(log().verifier().clone(), vec![witness().verifier().clone()], 1).unwrap();
        let seen = policy.check(&SignedNote::parse(checkpoint.to_string().as_bytes()).unwrap()).unwrap();
        assert_eq!(seen.witnesses, [(witness().verifier().name().clone(), 1_700_000_000 + new)]);
        (old, known) = (new, Some(accepted.head()));
    }
}

#[test]
fn every_refusal_has_its_status() {
    let other = LogSigner::from_seed(ORIGIN.parse().unwrap(), &[9; 32]);
    let strange = AddCheckpoint::new(0, Vec::new(), other.sign(head(3))).unwrap();
    let wrong = request(0, Vec::new(), head(3)).to_string().replace("\n3\n", "\n4\n");
    let wrong = AddCheckpoint::parse(wrong.as_bytes()).unwrap();
    let mut long = proof(3, 5);
    long.push(Hash::OF_NOTHING);
    let none_but_rooted = TreeHead { size: 0, ..head(1) };
    let cases = [
        (strange.decide(&keys(), None), 403, "the checkpoint is not signed by a known key of the log"),
        (wrong.decide(&keys(), None), 403, "the signature of audit.example.com/org_1 is not valid"),
        (request(0, vec![], head(3)).decide(&[], None), 404, "the log is not known here"),
        (request(4, vec![], head(3)).decide(&keys(), None), 400, "the old size 4 is larger than the checkpoint's, 3"),
        (request(2, proof(2, 5), head(5)).decide(&keys(), None), 409, "0"),
        (request(0, vec![], head(5)).decide(&keys(), Some(head(3))), 409, "3"),
        (request(2, proof(2, 5), head(5)).decide(&keys(), Some(head(3))), 409, "3"),
        // An older checkpoint than the signed one is stale as well: a log does not shrink.
        (request(2, proof(2, 3), head(3)).decide(&keys(), Some(head(5))), 409, "5"),
        (request(5, vec![], forked(5)).decide(&keys(), Some(head(5))), 409, "another root was signed for size 5"),
        (
            request(3, proof(3, 5), head(5)).decide(&keys(), Some(forked(3))),
            422,
            "the proof does not lead to the root of the earlier tree",
        ),
        (
            request(3, proof(3, 5), forked(5)).decide(&keys(), Some(head(3))),
            422,
            "the proof does not lead to the root of the tree",
        ),
        (request(3, vec![], head(5)).decide(&keys(), Some(head(3))), 422, "the proof has too few hashes"),
        (request(3, long, head(5)).decide(&keys(), Some(head(3))), 422, "the proof has too many hashes"),
        (request(0, proof(3, 5), head(5)).decide(&keys(), None), 422, "the proof has too many hashes"),
        (request(5, proof(3, 5), head(5)).decide(&keys(), Some(head(5))), 422, "the proof has too many hashes"),
        (
            request(0, vec![], none_but_rooted).decide(&keys(), None),
            422,
            "the proof does not lead to the root of the tree",
        ),
    ];
    for (decision, status, body) in cases {
        let refusal = decision.unwrap_err();
        assert_eq!((refusal.status(), refusal.to_string().as_str()), (status, body));
        let is_size = matches!(refusal, Refusal::Stale { .. });
        assert_eq!(refusal.content_type() == SIZE_CONTENT_TYPE, is_size);
        assert_eq!(parse_size(format!("{refusal}\n").as_bytes()).is_ok(), is_size);
    }
}

#[test]
fn nothing_is_signed_that_an_honest_log_did_not_ask_for() {
    // Every proof of a small log, against every head that might be known.
    for known in 0..12 {
        for old in 0..12 {
            for new in old..12 {
                let decision = request(old, proof(old, new), head(new)).decide(&keys(), Some(head(known)));
                assert_eq!(decision.is_ok(), old == known, "{known}: {old} to {new}");
            }
        }
    }
}

#[test]
fn a_log_may_change_its_key_while_both_are_known() {
    let new = LogSigner::from_seed(ORIGIN.parse().unwrap(), &[7; 32]);
    let both = [log().verifier().clone(), new.verifier().clone()];
    let request = AddCheckpoint::new(0, Vec::new(), new.sign(head(3))).unwrap();
    request.decide(&both, None).unwrap();
}

#[test]
fn requests_that_are_none_are_refused_by_what_is_wrong() {
    let whole = request(3, proof(3, 5), head(5)).to_string();
    let hash = proof(3, 5)[0].to_string();
    let cases = [
        (whole.replace("old 3", "new 3"), "the old size is missing"),
        (whole.replace("old 3", "old 03"), "the old size is not a decimal number up to 2^63 - 1 without leading zeros"),
        (whole.replace("old 3", "old  3"), "the old size is not a decimal number up to 2^63 - 1 without leading zeros"),
        (whole.replace(&hash, "hash"), "a hash is not 32 bytes"),
        (whole.replace(&hash, &[hash.as_str(); 62].join("\n")), "there are more than 63 hashes in the proof"),
        (whole.replacen("\n\n", "\n", 1), "a hash is not canonical base64"),
        (
            whole.replace("\n5\n", "\nfive\n"),
            "the checkpoint's size is not a decimal number up to 2^63 - 1 without leading zeros",
        ),
        (whole.trim_end().to_owned(), "the newline after the last signature is missing"),
        (whole.replace("old", "old\0"), "the request is not free of control characters"),
        (format!("{whole}{}", " ".repeat(200_000)), "the request is longer than 135168 bytes"),
    ];
    for (body, error) in cases {
        let refusal = Refusal::from(AddCheckpoint::parse(body.as_bytes()).unwrap_err());
        assert_eq!((refusal.status(), refusal.to_string().as_str()), (400, error), "{body:.200}");
    }
    for end in 0..whole.len() {
        AddCheckpoint::parse(&whole.as_bytes()[..end]).unwrap_err();
    }
}

#[test]
fn the_example_of_the_specification_is_read() {
    let body = "old 20852014\nPlRNCrwHpqhGrupue0L7gxbjbMiKA9temvuZZDDpkaw=\n\
        jrJZDmY8Y7SyJE0MWLpLozkIVMSMZcD5kvuKxPC3swk=\n5+pKlUdi2LeF/BcMHBn+Ku6yhPGNCswZZD1X/6QgPd8=\n\
        /6WVhPs2CwSsb5rYBH5cjHV/wSmA79abXAwhXw3Kj/0=\n\nexample.com/behind-the-sofa\n20852163\n\
        CsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=\n\n\u{2014} example.com/behind-the-sofa \
        Az3grlgtzPICa5OS8npVmf1Myq/5IZniMp+ZJurmRDeOoRDe4URYN7u5/Zhcyv2q1gGzGku9nTo+zyWE+xeMcTOAYQ8=\n\
        \u{2014} example.com/behind-the-sofa \
        opLqBQsREYCgu6xQkYQwJr9fo45a62DN9EdmHXnZdXNqlcVGlCum2Wks+49/V6267UEjw6QUXTS5Rovnzv++qbSzm9Q=\n";
    let request = AddCheckpoint::parse(body.as_bytes()).unwrap();
    assert_eq!(request.to_string(), body);
    assert_eq!(request.origin(), "example.com/behind-the-sofa");
    assert_eq!(request.decide(&keys(), None).unwrap_err(), Refusal::Unsigned);
}

#[test]
fn a_log_takes_over_only_what_is_valid_and_from_a_known_witness() {
    let accepted = request(0, Vec::new(), head(3)).decide(&keys(), None).unwrap();
    let good = accepted.cosign(&witness(), 1_700_000_000);
    let stranger = WitnessSigner::from_seed("stranger".parse().unwrap(), &[3; 32]);
    let unknown = accepted.cosign(&stranger, 1_700_000_000);
    let mut bad = good.clone();
    bad.signature[0] ^= 1;
    let mut checkpoint = log().sign(head(3));
    assert_eq!(checkpoint.add_cosignatures(&[bad, unknown, good.clone()], &[witness().verifier().clone()]), 1);
    assert_eq!(checkpoint.signatures()[1..], [good]);
}

#[test]
fn the_earliest_time_of_a_witness_counts() {
    let accepted = request(0, Vec::new(), head(3)).decide(&keys(), None).unwrap();
    let known = [witness().verifier().clone()];
    let policy = Policy::new(log().verifier().clone(), known.to_vec(), 1).unwrap();
    let seen = |times: &mut dyn Iterator<Item = u64>| {
        let mut checkpoint = log().sign(head(3));
        checkpoint.add_cosignatures(&times.map(|time| accepted.cosign(&witness(), time)).collect::<Vec<_>>(), &known);
        (policy.check(&checkpoint).unwrap().witnesses[0].1, checkpoint.signatures().len())
    };
    assert_eq!(seen(&mut [1_700_000_009, 1_700_000_000, 1_700_000_004].into_iter()), (1_700_000_000, 4));
    // No witness signs at time zero, or at one that others cannot parse.
    assert_eq!(seen(&mut [0].into_iter()), (1, 2));
    assert_eq!(seen(&mut [u64::MAX].into_iter()), (i64::MAX as u64, 2));
    // As many signatures as can be read again.
    assert_eq!(seen(&mut (1..=2 * MAX_SIGNATURES as u64)), (1, MAX_SIGNATURES));
}

#[test]
fn sizes_are_read_in_one_form_only() {
    assert_eq!(parse_size(b"0\n"), Ok(0));
    assert_eq!(parse_size(b"20852014\n"), Ok(20_852_014));
    for wrong in
        [&b""[..], b"\n", b"50", b"050\n", b"50\n\n", b" 50\n", b"-1\n", b"99999999999999999999\n", &[b'1'; 99]]
    {
        parse_size(wrong).unwrap_err();
    }
}
